"""Plans the resources of a trial. Ray reserves those of its process and its actors together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ray.tune import PlacementGroupFactory

from fednar_ray.config import ExecutionSettings, Experiment
from fednar_ray.core.blocks import LARGE_BYTES
from fednar_ray.core.errors import CapacityError, ConfigError
from fednar_ray.execution.capacity import reserve
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.given import NOTHING_GIVEN, Given
from fednar_ray.experiments.placement import plan_execution, resolve_group_size
from fednar_ray.experiments.prepared import Prepared

VECTORS_PER_CLIENT = 8  # copies of the parameters that a row of the matrix takes: x, g, v, Δ and what is on its way
Bundle = Mapping[str, float]
"""CPUs and GPUs that Ray reserves on one node, by ``CPU`` and ``GPU``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialMatrix:
    """The clients that one federation of a trial trains, if its process does: alone, or in a pack.

    Attributes:
        clients: Number of clients per round.
        group_size: Number of clients that are trained as one matrix.
        client_bytes: Memory that a client takes while it is trained, at most.
        state_bytes: Memory of the states that the algorithm keeps for all clients of the federation, at most.
        alone_because: Why clients must be trained one by one; None if they need not.
        compiled: Whether the user wants compiled steps.
        gpus: The GPUs of the process, or its share of one; 0: it trains on the CPU.
    """

    clients: int
    group_size: int
    client_bytes: float
    state_bytes: float = 0.0
    alone_because: str | None = None
    compiled: bool = False
    gpus: float = 0.0

    @property
    def device_bytes(self) -> float:
        """Memory of the device where the clients are trained."""
        return self.clients * self.client_bytes

    @property
    def host_bytes(self) -> float:
        """What one federation takes of the node's memory, in bytes, at most."""
        return self.state_bytes + (self.client_bytes if self.gpus else self.device_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialResources:
    """Where the clients of each trial are trained.

    Attributes:
        execution: The execution section of every trial.
        bundles: What Ray reserves for the trial's own process, then for each of its actors.
        concurrent: Number of trials that fit on the cluster at a time.
        matrix: What a trial trains that can be packed; None if it has several actors, or was asked to have some.
    """

    execution: Mapping[str, Any]
    bundles: tuple[Bundle, ...]
    concurrent: int
    matrix: TrialMatrix | None

    @property
    def gpu(self) -> bool:
        """Whether a pack trains on a GPU."""
        return self.matrix is not None and self.matrix.gpus > 0

    def for_packs(self) -> "TrialResources":
        """Returns what a pack reserves: its process trains, so it takes what the one actor of a trial would."""
        (bundle,) = (each for each in self.bundles if each)
        return replace(self, bundles=(bundle,))

    @property
    def factory(self) -> PlacementGroupFactory:
        """The bundles in Tune's form. Ray reserves either all of them or none."""
        strategy = "SPREAD" if self.execution.get("strategy") == "spread" else "PACK"
        return PlacementGroupFactory([dict(bundle) for bundle in self.bundles], strategy=strategy)


def plan_resources(experiment: Experiment, session: RaySession, given: Given = NOTHING_GIVEN) -> TrialResources:
    """Plans where trials train: in their own process, unless the experiment asks for actors or there are GPUs.

    With GPUs, ``actors: auto`` is one actor per trial. Such trials can be packed; then a pack's process has the GPU.

    Data and model are loaded and checked once, before Ray starts, since all trials share them.

    Raises:
        CapacityError: The cluster has too few resources for a trial. The message says what would fit.
        BadInput: The data or the model cannot be used.
    """
    settings = experiment.execution
    if settings.silos is not None:
        raise ConfigError(("execution.silos: a search cannot train on silos; use fednar compare to vary runs there",))
    if experiment.secure_aggregation is not None:
        raise ConfigError(
            ("secure_aggregation: a search shows the driver many sums of the same clients; use fednar compare",)
        )
    gpu = session.get_resources().gpus > 0 and settings.gpus_per_actor != 0
    on_cpu = not gpu and settings.precision != "tf32"  # which is refused without a GPU, as for a run
    serial = settings.placement == "serial" or (settings.placement == "auto" and on_cpu and settings.actors == "auto")
    planned = _plan_serial(experiment, given) if serial else _plan_actors(experiment, session, given, gpu=gpu)
    execution, bundles, matrix = planned
    nodes = _list_nodes(session)
    concurrent = count_fitting_trials(bundles, nodes)
    if not concurrent:
        raise CapacityError(_describe_misfit(bundles, nodes))
    return TrialResources(
        execution=execution.model_dump(exclude_none=True), bundles=bundles, concurrent=concurrent, matrix=matrix
    )


def _plan_serial(experiment: Experiment, given: Given) -> tuple[ExecutionSettings, tuple[Bundle, ...], TrialMatrix]:
    execution = experiment.execution.model_copy(update={"placement": "serial"})
    prepared = given.prepare(experiment.model_copy(update={"execution": execution}))
    return execution, ({"CPU": execution.cpus_per_actor},), _measure_matrix(prepared, gpus=0.0)


def _measure_matrix(prepared: Prepared, *, gpus: float) -> TrialMatrix:
    batch, traits = prepared.experiment.federation.batch_size, prepared.traits
    return TrialMatrix(
        clients=prepared.clients_per_round,
        group_size=resolve_group_size(prepared, gpu=gpus > 0),
        client_bytes=VECTORS_PER_CLIENT * prepared.model_bytes + 2 * batch * traits.activation_bytes,
        state_bytes=_count_state_bytes(prepared),
        alone_because=traits.alone_because,
        compiled=prepared.experiment.execution.compile == "on",
        gpus=gpus,
    )


def _count_state_bytes(prepared: Prepared) -> int:
    """Returns the memory of all clients' states, as far as they are not on disk (``ClientStates``)."""
    if prepared.algorithm.client.next_state is None:
        return 0
    states = prepared.federation.num_clients * prepared.model_bytes
    most = prepared.experiment.execution.state_memory_bytes
    if most == "auto":
        return 0 if prepared.model_bytes >= LARGE_BYTES else states
    return min(states, most)


def _plan_actors(
    experiment: Experiment, session: RaySession, given: Given, *, gpu: bool
) -> tuple[ExecutionSettings, tuple[Bundle, ...], TrialMatrix | None]:
    """Plans the actors of a trial. One that gets a single actor with a GPU by default can be packed."""
    settings = experiment.execution
    one = settings.actors == "auto" and (settings.placement == "auto" or (settings.placement == "pooled" and gpu))
    changes: Mapping[str, Any] = {"placement": "pooled"} if settings.placement == "auto" else {}
    execution = settings.model_copy(update={**changes, **({"actors": 1} if one else {})})
    prepared = given.prepare(experiment.model_copy(update={"execution": execution}))
    plan = plan_execution(prepared, session)
    assert plan.actors is not None
    actors = plan.actors
    resolved: dict[str, Any] = {"actors": actors.count, "gpus_per_actor": actors.gpus, "vectorize": plan.group_size}
    resolved["compile"] = "on" if plan.compiled else "off"
    actor_bundle = {"CPU": actors.cpus} | ({"GPU": actors.gpus} if actors.gpus else {})
    matrix = _measure_matrix(prepared, gpus=actors.gpus) if one and actors.gpus else None
    return execution.model_copy(update=resolved), ({}, *(actor_bundle for _ in range(actors.count))), matrix


def _list_nodes(session: RaySession) -> list[dict[str, float]]:
    """Lists what each node has; for a local Ray that has not started yet, what it will have."""
    if not session.local:
        return session.list_nodes()
    machine = session.get_resources()
    return [{"CPU": machine.cpus, "GPU": machine.gpus}]


def count_fitting_trials(bundles: Sequence[Bundle], nodes: Sequence[Bundle]) -> int:
    """Counts how many trials fit side by side, if each bundle is put on the first node that has room for it.

    Args:
        bundles: What one trial takes; the largest bundle is placed first.
        nodes: What each node has.
    """
    free = [dict(node) for node in nodes]
    wanted = sorted((bundle for bundle in bundles if bundle), key=_get_size, reverse=True)
    trials = 0
    while all(reserve(bundle, free) for bundle in wanted):
        trials += 1
    return trials


def _get_size(bundle: Bundle) -> tuple[float, float]:
    return bundle.get("GPU", 0), bundle.get("CPU", 0)


def _describe_misfit(bundles: Sequence[Bundle], nodes: Sequence[Bundle]) -> str:
    largest_bundle = max((bundle for bundle in bundles if bundle), key=_get_size)
    largest_node = {name: max(node.get(name, 0.0) for node in nodes) for name in largest_bundle}
    return (
        f"a trial needs {_describe(bundles)} at once, which does not fit: the cluster has {_describe(nodes)}, "
        f"its largest node {_describe([largest_node])}; lower execution.actors, cpus_per_actor or gpus_per_actor"
    )


def _describe(bundles: Sequence[Bundle]) -> str:
    totals = {name: sum(bundle.get(name, 0.0) for bundle in bundles) for name in ("CPU", "GPU")}
    return " and ".join(f"{total:g} {name}s" for name, total in totals.items() if total or name == "CPU")
