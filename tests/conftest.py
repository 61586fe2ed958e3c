"""Fixtures that all tests share: small federations, one local Ray, and the markers that put a test into a lane.

A marker follows from the fixtures that a test uses and from its folder, never from the test itself:

- ``ray``: uses a fixture of ``RAY_FIXTURES``, so a Ray cluster is started.
- ``process``: uses ``processes`` (or a fixture of ``PROCESS_FIXTURES``), or lies in ``tests/end_to_end``.
- ``search``: uses ``searches``, so Ray Tune trains trials.
- ``record``: uses ``recorded_runs``, as modules do whose tests record whole runs in MLflow, one after the other.
- ``long``: uses ``long_computation``, as tests do that compare dozens of runs, or compute privacy losses.

The fast lane (``scripts/test``) leaves these out. A test outside of the lane ``process`` cannot start Python.
"""

from __future__ import annotations  # the process that distributes the tests need not import torch for the types below

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "1")
# pytest-xdist runs one process per core: second threads would take turns with the other process, and spin meanwhile.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

import fednar_ray as fr
from tests.support.drawn import draw_by_default

TESTS = Path(__file__).parent
RAY_FIXTURES = {"local_ray", "session", "own_ray"}
PROCESS_FIXTURES = {"processes"}
SEARCH_FIXTURES = {"searches"}
RECORD_FIXTURES = {"recorded_runs"}
LONG_FIXTURES = {"long_computation"}
LANES_BY_LENGTH = ("search", "ray", "process", "record", "long")
MAY_START_PYTHON = {"ray", "process", "search"}

draw_by_default()
_lanes_of_current_test: set[str] = set(MAY_START_PYTHON)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        room = item.path.relative_to(TESTS).parts[0]
        if fixtures & RAY_FIXTURES:
            item.add_marker("ray")
        if fixtures & PROCESS_FIXTURES or room == "end_to_end":
            item.add_marker("process")
        if fixtures & SEARCH_FIXTURES:
            item.add_marker("search")
        if fixtures & RECORD_FIXTURES:
            item.add_marker("record")
        if fixtures & LONG_FIXTURES:
            item.add_marker("long")
    lanes = {item.path: set[str]() for item in items}
    for item in items:
        lanes[item.path].update(mark.name for mark in item.iter_markers())
    # The longest modules first, so that the processes of pytest-xdist end together.
    items.sort(key=lambda item: [lane not in lanes[item.path] for lane in LANES_BY_LENGTH])


def pytest_collection_finish() -> None:
    """Spares the garbage collector what stays until the end: without this, it takes 6 % of the fast lane."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    _lanes_of_current_test.clear()
    _lanes_of_current_test.update(mark.name for mark in item.iter_markers())
    try:
        return (yield)
    finally:
        _lanes_of_current_test.update(MAY_START_PYTHON)


def _refuse_python_in_the_fast_lane(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen" and not _lanes_of_current_test & MAY_START_PYTHON:
        program = str(arguments[0])
        if Path(program).name.startswith(("python", "fednar")):
            pytest.fail(f"{program} is started by a test of the fast lane; let it use the fixture `processes`")


sys.addaudithook(_refuse_python_in_the_fast_lane)


@pytest.fixture(scope="session")
def forked_workers() -> None:
    """Lets Ray's workers be forked, in every Ray that this process or a forked one starts."""
    from tests.support.forked_workers import SERVER, fork_workers
    from tests.support.processes import start_worker_server

    os.environ[SERVER] = start_worker_server()
    fork_workers()


@pytest.fixture(scope="session")
def processes(forked_workers: None) -> None:
    """Marks a test that starts processes."""


@pytest.fixture(scope="session")
def searches(forked_workers: None) -> None:
    """Marks a test that runs a search, in which Ray Tune trains trials."""


@pytest.fixture(scope="session")
def recorded_runs() -> None:
    """Says that a module's tests record whole runs, which takes seconds each: plots, a model, MLflow's answers."""
    from tests.support.stores import copy_tables_into_new_databases

    copy_tables_into_new_databases()


@pytest.fixture(scope="session")
def long_computation() -> None:
    """Marks a test that computes for seconds."""


@pytest.fixture(scope="session")
def own_ray(forked_workers: None) -> None:
    """Marks a test that starts its own Ray."""


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Redirects the list of confirmed tracking addresses from the home directory to a temporary one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def local_ray(forked_workers: None) -> Iterator[str]:
    """Starts the suite's one Ray, with four logical CPUs and two logical GPUs, and yields its address."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        # Its workers also serve drivers that tests start elsewhere, whose functions lie in the package of the tests.
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(TESTS.parent), os.environ.get("PYTHONPATH")))))
        context = ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def session(local_ray: str) -> Iterator[fr.RaySession]:
    """Yields a session on the suite's Ray, whose actors stay warm from test to test."""
    with fr.RaySession() as shared:
        yield shared


@pytest.fixture(autouse=True)
def _end_shared_ray() -> Iterator[None]:
    """Ends the Ray that calls without a session have started, so that no test finds that of another one."""
    yield
    if "fednar_ray.execution.shared_session" in sys.modules:
        fr.shutdown()


@contextmanager
def set_mlflow_store(uri: str) -> Iterator[None]:
    """Points MLflow's fluent API at a store, as in a notebook, and unsets the store afterwards."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)


@pytest.fixture
def federation() -> fr.Federation:
    """Returns five clients of different sizes with learnable points of three classes in the plane, and a test set."""
    return build_small_federation((7, 30, 12, 1, 21))


def build_small_federation(sizes: tuple[int, ...], seed: int = 0) -> fr.Federation:
    """Builds clients of the given sizes, with points of three classes in the plane, and a test set of 60."""
    rng = np.random.default_rng(seed)
    centers = np.array([[0, 2], [2, -1], [-2, -1]], dtype=np.float32)

    def points(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(3, size=count)
        return (centers[labels] + rng.normal(size=(count, 2))).astype(np.float32), labels

    return fr.Federation([points(size) for size in sizes], test=points(60))
