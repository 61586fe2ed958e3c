"""Decides what of a run directory is sent to MLflow next, and asks whether it has arrived."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from mlflow import MlflowClient

from fednar_ray.core.errors import first_line
from fednar_ray.core.store_uris import is_database
from fednar_ray.tracking.arrival import (
    WITNESSES,
    NotAnswered,
    find_first_missing,
    find_first_not_arrived,
    list_rounds,
    read_run,
)
from fednar_ray.tracking.batch import KINDS, METRICS_PER_CALL, Batch
from fednar_ray.tracking.json_lines import JsonLines
from fednar_ray.tracking.mlflow_metrics import parse_metrics
from fednar_ray.tracking.operations import measure_upload, send_operation
from fednar_ray.tracking.outbox import Operation, Outbox
from fednar_ray.tracking.refusals import is_refusal

log = logging.getLogger("fednar_ray")

CONFIRM_EVERY_ROUNDS = 100
USUAL_METRICS_PER_ROUND = 30


class Delivery:
    """Sends the contents of an outbox and a journal to one MLflow run. Only one thread may call ``step``.

    Rounds are sent before operations, because the operations at the end of a run depend on them; as many of both as
    possible are sent in one call. Something that was sent over HTTP stays owed until MLflow confirms that it has
    arrived, since another program may answer at its address. A database has stored what it was sent.

    Args:
        connect: Returns the client, and may contact the store.
        run_id: The MLflow run.
        directory: The run directory, which the paths in the outbox are relative to.
        outbox: The operations to send.
        ask: Whether to ask MLflow first which rounds it has, for a directory that may know less than MLflow.
    """

    def __init__(
        self, connect: Callable[[], MlflowClient], run_id: str, directory: Path, outbox: Outbox, *, ask: bool = False
    ) -> None:
        self._connect, self._run_id, self._directory = connect, run_id, directory
        self._outbox, self._ask = outbox, ask
        self._refusals: set[str] = set()
        self._metrics_per_round = USUAL_METRICS_PER_ROUND
        self._apart = 0  # number of operations to send one by one, because MLflow refuses a batch with them
        self._sent_rounds = outbox.sent_rounds  # of these, the first outbox.sent_rounds are confirmed
        self._sent: list[Operation | None] = []  # sent but not confirmed; None: refused, or damaged
        self._refused_rounds: set[int] = set()
        self.rounds: JsonLines | None = None  # of the journal, once there is one
        self.behind = False  # whether the last batch of rounds was full
        self.in_doubt = False  # whether something was missing when MLflow was last asked
        self.delivered_operations = self.delivered_rounds = 0

    @property
    def owed_operations(self) -> int:
        """Number of operations that MLflow has not confirmed."""
        return len(self._outbox.pending)

    @property
    def owed_rounds(self) -> int:
        """Number of rounds that MLflow has not confirmed."""
        return max(0, len(self.rounds) - self._outbox.sent_rounds) if self.rounds is not None else 0

    @property
    def owes(self) -> bool:
        """Whether MLflow has not confirmed everything. Any thread may ask."""
        return bool(self.owed_operations or self.owed_rounds)

    @property
    def unsent_operations(self) -> int:
        """Number of operations to send, or to send again."""
        return len(self._outbox.pending) - len(self._sent)

    @property
    def unsent_rounds(self) -> int:
        """Number of rounds to send, or to send again."""
        return max(0, len(self.rounds) - self._sent_rounds) if self.rounds is not None else 0

    @property
    def unsent_metrics(self) -> int:
        """Number of metrics in the rounds to send, if each has as many as those that were sent last."""
        return self.unsent_rounds * self._metrics_per_round

    @property
    def due(self) -> bool:
        """Whether there is something to do before the end of the run: to send, or to ask for a confirmation.

        Asking takes time in proportion to all rounds, so it is done each time their number has doubled.
        """
        unconfirmed = self._sent_rounds - self._outbox.sent_rounds
        many = unconfirmed >= max(CONFIRM_EVERY_ROUNDS, self._outbox.sent_rounds)
        return bool(self.unsent_operations or self.unsent_rounds) or self.in_doubt or many

    @property
    def has_single_operation(self) -> bool:
        """Whether the next operation is sent by a call of its own, such as a file."""
        if not self.unsent_operations:
            return False
        operation, _ = self._outbox.pending[len(self._sent)]
        return operation is None or operation["kind"] not in KINDS

    def count_bytes_of_next_step(self) -> int:
        """Returns the size of the files that the next ``step`` uploads."""
        if self.unsent_rounds or not self.unsent_operations:
            return 0
        operation, _ = self._outbox.pending[len(self._sent)]
        return 0 if operation is None else measure_upload(self._directory, operation)

    def step(self) -> None:
        """Sends as much as one call takes; if nothing is left to send, asks for a confirmation.

        What MLflow refuses is skipped with a warning.

        Raises:
            NotAnswered: Something that was sent is missing. It stays owed.
            Exception: Whatever MLflow and its storage raise when they do not answer. Everything stays owed.
        """
        client = self._connect()
        if self._ask:
            with self._skip_if_refused("which rounds it has"):
                self._ask_for_rounds(client)
            self._ask = False
        if not (self.unsent_rounds or self.unsent_operations):
            self._confirm(client)
            return
        batch, stop, operations = self._gather()
        if self._sent_rounds < stop or operations > 1:
            self._send_batch(client, batch, stop, operations)
        else:
            self._send_operation(client)
        if is_database(client.tracking_uri):
            self._acknowledge()

    @contextmanager
    def _skip_if_refused(self, what: str) -> Iterator[list[str]]:
        """Yields a list that holds the reason afterwards if MLflow refused the block, and is empty otherwise."""
        reasons: list[str] = []
        try:
            yield reasons
        except Exception as error:
            if not is_refusal(error):
                raise
            reasons.append(first_line(error))
            if reasons[0] not in self._refusals:
                log.warning("MLflow refuses a part of run %s (%s), which remains in %s: %s",
                            self._run_id, what, self._directory, reasons[0])  # fmt: skip
            self._refusals.add(reasons[0])

    def _ask_for_rounds(self, client: MlflowClient) -> None:
        there = list_rounds(client, read_run(client, self._run_id))
        self._sent_rounds = next(index for index in count() if index not in there)
        self._outbox.acknowledge(operations=0, rounds=self._sent_rounds)

    def _gather(self) -> tuple[Batch, int, int]:
        """Returns what fits into one call: the batch, the round that it ends before, and its number of operations."""
        batch, stop, operations, waiting = Batch(), self._sent_rounds, 0, self.unsent_operations
        if self.unsent_rounds:
            assert self.rounds is not None
            for line in self.rounds.read(stop, min(len(self.rounds), stop + METRICS_PER_CALL)):
                if not batch.add_round(parse_metrics(line)):
                    break
                stop += 1
            self._metrics_per_round = len(batch.metrics) // (stop - self._sent_rounds)
        self.behind = bool(self.unsent_rounds) and stop < len(self.rounds or ())
        while not (self.behind or self._apart) and operations < waiting:
            operation, _ = self._outbox.pending[len(self._sent) + operations]
            if operation is None or not batch.add(operation):
                break
            operations += 1
        return batch, stop, operations

    def _send_batch(self, client: MlflowClient, batch: Batch, stop: int, operations: int) -> None:
        """Sends rounds and operations. What MLflow refuses as a whole is sent in parts next time."""
        first = self._sent_rounds
        if operations:
            try:
                batch.send(client, self._run_id)
            except Exception as error:
                if not is_refusal(error):
                    raise
                self._apart = operations
                return
        else:
            with self._skip_if_refused(f"rounds {first} to {stop - 1}") as reasons:
                batch.send(client, self._run_id)
            if reasons:
                self._refused_rounds |= set(range(first, stop))
        self._sent_rounds = stop
        self._sent += [operation for operation, _ in self._list_pending(operations)]

    def _list_pending(self, count: int) -> list[tuple[Operation | None, bool]]:
        return [self._outbox.pending[len(self._sent) + index] for index in range(count)]

    def _send_operation(self, client: MlflowClient) -> None:
        operation, _ = self._outbox.pending[len(self._sent)]
        self._apart = max(0, self._apart - 1)
        if operation is None:
            log.warning("%s: a line of the outbox is damaged and is not sent", self._directory)
            self._sent.append(None)
            return
        with self._skip_if_refused(operation["kind"]) as reasons:
            send_operation(client, self._run_id, self._directory, operation, self._read_last_round)
        self._sent.append(None if reasons else operation)

    def _read_last_round(self) -> str | None:
        """Returns the last line of the journal; None if it has no rounds."""
        if not self.rounds:
            return None
        (line,) = self.rounds.read(len(self.rounds) - 1, len(self.rounds))
        return line

    def _confirm(self, client: MlflowClient) -> None:
        """Asks MLflow for what was sent. Raises NotAnswered if something is missing, which is sent again later."""
        with self._skip_if_refused("what it has"):
            self.in_doubt = True
            self._check_arrival(client)
        self.in_doubt = False
        self._acknowledge()

    def _acknowledge(self) -> None:
        """Records that everything that was sent has arrived."""
        rounds, sent = self._sent_rounds, len(self._sent)
        self.delivered_operations += sum(operation is not None for operation in self._sent)
        arrived = range(self._outbox.sent_rounds, rounds)
        self.delivered_rounds += sum(index not in self._refused_rounds for index in arrived)
        self._sent.clear()
        self._outbox.acknowledge(operations=sent, rounds=max(rounds, self._outbox.sent_rounds))

    def _check_arrival(self, client: MlflowClient) -> None:
        run = read_run(client, self._run_id)
        sent = [index for index in range(self._outbox.sent_rounds, self._sent_rounds)
                if index not in self._refused_rounds and self._has_witness(index)]  # fmt: skip
        missing = find_first_missing(sent, list_rounds(client, run) if sent else set())
        if missing is not None:
            self._sent_rounds = missing
            raise NotAnswered(f"it took round {missing} of run {self._run_id} and does not have it")
        index = find_first_not_arrived(client, run, self._sent)
        if index is not None:
            operation = self._sent[index]
            del self._sent[index:]
            kind = None if operation is None else operation["kind"]
            raise NotAnswered(f"it took a part of run {self._run_id} ({kind}) and does not have it")

    def _has_witness(self, index: int) -> bool:
        assert self.rounds is not None
        (line,) = self.rounds.read(index, index + 1)
        metrics = json.loads(line)["metrics"]
        return any(metrics.get(name) is not None for name in WITNESSES)
