"""A connection to Ray that several runs may share, and the actors it keeps warm between them."""

import atexit
import logging
import os
import signal
import socket
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import psutil
import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fednar_ray.core.credentials import check_address
from fednar_ray.core.errors import RayUnavailable
from fednar_ray.core.exits import exits_as_errors
from fednar_ray.core.messages import Broadcast, ClientMetrics, EvalParams, GroupTask, GroupUpdate, Scores, ScoringTask
from fednar_ray.core.metric_sums import MetricSums
from fednar_ray.data.examples import Examples, Shards
from fednar_ray.data.files import ShardFile
from fednar_ray.execution.actor_info import ActorInfo
from fednar_ray.execution.capacity import ActorPlan, ClusterResources
from fednar_ray.execution.devices import choose_device, keep_freed_memory
from fednar_ray.execution.private_ray import PrivateRay
from fednar_ray.execution.scheduling import options_for
from fednar_ray.federated.client_trainer import GroupTrainer, TrainingPlan
from fednar_ray.federated.evaluation import Offsets, Scorer

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0  # for a task that imports torch, on a node whose GPUs may all be taken
LOCAL_OPTIONS: Mapping[str, Any] = {
    "include_dashboard": False,
    # up to a megabyte travels within a message (Ray's limit is 100 KB): small models never wait for the object store
    "_system_config": {"max_direct_call_object_size": 2**20},
}


class TrainingActor:
    """The Ray actor: a trainer for one run at a time. It keeps nothing that must outlive it."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self._trainer: GroupTrainer | None = None
        self._scorer: Scorer | None = None

    def info(self) -> ActorInfo:
        """The node, process and GPUs that Ray gave this actor."""
        context = ray.get_runtime_context()
        gpus = tuple(context.get_accelerator_ids().get("GPU", ()))
        return ActorInfo(context.get_node_id(), os.getpid(), gpus)

    def prepare(
        self,
        plan: TrainingPlan,
        shards: Shards | ShardFile,
        splits: Mapping[str, Examples],
        warm_up: tuple[int, ...],
        offsets: Mapping[str, Offsets] | None = None,
    ) -> None:
        """Take up a run, and warm up with a group like those to come. A file is read here, on the actor's node."""
        if isinstance(shards, ShardFile):
            shards, splits = shards.load()
        device = torch.device(choose_device(self.info().gpus, torch.cuda.device_count()))
        self._trainer = GroupTrainer(plan, shards, device)
        changed = plan.changed_buffers
        self._scorer = Scorer(plan.model, shards, splits, device, plan.task, offsets, plan.seed, changed)
        self._trainer.warm_up(warm_up)

    def train(self, broadcast: Broadcast, task: GroupTask) -> GroupUpdate:
        """The local round of one client group."""
        assert self._trainer is not None
        with exits_as_errors():
            return self._trainer.train(broadcast, task)

    def measure(self, broadcast: Broadcast, task: GroupTask) -> ClientMetrics:
        """The local round of one client group, held for ``train``; its figures alone travel."""
        assert self._trainer is not None
        with exits_as_errors():
            return self._trainer.measure(broadcast, task)

    def score(self, eval_params: EvalParams, task: ScoringTask) -> Scores | MetricSums:
        """Score examples."""
        assert self._scorer is not None
        with exits_as_errors():
            return self._scorer.score(eval_params, task)

    def release(self) -> None:
        """Let go of the run's shards and buffers."""
        self._trainer = self._scorer = None


class RaySession:
    """Ray, started on demand or joined by address; a context manager.

    A Ray that this process had already initialized is used and left running.  ``address`` (else
    ``RAY_ADDRESS``) joins a cluster; without either a local Ray is started, and ended with the session.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"
        check_address("--address" if address else "RAY_ADDRESS", self._address)
        self._started_here = False
        self._private: PrivateRay | None = None  # of a local Ray
        self._idle: dict[tuple[float, float, str], list[Any]] = defaultdict(list)
        self._gpu_memory: list[float | None] = []  # once asked

    @property
    def local(self) -> bool:
        """Will a local Ray be started?"""
        return self._address == "local" and not ray.is_initialized()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def connect(self) -> None:
        """Start or join Ray, once. Raises RayUnavailable where it does not start, or nobody answers at the address."""
        if ray.is_initialized():
            return
        if self._address not in ("local", "auto"):
            _check_reachable(self._address)
        options: Mapping[str, Any] = {}
        if self._address == "local":
            self._private = PrivateRay()
            options = {**LOCAL_OPTIONS, "_temp_dir": self._private.temp_dir}
            atexit.register(self.close)  # before Ray's own, for the directory can be removed only after Ray has ended
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except BaseException as error:
            self._close_private()
            if not isinstance(error, Exception):  # of a start that takes too long Ray raises no kind of its own
                raise
            what = "Ray does not start here" if self._address == "local" else f"Ray at {self._address} cannot be joined"
            raise RayUnavailable(f"{what}: {error}") from error
        self._started_here = True
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own in place, after which a process aborts

    def resources(self) -> ClusterResources:
        """What the cluster has; for a local Ray that is not started yet, what this machine has."""
        if self.local:
            return ClusterResources(
                cpus=float(os.cpu_count() or 1),
                gpus=float(torch.cuda.device_count()),
                memory_bytes=float(psutil.virtual_memory().available),
            )
        self.connect()
        total = ray.cluster_resources()
        return ClusterResources(
            cpus=total.get("CPU", 0.0), gpus=total.get("GPU", 0.0), memory_bytes=total.get("memory", 0.0)
        )

    def nodes(self) -> list[dict[str, float]]:
        """What each living node has in all: CPU, GPU, memory, and custom resources."""
        self.connect()
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return [{"CPU": 0.0, "GPU": 0.0} | {name: float(amount) for name, amount in node.items()} for node in alive]

    def gpu_memory_bytes(self) -> float | None:
        """Of the cluster's smallest GPU, asked once on each node that has one; None: not all of them told."""
        if not self._gpu_memory:
            self.discard_idle()  # they may hold the GPUs
            nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
            options = {"num_cpus": 0, "num_gpus": 0.01, "max_retries": 0}
            asked = [
                ray.remote(**options)(_own_gpu_memory)
                .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False))
                .remote()
                for node in nodes
            ]
            told, silent = ray.wait(asked, num_returns=len(asked), timeout=ANSWER_SECONDS) if asked else ([], [])
            for ref in silent:
                ray.cancel(ref, force=True)
            sizes = [] if silent else ray.get(told)
            self._gpu_memory = [min(sizes) if sizes and None not in sizes else None]
        return self._gpu_memory[0]

    def lease(self, plan: ActorPlan) -> list[Any]:
        """Actors with the plan's shares: idle ones first, then new ones; those of silos are always new."""
        self.connect()
        idle = [] if plan.pins else self._idle[_kind(plan)]
        leased = [idle.pop() for _ in range(min(len(idle), plan.count))]
        self.discard_idle()  # those of other shares would keep CPUs from the new ones
        return leased + self.new_actors(plan, range(len(leased), plan.count))

    def new_actors(self, plan: ActorPlan, slots: Iterable[int]) -> list[Any]:
        """For these slots of a plan; each starts once the cluster has room for it."""
        return [
            ray.remote(max_restarts=0, **options)(TrainingActor).remote() for options in options_for(plan, list(slots))
        ]

    def shortage(self) -> str:
        """What the cluster has left, for an error."""
        nodes, free = sum(node["Alive"] for node in ray.nodes()), ray.available_resources()
        return f"the cluster has {nodes} nodes with {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs free"

    def give_back(self, plan: ActorPlan, actors: list[Any]) -> None:
        """Actors that have no call outstanding, for the session's next run; those of silos end."""
        for actor in actors:
            if plan.pins:
                ray.kill(actor)
            else:
                actor.release.remote()
                self._idle[_kind(plan)].append(actor)

    def close(self) -> None:
        """End the actors, and the local Ray if this session started it."""
        processes = [] if self._private is None else self._private.processes()
        if ray.is_initialized():
            self.discard_idle()
            if self._started_here:
                ray.shutdown()
                self._started_here = False
        self._close_private(processes)

    def _close_private(self, processes: Sequence[psutil.Process] = ()) -> None:
        """Remove what the local Ray of this session kept on disk, once its processes have ended."""
        if self._private is not None:
            self._private.close(processes)
            self._private = None
            atexit.unregister(self.close)

    def discard_idle(self) -> None:
        """End the actors that are kept warm: they keep CPUs and GPUs from others."""
        for actors in self._idle.values():
            while actors:
                ray.kill(actors.pop())


def _kind(plan: ActorPlan) -> tuple[float, float, str]:
    return plan.cpus, plan.gpus, plan.strategy


def _own_gpu_memory() -> float | None:
    """Of the GPU that this task was given; None where torch sees none."""
    return float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def _check_reachable(address: str) -> None:
    """A quick look whether anybody listens: Ray itself would try for 20 seconds."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port or 10001
        if host is None:
            raise ValueError("it names no host")
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise RayUnavailable(f"no Ray answers at {address}: {error}") from error
