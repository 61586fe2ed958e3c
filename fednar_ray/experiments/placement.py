"""Plans where clients are trained, and opens the pool that trains them."""

import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from fednar_ray.core.errors import ConfigError
from fednar_ray.data.batches import GroupShape
from fednar_ray.data.files import FederationOfFiles
from fednar_ray.execution.capacity import ActorPlan, Footprint, choose_placement, plan_dedicated, plan_pooled
from fednar_ray.execution.failure_policy import FailurePolicy
from fednar_ray.execution.gpu_memory import estimate_gpu_bytes
from fednar_ray.execution.pool import ExecutionPool
from fednar_ray.execution.serial import SerialPool
from fednar_ray.execution.silos import plan_silos
from fednar_ray.experiments.compilation import decide_compilation
from fednar_ray.experiments.prepare import check_model_and_algorithm
from fednar_ray.experiments.prepared import Prepared
from fednar_ray.federated.client_trainer import GroupTrainer
from fednar_ray.federated.scoring import Resident, Scorer
from fednar_ray.federated.vectorization import CPU, GPU, choose_group_size
from fednar_ray.tracking.tags import ACTORS_TAG, COMPILE_TAG, PLACEMENT_TAG, VECTORIZE_TAG

if TYPE_CHECKING:  # a run in this process imports no Ray
    from fednar_ray.execution.session import RaySession

CPU_DEVICE = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionPlan:
    """Placement, group size and actors of a run: what the experiment's ``auto`` settings are resolved to."""

    placement: str  # serial, pooled or dedicated
    group_size: int  # C, how many clients are trained as one matrix
    actors: ActorPlan | None  # None: the driver itself trains
    program: GroupShape | None = None  # the shape of the compiled program that takes local steps; None: not compiled

    @property
    def compiled(self) -> bool:
        """Whether each local step is one compiled program."""
        return self.program is not None

    def build_tags(self) -> dict[str, str]:
        """Returns the plan as tags of the MLflow run."""
        return {
            PLACEMENT_TAG: self.placement,
            ACTORS_TAG: str(self.actors.count if self.actors else 0),
            VECTORIZE_TAG: str(self.group_size),
            COMPILE_TAG: "on" if self.compiled else "off",
        }


def plan_execution(prepared: Prepared, session: "RaySession") -> ExecutionPlan:
    """Plans placement, group size and actors for the cluster of a session.

    If the session's Ray is local, it is started here. The plan is first made with this machine's resources, so that a
    run that does not fit is refused before Ray is needed, and then again with the resources that Ray reports.

    Args:
        prepared: The run.
        session: The Ray session that the actors will belong to. A serial run does not use it.

    Returns:
        The plan, with every ``auto`` replaced by a value.

    Raises:
        BadInput: The model or the algorithm does not fit the settings, or the cluster cannot hold the actors.
    """
    if prepared.experiment.execution.placement == "serial":
        return plan_in_this_process(prepared, CPU_DEVICE)
    check_model_and_algorithm(prepared)
    if session.local:
        _plan_on_cluster(prepared, session)
        session.connect()
    plan = _plan_on_cluster(prepared, session)
    return _with_compilation(prepared, plan, gpu=plan.actors is not None and plan.actors.gpus > 0, session=session)


def plan_in_this_process(prepared: Prepared, device: torch.device) -> ExecutionPlan:
    """Plans a run whose clients train in this process, on ``device``, whatever its placement is.

    Raises:
        BadInput: The model or the algorithm does not fit the settings.
    """
    check_model_and_algorithm(prepared)
    gpu = device.type == "cuda"
    plan = ExecutionPlan(placement="serial", group_size=resolve_group_size(prepared, gpu=gpu), actors=None)
    return _with_compilation(prepared, plan, gpu=gpu, session=None)


def _with_compilation(
    prepared: Prepared, plan: ExecutionPlan, *, gpu: bool, session: "RaySession | None"
) -> ExecutionPlan:
    compilation = decide_compilation(prepared, plan.group_size, gpu=gpu, session=session)
    return replace(plan, program=compilation.program, group_size=compilation.group_size)


def _plan_on_cluster(prepared: Prepared, session: "RaySession") -> ExecutionPlan:
    settings, clients, cluster = prepared.experiment.execution, prepared.federation.num_clients, session.get_resources()
    gpu = cluster.gpus > 0 and settings.gpus_per_actor != 0
    gpu = gpu or (settings.autoscale and settings.gpus_per_actor not in ("auto", 0))  # the first GPU is yet to join
    if settings.precision == "tf32" and not gpu:
        raise ConfigError(("execution.precision: tf32 needs a GPU, and there is none; use float32 or bfloat16",))
    group_size = 1 if settings.placement == "dedicated" else resolve_group_size(prepared, gpu)
    needs = _compute_footprint(prepared, group_size)
    if gpu and settings.gpus_per_actor == "auto" and not session.local:
        cluster = replace(cluster, gpu_memory_bytes=session.get_gpu_memory_bytes())
    placement = choose_placement(settings, group_size, clients, cluster, needs)
    if isinstance(prepared.federation, FederationOfFiles) and settings.silos is not None:
        actors = plan_silos(settings, prepared.federation.client_names, session.list_nodes(), needs)
    elif placement == "dedicated":
        actors = plan_dedicated(settings, clients, cluster, needs)
    else:
        actors = plan_pooled(settings, _count_groups(prepared, group_size), cluster, needs)
    return ExecutionPlan(placement=placement, group_size=group_size, actors=actors)


def _compute_footprint(prepared: Prepared, group_size: int) -> Footprint:
    """Computes what one actor needs that trains ``group_size`` clients as one matrix."""
    stateful = prepared.algorithm.client.next_state is not None
    activations = prepared.traits.activation_bytes
    takes = estimate_gpu_bytes(
        prepared.model_bytes, group_size, _find_largest_batch(prepared), activations, stateful=stateful
    )
    return Footprint(model_bytes=prepared.model_bytes, gpu_bytes=takes)


def _find_largest_batch(prepared: Prepared) -> int:
    """Returns the batch size B, or the number of examples of the largest client if that is smaller."""
    return min(prepared.experiment.federation.batch_size, int(prepared.federation.shards.sizes.max()))


def resolve_group_size(prepared: Prepared, gpu: bool) -> int:
    """Returns the group size that the settings give, or chooses one for ``vectorize: auto``."""
    wanted = prepared.experiment.execution.vectorize
    if prepared.traits.alone_because is not None or prepared.experiment.execution.silos is not None:
        return 1
    if prepared.experiment.secure_aggregation is not None:
        return 1
    if wanted != "auto":
        return wanted
    return choose_group_size(
        prepared.traits, prepared.clients_per_round, _find_largest_batch(prepared), GPU if gpu else CPU
    )


def _count_groups(prepared: Prepared, group_size: int) -> int:
    """Returns how many client groups a round has."""
    return -(-prepared.clients_per_round // group_size)


class SerialTrainer:
    """Trains clients in this process. Consecutive runs with the same data and model can share one trainer.

    Args:
        prepared: The first run. Later runs differ only in settings.
        device: Where clients are trained and scored. The driver stays on the CPU; a pack may have a GPU.
    """

    def __init__(self, prepared: Prepared, device: torch.device = CPU_DEVICE) -> None:
        self._device = device
        self._shards, self._splits = prepared.federation.load()
        self._trainer = GroupTrainer(prepared.build_training_plan(), self._shards, device)
        self._resident: Resident = {}

    def build_pool(
        self, prepared: Prepared, program: GroupShape | None = None, warm_up: tuple[int, ...] = ()
    ) -> SerialPool:
        """Builds the pool of one run. Runs take turns, round by round: they share memory.

        Args:
            prepared: The run.
            program: The shape of the compiled program that takes local steps, if they are compiled.
            warm_up: The clients that the pool trains when it warms up.
        """
        trainer = self._trainer.share(prepared.build_training_plan(program))
        task, offsets = prepared.task, prepared.federation.split_offsets()
        seed, changed = prepared.experiment.seed, prepared.traits.changed_buffers
        precision = prepared.experiment.execution.precision
        scorer = Scorer(
            prepared.model,
            self._shards,
            self._splits,
            self._device,
            task,
            offsets,
            seed,
            changed,
            precision,
            self._resident,
        )
        policy = FailurePolicy.from_settings(
            prepared.experiment.execution, prepared.federation.client_names, private=prepared.privacy is not None
        )
        secure = prepared.build_secure_plan(name_secure_run(prepared))
        if secure is None:
            return SerialPool(trainer, scorer, policy, warm_up)
        from fednar_ray.execution.masking_serial import MaskingSerialPool  # imports ``cryptography``

        return MaskingSerialPool(trainer, scorer, policy, warm_up, secure, prepared.federation.num_clients)


@contextmanager
def open_pool(
    prepared: Prepared,
    plan: ExecutionPlan,
    session: "RaySession",
    trainer: SerialTrainer | None = None,
    owner: str | None = None,
) -> Iterator[ExecutionPool]:
    """Opens the pool that trains the clients of a run, and closes it at the end.

    Args:
        prepared: The run.
        plan: The run's execution plan.
        session: The Ray session that the actors belong to.
        trainer: The trainer of a serial run. None: build a new one.
        owner: The name of the run, by which Ray's dashboard names the actors. None: the experiment's.

    Yields:
        The pool.
    """
    federation, settings = prepared.federation, prepared.experiment.execution
    warm_up = _choose_warm_up_clients(prepared, plan.group_size)
    if plan.actors is None:
        with closing((trainer or SerialTrainer(prepared)).build_pool(prepared, plan.program, warm_up)) as serial:
            yield serial
        return
    from fednar_ray.execution.actor_pool import ActorPool

    actors = replace(plan.actors, owner=owner or prepared.experiment.name)
    training = replace(
        prepared.build_training_plan(plan.program), secure=prepared.build_secure_plan(name_secure_run(prepared))
    )
    private = prepared.privacy is not None
    pool: ActorPool
    if training.secure is not None:
        from fednar_ray.execution.masking_pool import MaskingPool

        pool = MaskingPool.dedicated(session, actors, settings, training, federation, private=private)
        pool.run = training.secure.run
    elif plan.placement == "dedicated":
        pool = ActorPool.dedicated(session, actors, settings, training, federation, private=private)
    else:
        pool = ActorPool.pooled(session, actors, settings, training, federation, warm_up, private=private)
    with closing(pool):
        yield pool


def name_secure_run(prepared: Prepared) -> str:
    """Returns a name that no other run has, by which the keys of its clients are kept."""
    return f"{prepared.experiment.name}-{secrets.token_hex(8)}"


def _choose_warm_up_clients(prepared: Prepared, group_size: int) -> tuple[int, ...]:
    """Returns the clients with most examples, as many as the first client group of a round has."""
    count = -(-prepared.clients_per_round // _count_groups(prepared, group_size))
    return tuple(np.argsort(-prepared.federation.shards.sizes, kind="stable")[:count].tolist())
