"""Sends to MLflow what a run directory still owes it: after an outage that outlasted the run, or a crash."""

import json
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from fednar_ray.credentials import check_address
from fednar_ray.errors import BadInput
from fednar_ray.tracking.delivery import Delivery
from fednar_ray.tracking.journal import ROUNDS_FILE
from fednar_ray.tracking.lines import Lines, sole_writer
from fednar_ray.tracking.mlflow import RUN_FILE, Store, answering
from fednar_ray.tracking.outbox import Outbox


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """What one ``sync`` did."""

    directory: Path
    operations: int  # sent now: parameters, tags, files, the model, the run's end
    rounds: int  # sent now
    skipped: str | None  # why nothing was tried

    def __str__(self) -> str:
        if self.skipped is not None:
            return f"skipped: {self.skipped}"
        if not self.operations and not self.rounds:
            return "MLflow has everything"
        return f"sent {self.rounds} rounds and {self.operations} other things"


def sync(directory: Path, uri: str | None = None) -> SyncReport:
    """Send everything that ``directory`` owes, to the store that it names or to ``uri``.

    A run that is still being written sends for itself, and is skipped; so is a directory that names no MLflow run.
    Raises TrackingUnavailable when MLflow does not answer.
    """
    sent, skipped = (0, 0), None
    with ExitStack() as stack:
        try:
            stack.enter_context(sole_writer(directory))
            run_id, known_uri = identity_of(directory)
            if uri is None:
                check_address(str(directory / RUN_FILE), known_uri)
        except BadInput as reason:
            skipped = str(reason)
        else:
            sent = _deliver(Store(uri or known_uri), run_id, directory)
    return SyncReport(directory=directory, operations=sent[0], rounds=sent[1], skipped=skipped)


def _deliver(store: Store, run_id: str, directory: Path) -> tuple[int, int]:
    """Operations and rounds sent."""
    with closing(Outbox(directory)) as outbox, ExitStack() as stack:
        delivery = Delivery(lambda: store.client, run_id, directory, outbox)
        if (directory / ROUNDS_FILE).exists():
            delivery.rounds = stack.enter_context(closing(Lines(directory / ROUNDS_FILE)))
        with answering(store.uri):
            while delivery.owes:
                delivery.step()
        return delivery.delivered_operations, delivery.delivered_rounds


def identity_of(directory: Path) -> tuple[str, str]:
    """The MLflow run that a run directory belongs to, and its store. Raises BadInput where it does not say."""
    path = directory / RUN_FILE
    try:
        identity = json.loads(path.read_text(encoding="utf-8"))
        return str(identity["run_id"]), str(identity["tracking_uri"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} does not say which MLflow run {directory.name} is: {error}") from error
