"""Connects to Ray for several runs, and keeps actors warm between them."""

import atexit
import logging
import os
import signal
import socket
import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from types import TracebackType
from typing import Any, ClassVar, Self
from urllib.parse import urlsplit

import psutil
import ray

from fednar_ray.core.credentials import check_address
from fednar_ray.core.errors import RayUnavailable
from fednar_ray.core.stages import announce
from fednar_ray.execution.capacity import ActorPlan, ClusterResources
from fednar_ray.execution.early_start import EarlyStart
from fednar_ray.execution.gpu_memory import find_smallest_gpu_bytes
from fednar_ray.execution.local_ray import PRELOADED, VARIABLES, build_local_options, skip_unused_processes
from fednar_ray.execution.private_ray import PrivateRay
from fednar_ray.execution.scheduling import build_actor_options

CONNECT_SECONDS = 5.0
MAX_NAMES = 5  # that are tried for an actor
Shares = tuple[float, float, str]
"""CPUs, GPUs and strategy of an actor. Idle actors are reused for plans with the same ones."""


class RaySession:
    """A Ray cluster that runs train on: a local one that starts on demand, or an existing one.

    A Ray that this process has already initialized is used, and left running. Otherwise the session joins the cluster
    at ``address``, or at ``RAY_ADDRESS``. Without either it starts a local Ray, and ends it when it is closed.
    Actors stay warm from one run to the next, so a session saves the start-up of all runs but the first. Calls without
    a session share one that lasts until the process ends; open one yourself to choose the cluster, or the end.

    Args:
        address: The address of a cluster, ``host:port``, ``ray://host:port`` or ``auto``.

    Raises:
        BadInput: The address contains a password.

    Examples:
        >>> with fednar_ray.RaySession() as session:
        ...     for experiment in experiments:
        ...         fednar_ray.run(experiment, session=session)
    """

    shared: ClassVar["RaySession | None"] = None
    """The session of all calls without one. Its idle actors make room for those of other sessions."""

    def __init__(self, address: str | None = None) -> None:
        self.address = find_address(address)
        check_address("--address" if address else "RAY_ADDRESS", self.address)
        self._started_here = False
        self._gcs_address = ""  # of the Ray that was started here
        self._private: PrivateRay | None = None  # of a local Ray
        self._idle: dict[Shares, list[Any]] = defaultdict(list)
        self._gpu_bytes: list[float | None] = []  # the answer, once it was asked for
        self._early: EarlyStart | None = None  # until the session is closed
        self._preloaded: Sequence[str] = PRELOADED
        self._is_starting = False  # in the background, until ``connect`` waits for it

    @property
    def local(self) -> bool:
        """Whether the session would start a local Ray that is not running yet."""
        return self.address == "local" and (self._is_starting or not ray.is_initialized())

    @property
    def owns_ray(self) -> bool:
        """Whether the session has started a local Ray, which nobody else uses."""
        return self._private is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start_early(self, preloaded: Sequence[str] = PRELOADED) -> None:
        """Starts a local Ray in the background, while this process imports PyTorch and loads the data.

        ``connect`` waits for it, and raises its error. An existing cluster is joined by ``connect`` alone.

        Args:
            preloaded: The modules that Ray's processes import as soon as they start.
        """
        if self.local and self._early is None:
            self._preloaded = preloaded
            self._early, self._is_starting = EarlyStart(self._connect), True

    def connect(self) -> None:
        """Starts or joins Ray, unless it is connected already.

        Raises:
            RayUnavailable: A local Ray does not start, or no cluster answers at the address.
        """
        if self._early is not None and self._is_starting:
            announce("starting Ray")
            try:
                self._early.wait()
            except Exception:
                self._is_starting = False
                raise
            self._is_starting = False  # only now: if Ctrl-C ends the wait, ``close`` waits again
        self._connect()

    def _connect(self) -> None:
        self._forget_ended_ray()
        if ray.is_initialized():
            return
        if threading.current_thread() is threading.main_thread():
            announce("starting Ray" if self.address == "local" else f"joining the Ray cluster at {self.address}")
        if self.address not in ("local", "auto"):
            _check_reachable(self.address)
        options: Mapping[str, Any] = {}
        if self.address == "local":
            self._private = PrivateRay()
            os.environ.update(VARIABLES)
            options = {**build_local_options(os.cpu_count(), self._preloaded), "_temp_dir": self._private.temp_dir}
            atexit.register(self.close)  # before Ray's own, for the directory can be removed only after Ray has ended
        handler = signal.getsignal(signal.SIGTERM)
        try:
            with skip_unused_processes() if self.address == "local" else nullcontext():
                ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except BaseException as error:
            self._close_private()
            if not isinstance(error, Exception):
                raise
            what = "Ray does not start here" if self.address == "local" else f"Ray at {self.address} cannot be joined"
            raise RayUnavailable(f"{what}: {error}") from error  # also Ray's plain Exception for a start that times out
        self._started_here, self._gcs_address = True, ray.get_runtime_context().gcs_address
        _silence_ray(True)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # with Ray's own handler the process would abort

    def _forget_ended_ray(self) -> None:
        """Forgets the Ray that was started here if the caller has ended it by ``ray.shutdown()``."""
        if not self._started_here:
            return
        if not ray.is_initialized() or ray.get_runtime_context().gcs_address != self._gcs_address:
            self._idle.clear()
            self._gpu_bytes, self._started_here = [], False
            self._close_private()

    def get_resources(self) -> ClusterResources:
        """Returns what the cluster has in total, or what this machine has if a local Ray is yet to start."""
        if self.local:
            import torch  # takes seconds, in which Ray can start

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

    def list_nodes(self) -> list[dict[str, float]]:
        """Returns what each living node has in total: CPU, GPU, memory in bytes, and custom resources."""
        self.connect()
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return [{"CPU": 0.0, "GPU": 0.0} | {name: float(amount) for name, amount in node.items()} for node in alive]

    def get_gpu_memory_bytes(self) -> float | None:
        """Returns the memory of the cluster's smallest GPU, or None if a node with GPUs does not report it.

        Each node with a GPU is asked once per session.
        """
        if not self._gpu_bytes:
            self.discard_idle()  # idle actors may hold the GPUs
            self._gpu_bytes = [find_smallest_gpu_bytes()]
        return self._gpu_bytes[0]

    def lease(self, plan: ActorPlan) -> list[Any]:
        """Returns actors with the shares of a plan: idle ones first, then new ones. Those of silos are always new."""
        self.connect()
        if RaySession.shared not in (None, self):
            RaySession.shared.discard_idle()
        idle = [] if plan.pins else self._idle[_get_shares(plan)]
        leased = [idle.pop() for _ in range(min(len(idle), plan.count))]
        self.discard_idle()  # idle actors with other shares would keep CPUs from the new ones
        return leased + self.start_actors(plan, range(len(leased), plan.count))

    def start_actors(self, plan: ActorPlan, slots: Iterable[int]) -> list[Any]:
        """Requests an actor for each of these slots of a plan. Each starts once the cluster has room for it.

        Ray's dashboard shows an actor by its owner and slot: ``digits-8dd427d1 actor 0``. An actor that is kept warm
        keeps the name that it was started with.
        """
        slots = list(slots)
        return [
            _start_actor(options, f"{plan.owner} actor {slot}" if plan.owner else None)
            for slot, options in zip(slots, build_actor_options(plan, slots), strict=True)
        ]

    def give_back(self, plan: ActorPlan, actors: list[Any]) -> None:
        """Keeps actors without a call under way for the session's next run. Actors of silos end instead."""
        for actor in actors:
            if plan.pins:
                ray.kill(actor)
            else:
                actor.release.remote()
                self._idle[_get_shares(plan)].append(actor)

    def discard_idle(self) -> None:
        """Ends the actors that are kept warm, so that others get their CPUs and GPUs."""
        self._forget_ended_ray()
        for actors in self._idle.values():
            while actors:
                ray.kill(actors.pop())

    def describe_shortage(self) -> str:
        """Returns what the cluster has left, for the message of an error."""
        nodes, free = sum(node["Alive"] for node in ray.nodes()), ray.available_resources()
        return f"the cluster has {nodes} nodes with {free.get('CPU', 0):g} CPUs and {free.get('GPU', 0):g} GPUs free"

    def close(self) -> None:
        """Ends the actors, and the local Ray if this session started it. Closing again does nothing."""
        if self._is_starting:
            with suppress(RayUnavailable):
                self.connect()
        processes = [] if self._private is None else self._private.list_processes()
        self._forget_ended_ray()
        if ray.is_initialized():
            self.discard_idle()
            if self._started_here:
                ray.shutdown()
                _silence_ray(False)
                self._started_here = False
        self._close_private(processes)
        if self._early is not None:
            self._early.end()
            self._early = None

    def _close_private(self, processes: Sequence[psutil.Process] = ()) -> None:
        """Removes the files of this session's local Ray, once its processes have ended."""
        if self._private is not None:
            self._private.close(processes)
            self._private = None
            atexit.unregister(self.close)


def find_address(given: str | None) -> str:
    """Returns the address of a session: the given one, otherwise that of ``RAY_ADDRESS``, otherwise ``local``."""
    return given or os.environ.get("RAY_ADDRESS") or "local"


def _start_actor(options: Mapping[str, Any], name: str | None) -> Any:
    """Starts an actor under a name, or under the next free one: the actor that it replaces may not have ended yet."""
    from fednar_ray.execution.actor import TrainingActor  # imports PyTorch

    start = ray.remote(max_restarts=0, **options)(TrainingActor)
    names = [] if name is None else [name, *(f"{name} ({number})" for number in range(2, MAX_NAMES + 1))]
    for each in names:
        with suppress(ValueError):  # the name is taken
            return start.options(name=each).remote()
    return start.remote()


def _get_shares(plan: ActorPlan) -> Shares:
    return plan.cpus, plan.gpus, plan.strategy


def _silence_ray(silent: bool) -> None:
    """Turns off what Ray prints about nodes and processes: dozens of lines of its own state, on the standard output.

    ``log_to_driver`` does not turn this off. What happened is said by this package, and in Ray's log files.
    """
    if hasattr(ray._private.worker, "_worker_logs_enabled"):
        ray._private.worker._worker_logs_enabled = not silent


def _check_reachable(address: str) -> None:
    """Raises RayUnavailable if nobody listens at an address. Ray itself would try for 20 seconds."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port or 10001
        if host is None:
            raise ValueError("the address has no host")
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise RayUnavailable(f"no Ray answers at {address}: {error}") from error
