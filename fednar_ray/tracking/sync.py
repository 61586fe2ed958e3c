"""Sends to MLflow what a run directory still owes it: after an outage that outlasted the run, or a crash.

Where a directory's record says that it belongs is not enough to send anything there: the directory may be a stranger's.
"""

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from fednar_ray.core.credentials import check_address
from fednar_ray.core.errors import BadInput, RunFailed
from fednar_ray.tracking.addresses import check_confirmed
from fednar_ray.tracking.delivery import Delivery
from fednar_ray.tracking.identity import identity_of
from fednar_ray.tracking.journal import is_round
from fednar_ray.tracking.lines import BeingWritten, Lines, sole_writer
from fednar_ray.tracking.mlflow import Store, answering
from fednar_ray.tracking.outbox import Outbox
from fednar_ray.tracking.run_directory import RunDirectory


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """What one ``sync`` did."""

    directory: Path
    operations: int = 0  # sent now: parameters, tags, files, the model, the run's end
    rounds: int = 0  # sent now
    skipped: str | None = None  # why nothing was tried: the run sends for itself
    problem: str | None = None  # why nothing can be sent: the directory is damaged, or its store is not confirmed

    def __str__(self) -> str:
        if self.problem is not None:
            return f"not sent: {self.problem}"
        if self.skipped is not None:
            return f"skipped: {self.skipped}"
        if not self.operations and not self.rounds:
            return "MLflow has everything"
        return f"sent {self.rounds} rounds and {self.operations} other things"


def sync(directory: Path, uri: str | None = None) -> SyncReport:
    """Send everything that ``directory`` owes, to the store that it names or to ``uri``.

    The store that it names must be confirmed: be the one that the settings name (``MLFLOW_TRACKING_URI``, or MLflow's
    default here), or one that this user has recorded runs in; ``uri`` confirms itself.  A run that is still being
    written sends for itself, and is skipped.  Raises TrackingUnavailable when MLflow does not answer.
    """
    with ExitStack() as stack:
        try:
            identity = identity_of(directory)
            stack.enter_context(sole_writer(directory))
            if uri is None:
                check_address(str(RunDirectory(directory).identity), identity.tracking_uri)
                check_confirmed(identity.tracking_uri, directory)
        except BeingWritten as reason:
            return SyncReport(directory=directory, skipped=str(reason))
        except (BadInput, RunFailed) as reason:
            return SyncReport(directory=directory, problem=str(reason))
        store = Store(uri or identity.tracking_uri)
        try:
            delivery = _opened(stack, store, identity.run_id, directory)
        except RunFailed as reason:
            return SyncReport(directory=directory, problem=str(reason))
        with answering(store.uri):
            while delivery.owes:
                delivery.step()
    return SyncReport(directory=directory, operations=delivery.delivered_operations, rounds=delivery.delivered_rounds)


def _opened(stack: ExitStack, store: Store, run_id: str, directory: Path) -> Delivery:
    """What a run directory owes. Its journal is only read: what is damaged in it is for a resumed run to mend."""
    outbox = stack.enter_context(closing(Outbox(directory)))
    delivery = Delivery(lambda: store.client, run_id, directory, outbox)
    journal = RunDirectory(directory).journal
    if journal.exists():
        delivery.rounds = stack.enter_context(closing(Lines(journal, is_round, grows=False)))
    return delivery
