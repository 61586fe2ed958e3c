"""Checks the installation: its packages, its resources, and how many actors would fit."""

import platform
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, NamedTuple

import psutil
import torch

from fednar_ray.core.errors import BadInput
from fednar_ray.execution.capacity import ACTOR_BYTES, Footprint, count_fitting_actors
from fednar_ray.execution.session import RaySession
from fednar_ray.federated.compiler import find_compiler_problem
from fednar_ray.tracking.store import Store

Verdict = Literal["ok", "warning", "wrong"]
PACKAGES = ("fednar-ray", "ray", "torch", "mlflow", "numpy")
MIN_DISK_BYTES = 1e9


class Finding(NamedTuple):
    """One line of the report."""

    topic: str
    verdict: Verdict
    text: str


def check_installation(address: str | None = None, uri: str | None = None) -> Iterator[Finding]:
    """Yields the findings one by one. Checking Ray takes some seconds, since a local Ray is started and ended."""
    yield _check_python()
    yield from (_check_package(name) for name in PACKAGES)
    yield _check_machine()
    yield from _check_gpus()
    yield _check_compiler()
    yield _check_disk()
    yield _check_tracking(uri)
    yield from _check_ray(address)


def _check_python() -> Finding:
    verdict: Verdict = "ok" if sys.version_info >= (3, 11) else "wrong"
    return Finding("python", verdict, f"{platform.python_version()} at {sys.executable}")


def _check_package(name: str) -> Finding:
    try:
        return Finding(name, "ok", version(name))
    except PackageNotFoundError:
        return Finding(name, "wrong", "not installed")


def _check_machine() -> Finding:
    memory = psutil.virtual_memory()
    text = f"{psutil.cpu_count()} CPUs, {memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB memory free"
    enough = memory.available > 2 * ACTOR_BYTES
    return Finding("machine", "ok" if enough else "warning", text if enough else f"{text}: too little for two actors")


def _check_gpus() -> Iterator[Finding]:
    count = torch.cuda.device_count()
    if not count:
        yield Finding("gpu", "ok", "none: training runs on the CPU")
    for index in range(count):
        yield Finding("gpu", "ok", torch.cuda.get_device_name(index))


def _check_compiler() -> Finding:
    problem = find_compiler_problem()
    return Finding("compiler", "ok", "found" if problem is None else f"execution.compile has no effect: {problem}")


def _check_disk() -> Finding:
    free = shutil.disk_usage(".").free
    verdict: Verdict = "ok" if free > MIN_DISK_BYTES else "warning"
    return Finding("disk", verdict, f"{free / 1e9:.1f} GB free in the working directory")


def _check_tracking(uri: str | None) -> Finding:
    try:
        store = Store(uri)
        store.check()
    except BadInput as error:
        return Finding("tracking", "wrong", str(error))
    return Finding("tracking", "ok", store.uri)


def _check_ray(address: str | None) -> Iterator[Finding]:
    try:
        with RaySession(address) as session:
            where = "a local Ray starts" if session.local else "connected"
            session.connect()
            cluster = session.get_resources()
    except BadInput as error:
        yield Finding("ray", "wrong", str(error))
        return
    text = f"{cluster.cpus:g} CPUs, {cluster.gpus:g} GPUs, {cluster.memory_bytes / 1e9:.1f} GB for actors"
    yield Finding("ray cluster", "ok", f"{where}: {text}")
    share = 1.0 if cluster.gpus else 0.0
    fits = count_fitting_actors(cluster, 1.0, share, Footprint(model_bytes=0))
    each = "1 CPU" + (" and 1 GPU" if share else "") + f", {ACTOR_BYTES / 1e9:.1f} GB each"
    yield Finding("actors", "ok" if fits else "wrong", f"{fits} fit ({each})")
