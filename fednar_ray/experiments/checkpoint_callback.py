"""Writes the checkpoints of a run: at its start, every k rounds, and at its end, also after an error."""

import logging
from collections.abc import Mapping
from typing import Any

from fednar_ray.checkpoint.store import CheckpointStore
from fednar_ray.checkpoint.writer import BackgroundWriter
from fednar_ray.core.callbacks import RoundCallback
from fednar_ray.core.errors import CheckpointError
from fednar_ray.core.reports import RoundReport
from fednar_ray.federated.server_state import FederationState
from fednar_ray.tracking.journal import Journal

log = logging.getLogger("fednar_ray")

INTERRUPTED_SECONDS = 4.0  # a process that gets SIGTERM usually has ten seconds in all


class CheckpointCallback(RoundCallback):
    """Writes checkpoints in the background, so that rounds do not wait for the storage.

    A checkpoint that could not be written ends the run with CheckpointError at the next round, or at its end.

    Args:
        store: Where checkpoints are written.
        every: Rounds between two checkpoints; None: no checkpoint is written at all.
        state: The state of the federation, which advances with each round.
        journal: The journal of the run. A checkpoint contains its lines.
        facts: What else a checkpoint records about its run.
        written: The number of rounds in the checkpoint that the run resumes from; None for a new run.
    """

    def __init__(
        self,
        store: CheckpointStore,
        every: int | None,
        state: FederationState,
        journal: Journal,
        facts: Mapping[str, Any],
        written: int | None,
    ) -> None:
        self._writer, self._every = BackgroundWriter(store), every
        self._state, self._journal, self._facts = state, journal, facts
        self._offered = written

    def on_run_start(self) -> None:
        """Writes the state before round 0 of a new run."""
        if self._offered is None:
            self._offer()

    def on_round_end(self, report: RoundReport) -> None:
        """Writes a checkpoint after every k-th round. The journal must already have recorded the round."""
        if self._every is not None and self._state.now.next_round % self._every == 0:
            self._offer()

    def on_run_end(self) -> None:
        """Writes the final state, and waits until it is written."""
        self._offer_last()
        self._writer.close(None)

    def on_error(self, error: BaseException) -> None:
        """Writes the state after the last round that ended, unless an earlier checkpoint could not be written."""
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
        try:
            if not isinstance(error, CheckpointError):
                self._offer_last()
            self._writer.close(INTERRUPTED_SECONDS if interrupted else None)
        except CheckpointError as failure:
            log.error("%s", failure)

    def _offer(self) -> None:
        if self._every is None:
            return
        done = self._state.now.next_round
        self._writer.offer(self._state.take_snapshot(self._journal.get_lines(done), self._facts))
        self._offered = done  # set last: if this method is interrupted, the end of the run offers the state again

    def _offer_last(self) -> None:
        """Writes the last round, unless the journal does not have it yet. A resumed run then trains it again."""
        if self._offered != self._state.now.next_round <= self._journal.rounds:
            self._offer()
