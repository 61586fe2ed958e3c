"""Decides how many runs of a comparison this process trains together, as rows of one matrix."""

import logging

from fednar_ray.config import CompareSettings
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.placement import resolve_group_size
from fednar_ray.experiments.prepared import Prepared
from fednar_ray.federated.pack_trainer import MATRIX_ROWS

log = logging.getLogger("fednar_ray")


def choose_width(settings: CompareSettings, prepared: Prepared, session: RaySession, runs: int) -> int:
    """Returns how many runs are trained together; 1 if they are trained one after the other, on actors.

    A run's bytes are the same either way.

    Args:
        settings: The comparison; ``pack`` is the user's choice.
        prepared: One of its runs.
        session: Where actors would train.
        runs: How many runs are left to train.
    """
    wanted = {"auto": runs, "off": 1}.get(str(settings.pack)) or min(int(settings.pack), runs)
    if wanted == 1:
        return 1
    obstacle = _find_obstacle(prepared, session) or (
        _find_reason_against(prepared, session) if settings.pack == "auto" else None
    )
    if obstacle is not None:
        log.info("each run is trained by itself: %s", obstacle)
        return 1
    return wanted


def _find_obstacle(prepared: Prepared, session: RaySession) -> str | None:
    """Returns why runs cannot be trained together; None if they can."""
    execution = prepared.experiment.execution
    serial = execution.placement == "serial"
    if not serial and (execution.placement != "auto" or execution.actors != "auto" or execution.silos is not None):
        return "the experiment asks for actors"
    if not serial and execution.gpus_per_actor != 0 and session.get_resources().gpus > 0:
        return "they are trained on GPUs"
    if execution.compile == "on":
        return "their steps are compiled"
    if resolve_group_size(prepared, gpu=False) == 1:
        return prepared.traits.alone_because or "clients are trained one by one"
    return None


def _find_reason_against(prepared: Prepared, session: RaySession) -> str | None:
    """Returns why it would not pay to train runs together; None if it does."""
    if session.address != "local" and prepared.experiment.execution.placement != "serial":
        return "the cluster has room for actors"
    if 2 * prepared.clients_per_round > MATRIX_ROWS:
        return f"the {prepared.clients_per_round} clients of one run fill a matrix"
    return None
