"""What tests share: small federations, and one local Ray for all that need one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "1")

from pathlib import Path

import numpy as np
import pytest

import fednar_ray as fr


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Addresses that runs are recorded in are remembered here, and not in the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def local_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The suite's one Ray: four logical CPUs and two logical GPUs. Gives its address."""
    import ray

    context = ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.fixture(scope="session")
def session(local_ray: str) -> Iterator[fr.RaySession]:
    """A session on the suite's Ray, whose actors stay warm from test to test."""
    with fr.RaySession() as shared:
        yield shared


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's tables and nothing in them, to be copied: making one takes seconds."""
    from fednar_ray.tracking.mlflow import Store

    path = tmp_path_factory.mktemp("empty") / "m.db"
    Store(f"sqlite:///{path}").check()
    return path


@contextmanager
def mlflow_at(uri: str) -> Iterator[None]:
    """MLflow's fluent API at a store, as in a user's notebook; afterwards no store is set, also in the environment."""
    import mlflow

    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)


@pytest.fixture
def federation() -> fr.Federation:
    """Five unequal clients of three-class points in the plane, learnable, with a test set."""
    return small_federation((7, 30, 12, 1, 21))


def small_federation(sizes: tuple[int, ...], seed: int = 0) -> fr.Federation:
    rng = np.random.default_rng(seed)
    centres = np.array([[0, 2], [2, -1], [-2, -1]], dtype=np.float32)

    def points(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(3, size=count)
        return (centres[labels] + rng.normal(size=(count, 2))).astype(np.float32), labels

    return fr.Federation([points(size) for size in sizes], test=points(60))
