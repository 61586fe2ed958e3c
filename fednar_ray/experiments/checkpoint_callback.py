"""When a run's checkpoints are written: at its start, every k rounds, at its end, and where it is left."""

import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from fednar_ray.checkpoint.store import CheckpointStore
from fednar_ray.checkpoint.writer import BackgroundWriter
from fednar_ray.core.errors import CheckpointError
from fednar_ray.federated.server_state import FederationState
from fednar_ray.tracking.journal import Journal

log = logging.getLogger("fednar_ray")

LEAVING_SECONDS = 4.0  # a process that was told to end has ten in all


class Checkpointing:
    """A context manager around a run's rounds. A round never waits for the storage."""

    def __init__(
        self,
        store: CheckpointStore,
        every: int | None,
        state: FederationState,
        journal: Journal,
        facts: Mapping[str, Any],
        written: int | None,
    ) -> None:
        """``every`` None: nothing is written.

        ``written``: the round of the checkpoint that the run goes on from; None for a new run.
        """
        self._writer, self._every = BackgroundWriter(store), every
        self._state, self._journal, self._facts = state, journal, facts
        self._offered = written

    def __enter__(self) -> Self:
        if self._offered is None:
            self._offer()
        return self

    def round_ended(self) -> None:
        """After each round that the journal holds. Raises CheckpointError where an earlier one could not be written."""
        if self._every is not None and self._state.now.next_round % self._every == 0:
            self._offer()

    def _offer(self) -> None:
        if self._every is None:
            return
        done = self._state.now.next_round
        self._writer.offer(self._state.snapshot(self._journal.lines(done), self._facts))
        self._offered = done  # last: where this is interrupted, leaving offers it

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write where the run stands, unless it could not be written before."""
        leaving = kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit | GeneratorExit)
        try:
            # a round that ended, and that the journal does not hold yet, is trained again
            ahead = self._offered != self._state.now.next_round <= self._journal.rounds
            if ahead and not isinstance(error, CheckpointError):
                self._offer()
            self._writer.close(LEAVING_SECONDS if leaving else None)
        except CheckpointError as failure:
            if error is None:
                raise
            log.error("%s", failure)
