"""Records of rounds for journals, and a disk that has no room for them."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.core.reports import RoundRecord


def build_record(index: int, loss: float = 0.5) -> RoundRecord:
    """Builds the record of a round in which client 1 trained and client 3 failed."""
    metrics = {"train_loss": loss, "clients_trained": 2.0}
    excluded = {3: Exclusion(ExclusionReason.FAILED, "gone")}
    return RoundRecord(round_index=index, metrics=metrics, client_ids=(1, 3), exclusions=excluded)


@contextmanager
def limit_disk(room: int) -> Iterator[None]:
    """Limits files to ``room`` bytes; the operating system writes what fits, and then fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
