"""Decides how many runs of a comparison this process trains together, as rows of one matrix."""

import logging
from collections.abc import Iterator

from fednar_ray.config import CompareSettings, ExecutionSettings
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.placement import resolve_group_size
from fednar_ray.experiments.prepare import Prepared
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
    obstacle = next(_find_obstacles(prepared, session), None)
    if obstacle is not None:
        log.info("each run is trained by itself: %s", obstacle)
        return 1
    return wanted


def _find_obstacles(prepared: Prepared, session: RaySession) -> Iterator[str]:
    execution, clients = prepared.experiment.execution, prepared.clients_per_round
    if session.address != "local":
        yield "a cluster has room for actors"
    if _asks_for_actors(execution):
        yield "the experiment asks for actors"
    elif session.get_resources().gpus > 0 and execution.gpus_per_actor != 0:
        yield "runs are trained on GPUs"
    if execution.compile == "on":
        yield "the steps are compiled"
    if resolve_group_size(prepared, gpu=False) == 1:
        yield prepared.traits.alone_because or "clients are trained one by one"
    if 2 * clients > MATRIX_ROWS:
        yield f"the {clients} clients of one run fill a matrix"


def _asks_for_actors(execution: ExecutionSettings) -> bool:
    if execution.placement == "serial":
        return False
    return execution.placement != "auto" or execution.actors != "auto" or execution.silos is not None
