"""Records a run in MLflow: one MLflow run per run, metrics with step = round, and the final model.

Only the driver records.  What it records is first written to the run directory, and then sent by a background thread,
so a run neither waits for MLflow nor fails with it.
"""

import json
import logging
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from fednar_ray.config import Experiment, dump
from fednar_ray.core.callbacks import RoundCallback
from fednar_ray.core.errors import BadInput, RunFailed
from fednar_ray.core.fednar_table_schema import TableSchema
from fednar_ray.core.stages import announce
from fednar_ray.tracking.datasets import DataSummary
from fednar_ray.tracking.delivery import Delivery
from fednar_ray.tracking.file_writes import make_directory, replace_file
from fednar_ray.tracking.identity import Identity, read_identity
from fednar_ray.tracking.journal import Journal
from fednar_ray.tracking.locks import lock_run_directory
from fednar_ray.tracking.mlflow_names import name_in_mlflow
from fednar_ray.tracking.models import save_model
from fednar_ray.tracking.notes import Note
from fednar_ray.tracking.outbox import Outbox
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.run_views import RunView, format_rank
from fednar_ray.tracking.sender import Sender
from fednar_ray.tracking.shared_sender import SharedRun, SharedSender
from fednar_ray.tracking.store import Store
from fednar_ray.tracking.tags import END_TAG, WRITER_TAG

log = logging.getLogger("fednar_ray")

INTERRUPTED_SECONDS = 3.0  # the longest that the end of an interrupted run may take


class RunTracker(RoundCallback):
    """One MLflow run, which is ended as FINISHED, FAILED or KILLED.

    Everything that is logged is written to ``directory`` before it is sent.  What MLflow has not received by the end
    can be sent with ``fednar sync``.  Logging raises RunFailed if the disk of the directory is full, and never
    because of MLflow.

    Args:
        store: The tracking store of the run.
        run_id: MLflow's id of the run, which exists.
        directory: The run directory. Starting raises BadInput if another process writes it.
        resumed: The run was recorded in this MLflow run before. Its outbox is continued, and no round that MLflow has
            is sent again.
        copied: The run was recorded before as another MLflow run. Everything recorded so far is sent to this one too.
        parent_id: The MLflow run of the comparison or search that a new run belongs to.
        sender: The sender that this run shares with others, whose end waits for MLflow in place of the run's end. None
            if the run gets a sender of its own.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        directory: Path,
        *,
        resumed: bool = False,
        copied: bool = False,
        parent_id: str | None = None,
        sender: SharedSender | None = None,
    ) -> None:
        self._shared = sender
        self.run_id, self._parent_id = run_id, parent_id
        self._store, self._directory, self._resumed, self._copied = store, directory, resumed, copied
        self._held = ExitStack()
        self._sender: Sender | SharedRun
        self._ends_as = "FINISHED"

    @property
    def uri(self) -> str:
        """The address of the tracking store."""
        return self._store.uri

    def on_run_start(self) -> None:
        """Locks the directory for this process, and starts to send what is logged."""
        make_directory(self._directory)
        with ExitStack() as stack:
            stack.enter_context(lock_run_directory(self._directory))
            if self._copied:
                Outbox.reset_sent(self._directory)
            identity = self._read_identity().add_writer(self._directory)
            identity.write(self._directory)
            self._outbox = stack.enter_context(closing(Outbox(self._directory)))
            if self._resumed or self._copied:
                self._outbox.append({"kind": "resumed"})
                self._outbox.append({"kind": "tags", "tags": {WRITER_TAG: str(identity.writer)}})
            self._delivery = Delivery(
                lambda: self._store.client, self.run_id, self._directory, self._outbox, ask=self._resumed
            )
            self._sender = self._shared.attach(self._delivery) if self._shared else Sender(self._delivery, self.uri)
            self._held = stack.pop_all()

    def _read_identity(self) -> Identity:
        """Returns the identity that the directory records, if it is of the same run; else a new one."""
        new = Identity(run_id=self.run_id, tracking_uri=self.uri, parent_id=self._parent_id)
        try:
            recorded = read_identity(self._directory)
        except BadInput:
            return new
        same = (recorded.run_id, recorded.tracking_uri) == (new.run_id, new.tracking_uri)
        return recorded if same else replace(new, started=recorded.started)

    def _queue(self, kind: str, **fields: object) -> None:
        try:
            self._outbox.append({"kind": kind, **fields})
        finally:
            self._sender.wake()

    def log_params(self, params: Mapping[str, object]) -> None:
        """Logs parameters of the run, as text."""
        self._queue("params", params={key: str(value) for key, value in params.items()})

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Sets tags of the MLflow run."""
        self._queue("tags", tags=dict(tags))

    def log_note(self, note: Note, name: str | None = None) -> None:
        """Sets the note of the MLflow run.

        Args:
            note: What a reader should see first.
            name: The name of the run in the note of its experiment; None if that note stays as it is.
        """
        of_experiment = "" if name is None else note.build_experiment_markdown(name)
        self._queue("note", text=note.build_markdown(), experiment_text=of_experiment)

    def log_view(self, view: RunView) -> None:
        """Saves a view of the table of runs in the run's experiment, in place of an earlier one with its key."""
        tag, value = view.build_tag(_get_milliseconds())
        self._queue("view", tag=tag, value=value)

    def log_data(self, data: DataSummary) -> None:
        """Logs a data set as an input of the run."""
        self._queue("data", **data.build_fields())

    def log_experiment(self, experiment: Experiment) -> None:
        """Logs the experiment as a file that ``fednar run`` takes."""
        path = RunDirectory(self._directory).experiment_yaml
        replace_file(path, dump(experiment))
        self.log_file(path)

    def log_file(self, path: Path) -> None:
        """Uploads a file of the run directory as an artifact."""
        self._queue("file", path=str(path.relative_to(self._directory)))

    def log_table(self, rows: Sequence[Mapping[str, object]], name: str) -> None:
        """Logs rows as a JSON table that the MLflow UI shows. A later table of the same name replaces it."""
        columns = list(rows[0]) if rows else []
        data = [[_replace_non_finite(row[column]) for column in columns] for row in rows]
        replace_file(self._directory / name, json.dumps({"columns": columns, "data": data}))
        self._queue("table", path=name)

    def follow(self, journal: Journal) -> None:
        """Sends the rounds of a journal, those recorded already and those to come, with step = round."""
        self._delivery.rounds = journal.file

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Logs metrics of the run as a whole, under their names in MLflow."""
        finite = {name_in_mlflow(name): float(value) for name, value in metrics.items() if math.isfinite(value)}
        self._queue("metrics", metrics=finite, step=step, time=_get_milliseconds())

    def save_model(self, model: torch.nn.Module, example: npt.NDArray[Any], schema: TableSchema | None = None) -> None:
        """Logs the model with its signature.

        Args:
            model: Takes raw inputs.
            example: Two or more raw inputs, [n, …].
            schema: The columns of ``example`` [n, columns]; None if they have no names.
        """
        directory = RunDirectory(self._directory).model
        save_model(model, example, directory, schema)
        self._queue("model", path=directory.name)

    def link_model(self, run_id: str) -> None:
        """Links the model of another MLflow run, such as that of a search's best experiment, to this run."""
        self._queue("model of", run_id=run_id)

    def log_rank(self, run_id: str, rank: int) -> None:
        """Gives another MLflow run, which is nested in this one, its place in a view that is sorted by ranks."""
        self._queue("rank", run_id=run_id, rank=format_rank(rank))

    def set_end_status(self, status: str) -> None:
        """Sets the status that MLflow shows after a normal end: FINISHED by default, KILLED or FAILED."""
        self._ends_as = status

    def on_run_end(self) -> None:
        """Ends the MLflow run, and waits until everything is sent or MLflow does not answer."""
        if self._shared is None:
            announce("sending the last records to MLflow")
        self._end(self._ends_as, math.inf)

    def on_error(self, error: BaseException) -> None:
        """Ends the MLflow run as KILLED if it was interrupted, otherwise as FAILED, and tags it with the error."""
        interrupted = isinstance(error, KeyboardInterrupt | GeneratorExit | SystemExit)
        status, seconds = ("KILLED", INTERRUPTED_SECONDS) if interrupted else ("FAILED", math.inf)
        self._end(status, seconds, {END_TAG: f"{type(error).__name__}: {error}"[:500]})

    def _end(self, status: str, seconds: float, tags: Mapping[str, str] | None = None) -> None:
        """Ends the MLflow run, and waits for MLflow for at most ``seconds``; a shared sender waits later."""
        until = time.monotonic() + seconds
        with self._held:
            with suppress(RunFailed):  # a full disk: MLflow is informed all the same
                if tags is not None:
                    self.log_tags(tags)
            with suppress(RunFailed):
                self._queue("end", status=status, time=_get_milliseconds())
            finish = partial(self._finish, self._held.pop_all(), until)
        if self._shared is None:
            finish()
        else:
            self._shared.submit(finish)

    def _finish(self, held: ExitStack, until: float) -> None:
        with held:
            self._sender.close(until - time.monotonic())
            self._warn_about_unsent()

    def _warn_about_unsent(self) -> None:
        if self._delivery.owes:
            log.warning(
                "MLflow at %s does not have everything of this run: %d rounds and %d other records are not sent yet; "
                "when it answers, send them with: fednar sync %s",
                self.uri, self._delivery.owed_rounds, self._delivery.owed_operations, shlex.quote(str(self._directory)),
            )  # fmt: skip


def _get_milliseconds() -> int:
    """Returns the time in milliseconds since the epoch."""
    return int(time.time() * 1000)


def _replace_non_finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
