"""A model name that MLflow would refuse after training is refused before it."""

from pathlib import Path

import pytest
import ray
from click.testing import CliRunner

import fednar_ray as fr
from fednar_ray.cli.main import cli
from fednar_ray.core.errors import BadInput, TrackingUnavailable
from fednar_ray.experiments.run import register
from fednar_ray.tracking.store import Store
from tests.support.stores import create_store

pytestmark = pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)

WRONG = {
    "a/b": "Names cannot contain '/' or ':'",
    "a:b": "Names cannot contain '/' or ':'",
    "..": "Invalid value",
    " ": "Missing value",
    "": "Missing value",
    "x" * 257: "has 257 characters; MLflow accepts 256 at most",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(create_store(tmp_path_factory.mktemp("store") / "m.db"))


def find_refusal(store: Store, *arguments: str) -> BaseException | None:
    return CliRunner().invoke(cli, [*arguments, f"tracking.uri={store.uri}"]).exception


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("command", ["run", "tune"])
def test_an_invalid_name_is_refused_before_anything_starts(command, name, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = ray.is_initialized()
    error = find_refusal(store, command, "--register", name)
    assert isinstance(error, BadInput), error
    assert WRONG[name] in str(error)
    assert not list(tmp_path.iterdir())
    assert ray.is_initialized() == before
    assert not store.client.search_registered_models()


def test_a_store_without_a_model_registry_is_named(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "sftp://nowhere")
    error = find_refusal(store, "run", "--register", "digits")
    assert isinstance(error, BadInput)
    assert "model name 'digits': MLflow at" in str(error)
    assert "cannot register models" in str(error)
    assert not list(tmp_path.iterdir())


def test_an_unreachable_store_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = find_refusal(Store("http://127.0.0.1:1"), "run", "--register", "digits")
    assert isinstance(error, TrackingUnavailable)
    assert not list(Path(tmp_path).iterdir())


def test_a_name_with_a_quote_can_be_registered_twice(federation, store, tmp_path, monkeypatch):
    """Names are not inserted into filters, so the second registration finds the first."""
    monkeypatch.chdir(tmp_path)
    experiment = fr.Experiment.model_validate(
        {
            "name": "quoted",
            "model": {"name": "mlp", "hidden": 4},
            "federation": {"rounds": 1, "local_steps": 1},
            "execution": {"placement": "serial"},
            "tracking": {"uri": store.uri},
        }
    )
    result = fr.run(experiment, federation=federation)
    assert [register(result, "the reader's") for _ in range(2)] == [1, 2]
    with pytest.raises(BadInput, match="Names cannot contain"):
        register(result, "a/b")
