"""What a trial takes of a cluster, decided before any is started: it and its actors are reserved together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune import PlacementGroupFactory

from fednar_ray.config import Experiment
from fednar_ray.core.errors import CapacityError, ConfigError
from fednar_ray.execution.capacity import reserve
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.placement import resolve
from fednar_ray.experiments.prepare import prepare

Bundle = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResources:
    """Where the clients of each trial train."""

    execution: Mapping[str, Any]  # the execution section of every trial
    bundles: tuple[Bundle, ...]  # the trial's own process, then its actors
    at_once: int  # trials that fit

    @property
    def factory(self) -> PlacementGroupFactory:
        """For Tune: all or nothing."""
        strategy = "SPREAD" if self.execution.get("strategy") == "spread" else "PACK"
        return PlacementGroupFactory([dict(bundle) for bundle in self.bundles], strategy=strategy)


def plan_resources(experiment: Experiment, session: RaySession) -> TrialResources:
    """In the trial's own process, unless the experiment names another placement, or there are GPUs for actors.

    Data and model are loaded and checked once here, before Ray starts and before any trial: what is wrong with them is
    wrong for all trials.

    Raises CapacityError, with what would fit, where the cluster can never hold a trial; else BadInput's kinds.
    """
    settings = experiment.execution
    if settings.silos is not None:
        raise ConfigError(("execution.silos: a search trains in its own trials; fednar compare varies runs on silos",))
    gpu = session.resources().gpus > 0 and settings.gpus_per_actor != 0
    if settings.placement == "serial" or (settings.placement == "auto" and not gpu and settings.actors == "auto"):
        execution = settings.model_copy(update={"placement": "serial"})
        prepare(experiment.model_copy(update={"execution": execution}))
        bundles: tuple[Bundle, ...] = ({"CPU": settings.cpus_per_actor},)
    else:
        single = {"placement": "pooled", "actors": 1} if settings.actors == "auto" else {"placement": "pooled"}
        execution = settings.model_copy(update=single if settings.placement == "auto" else {})
        resolved = resolve(prepare(experiment.model_copy(update={"execution": execution})), session)
        assert resolved.actors is not None
        actors = resolved.actors
        execution = execution.model_copy(
            update={"actors": actors.count, "gpus_per_actor": actors.gpus, "vectorize": resolved.width}
        )
        each = {"CPU": actors.cpus} | ({"GPU": actors.gpus} if actors.gpus else {})
        bundles = ({}, *(each for _ in range(actors.count)))
    nodes = _nodes(session)
    return TrialResources(
        execution=execution.model_dump(exclude_none=True),
        bundles=bundles,
        at_once=_checked(fitting_trials(bundles, nodes), bundles, nodes),
    )


def _nodes(session: RaySession) -> list[dict[str, float]]:
    """What each node has; of a local Ray before it starts, what it will have."""
    if not session.local:
        return session.nodes()
    machine = session.resources()
    return [{"CPU": machine.cpus, "GPU": machine.gpus}]


def fitting_trials(bundles: Sequence[Bundle], nodes: Sequence[Bundle]) -> int:
    """How many trials fit side by side: bundles are put, largest first, on the first node with room for them."""
    free = [dict(node) for node in nodes]
    wanted = sorted((b for b in bundles if b), key=lambda b: (b.get("GPU", 0), b.get("CPU", 0)), reverse=True)
    trials = 0
    while all(reserve(bundle, free) for bundle in wanted):
        trials += 1
    return trials


def _checked(fits: int, bundles: Sequence[Bundle], nodes: Sequence[Bundle]) -> int:
    if fits:
        return fits
    each = max((b for b in bundles if b), key=lambda b: (b.get("GPU", 0), b.get("CPU", 0)))
    largest = {name: max(node.get(name, 0.0) for node in nodes) for name in each}
    raise CapacityError(
        f"a trial takes {_told(bundles)} at once, and never fits: the cluster has {_told(nodes)}, "
        f"its largest node {_told([largest])}; lower execution.actors, cpus_per_actor or gpus_per_actor"
    )


def _told(bundles: Sequence[Bundle]) -> str:
    totals = {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in ("CPU", "GPU")}
    return " and ".join(f"{total:g} {name}s" for name, total in totals.items() if total or name == "CPU")
