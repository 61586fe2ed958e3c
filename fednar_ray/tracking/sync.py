"""Sends to MLflow what a run directory still owes it, after an outage that outlasted the run, or after a crash.

The address in a run directory alone is not trusted, because the directory may come from a stranger.
"""

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from fednar_ray.core.credentials import check_address
from fednar_ray.core.errors import BadInput, RunFailed
from fednar_ray.tracking.addresses import check_confirmed
from fednar_ray.tracking.delivery import Delivery
from fednar_ray.tracking.identity import read_identity
from fednar_ray.tracking.journal import is_round
from fednar_ray.tracking.json_lines import JsonLines
from fednar_ray.tracking.locks import DirectoryLocked, lock_run_directory
from fednar_ray.tracking.outbox import Outbox
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.store import Store, raise_as_unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """The outcome of one ``sync``."""

    directory: Path
    operations: int = 0  # number sent now: parameters, tags, files, the model, the end of the run
    rounds: int = 0  # number sent now
    skipped: str | None = None  # why nothing was tried: the run is still being written
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
    """Sends everything that a run directory owes to MLflow.

    The store that the directory names must be confirmed: it is the one of the settings (``MLFLOW_TRACKING_URI``, or
    MLflow's default), or one that this user has recorded runs in. A run that is still being written is skipped,
    because it sends everything itself.

    Args:
        directory: The run directory.
        uri: The store to send to; None takes the one that the directory names. A given store counts as confirmed.

    Raises:
        TrackingUnavailable: MLflow does not answer.
    """
    with ExitStack() as stack:
        try:
            identity = read_identity(directory)
            stack.enter_context(lock_run_directory(directory))
            if uri is None:
                check_address(str(RunDirectory(directory).identity), identity.tracking_uri)
                check_confirmed(identity.tracking_uri, directory)
        except DirectoryLocked as reason:
            return SyncReport(directory=directory, skipped=str(reason))
        except (BadInput, RunFailed) as reason:
            return SyncReport(directory=directory, problem=str(reason))
        store = Store(uri or identity.tracking_uri)
        try:
            delivery = _open_delivery(stack, store, identity.run_id, directory)
        except RunFailed as reason:
            return SyncReport(directory=directory, problem=str(reason))
        with raise_as_unavailable(store.uri):
            while delivery.owes:
                delivery.step()
    return SyncReport(directory=directory, operations=delivery.delivered_operations, rounds=delivery.delivered_rounds)


def _open_delivery(stack: ExitStack, store: Store, run_id: str, directory: Path) -> Delivery:
    """Opens what a run directory owes. The journal is only read, because a resumed run repairs a damaged one."""
    outbox = stack.enter_context(closing(Outbox(directory)))
    delivery = Delivery(lambda: store.client, run_id, directory, outbox)
    journal = RunDirectory(directory).journal
    if journal.exists():
        delivery.rounds = stack.enter_context(closing(JsonLines(journal, is_round, append=False)))
    return delivery
