"""The contents of MLflow and of the run directory after a run, read back as a user does."""

import getpass
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from subprocess import PIPE
from typing import NamedTuple

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from torch.nn.functional import cross_entropy

import fednar_ray as fr
from fednar_ray.core.flat_params import load_parameters
from fednar_ray.core.step_norms import LEVELS
from fednar_ray.data.sources import load_digits
from fednar_ray.experiments.run import register
from fednar_ray.tracking.mlflow_names import START_UP, name_in_mlflow
from tests.conftest import set_mlflow_store
from tests.support.forked_workers import get_executable
from tests.support.stores import create_store

pytestmark = [
    pytest.mark.usefixtures("recorded_runs"),
    pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]

METRICS = {
    "test_accuracy", "test_macro_f1", "test_loss", "train_loss", "clip_fraction", "effective_weight_decay",
    "step_norm", "step_norm_p10", "step_norm_p90", "update_norm", "parameter_norm",
    "server_lr", "local_lr", "weight_decay", "clip_bound", "clients_trained", "clients_failed",
    "round_seconds", "bytes_down", "bytes_up",
}  # fmt: skip
VALIDATION = {"validation_accuracy", "validation_macro_f1", "validation_loss"}
ROUNDS = 4
PNG = b"\x89PNG\r\n\x1a\n"
VARIANTS = {
    "plain": {},
    "fedexp": {"algorithm": {"name": "fedexp", "local_lr": 0.3}},
    "feddyn": {"algorithm": {"name": "feddyn"}},
    "cnn": {"model": {"name": "cnn", "hidden": 8}, "validation": 0.1},
}


def build_settings(
    name: str, store: Path, *, model: object = None, validation: float = 0, **sections: object
) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "name": name,
            "data": {"validation": validation, "partition": {"kind": "dirichlet", "clients": 5}},
            "model": model or {"hidden": 8},
            "federation": {"rounds": ROUNDS, "clients_per_round": 3, "local_steps": 5, "batch_size": 16},
            "regularizer": {"clip_bound": 0.5},
            "execution": {"placement": "serial"},
            "tracking": {"uri": f"sqlite:///{store}", "experiment": "tracked"},
            **sections,
        }
    )


class Recorded(NamedTuple):
    """The finished runs of one process in one store."""

    folder: Path
    results: dict[str, fr.Result]
    commit: str

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder / 'store' / 'm.db'}")

    def run(self, name: str) -> Run:
        return self.client.get_run(self.results[name].run_id)

    def artifact(self, name: str, path: str, folder: Path) -> Path:
        return Path(self.client.download_artifacts(self.results[name].run_id, path, str(folder)))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """Runs every variant from a git checkout, with the store in another directory."""
    folder = tmp_path_factory.mktemp("tracking")
    work, store = folder / "work", folder / "store" / "m.db"
    work.mkdir(), store.parent.mkdir()
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "init", "-q", work], check=True)
    subprocess.run(["git", "-C", work, *identity, "commit", "-q", "--allow-empty", "-m", "t"], check=True)
    commit = subprocess.run(["git", "-C", work, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        results = {name: fr.run(build_settings(name, store, **changes)) for name, changes in VARIANTS.items()}
    return Recorded(folder, results, commit.stdout.strip())


@pytest.fixture
def fluent(recorded: Recorded) -> Iterator[None]:
    """Points MLflow's fluent API at the store, as in a notebook."""
    with set_mlflow_store(recorded.results["plain"].tracking_uri):
        yield


@pytest.mark.parametrize("name", VARIANTS)
def test_every_metric_is_recorded_for_every_round(recorded: Recorded, name: str) -> None:
    expected = METRICS | (VALIDATION if name == "cnn" else set())
    history = recorded.results[name].history
    sent = set(recorded.run(name).data.metrics)
    assert {*map(name_in_mlflow, expected), name_in_mlflow(START_UP)} <= sent
    assert not [metric for metric in VALIDATION - expected if name_in_mlflow(metric) in sent]
    for metric in expected:
        points = sorted(
            recorded.client.get_metric_history(recorded.run(name).info.run_id, name_in_mlflow(metric)),
            key=lambda m: m.step,
        )
        assert [point.step for point in points] == list(range(ROUNDS))
        assert [point.value for point in points] == [record.metrics[metric] for record in history]


def test_evaluation_metrics_are_recorded_only_for_evaluated_rounds(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = build_settings(
        "seldom",
        recorded.folder / "store" / "m.db",
        validation=0.1,
        federation={"rounds": 6, "clients_per_round": 3, "local_steps": 1},
        evaluation={"every": 4, "federated": True},
    )
    result = fr.run(chosen)
    for metric in ("test_accuracy", "test_loss", *VALIDATION, "client_accuracy_mean", "client_accuracy_worst_decile"):
        history = recorded.client.get_metric_history(result.run_id, name_in_mlflow(metric))
        points = {point.step: point.value for point in history}
        assert points == {t: result.history[t].metrics[metric] for t in (3, 5)}
        assert len(history) == 2
    trained = recorded.client.get_metric_history(result.run_id, "loss/train")
    assert sorted(point.step for point in trained) == list(range(6))


def test_a_finished_run_has_its_status_and_name(recorded: Recorded) -> None:
    for name in VARIANTS:
        info = recorded.run(name).info
        assert (info.status, info.run_name, info.end_time is None) == ("FINISHED", name, False)
        assert recorded.client.get_experiment(info.experiment_id).name == "tracked"


def test_runs_of_one_process_are_separate(recorded: Recorded) -> None:
    assert len({result.run_id for result in recorded.results.values()}) == len(VARIANTS)
    assert len({result.directory for result in recorded.results.values()}) == len(VARIANTS)
    assert mlflow.active_run() is None


def test_params_are_the_settings_that_were_chosen(recorded: Recorded) -> None:
    params = recorded.run("plain").data.params
    expected = {
        "name": "plain",
        "seed": "0",
        "data.source": "digits",
        "data.partition.kind": "dirichlet",
        "data.partition.clients": "5",
        "model.hidden": "8",
        "federation.rounds": str(ROUNDS),
        "federation.local_steps": "5",
        "algorithm.name": "fedavg",
        "algorithm.local_lr": "0.1",
        "algorithm.server_lr": "1.0",
        "regularizer.name": "fednar",
        "regularizer.clip_bound": "0.5",
        "regularizer.weight_decay_anneal": "1.0",
        "execution.placement": "serial",
    }
    assert expected.items() <= params.items()
    assert not [value for value in params.values() if value.startswith("{") or value == "None"]
    assert not [key for key in params if key.startswith("algorithm.beta")]  # fedavg does not use β
    assert not [key for key in params if key.startswith(("availability.", "screening.", "aggregation.", "checkpoint."))]


def test_tags_describe_the_run_and_its_execution(recorded: Recorded) -> None:
    tags = recorded.run("plain").data.tags
    expected = {
        "fednar.version": version("fednar-ray"),
        "ray.version": version("ray"),
        "torch.version": torch.__version__,
        "mlflow.source.git.commit": recorded.commit,
        "fednar.placement": "serial",
        "fednar.actors": "0",
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": sys.argv[0],
        "mlflow.source.type": "LOCAL",
    }
    assert expected.items() <= tags.items()
    assert "fednar.command" not in tags  # it was started from Python
    assert 1 <= int(tags["fednar.vectorize"]) <= 3


def test_the_data_set_is_an_input(recorded: Recorded) -> None:
    inputs = {name: recorded.run(name).inputs.dataset_inputs for name in VARIANTS}
    assert {name: len(given) for name, given in inputs.items()} == {
        name: 3 if name == "cnn" else 2 for name in VARIANTS
    }
    contexts = [{each.tags[0].value: each.dataset for each in given} for given in inputs.values()]
    by_name = dict(zip(inputs, contexts, strict=True))
    assert set(by_name["plain"]) == {"training", "test"}
    assert by_name["plain"]["test"].name == "digits"
    (features,) = json.loads(json.loads(by_name["plain"]["test"].schema)["mlflow_tensorspec"]["features"])
    assert features["tensor-spec"] == {"dtype": "float32", "shape": [-1, 1, 8, 8]}
    data = {name: given["training"] for name, given in by_name.items()}
    assert data["plain"].name == "digits"
    assert json.loads(data["plain"].profile) == {"clients": 5, "examples": 1437, "classes": 10}
    assert data["plain"].digest == data["fedexp"].digest
    assert data["plain"].digest != data["cnn"].digest  # one tenth is held out


@pytest.mark.parametrize("name", VARIANTS)
def test_the_recorded_experiment_is_read_back_unchanged(recorded: Recorded, name: str, tmp_path: Path) -> None:
    result = recorded.results[name]
    assert fr.load(recorded.artifact(name, "experiment.yaml", tmp_path)) == result.experiment
    assert fr.load(result.directory / "experiment.yaml") == result.experiment


def test_the_alias_best_stays_with_the_better_of_two_registered_versions(recorded: Recorded) -> None:
    accuracies = {name: recorded.results[name].metrics["test_accuracy"] for name in ("plain", "feddyn")}
    worse, better = sorted(accuracies, key=accuracies.__getitem__)
    assert accuracies[worse] < accuracies[better]
    versions = [register(recorded.results[name], "aliased") for name in (worse, better, worse)]
    assert versions == [1, 2, 3]
    best = recorded.client.get_model_version_by_alias("aliased", "best")
    assert (int(best.version), best.run_id) == (2, recorded.results[better].run_id)
    assert best.description.startswith("**After")
    assert f"test accuracy of {accuracies[better]:.3f}" in best.description
    assert best.tags["fednar.primary"] == "accuracy"


def test_the_picture_is_a_valid_png_file(recorded: Recorded, tmp_path: Path) -> None:
    image = recorded.artifact("plain", "curves.png", tmp_path).read_bytes()
    assert image.startswith(PNG)
    assert image.endswith(b"IEND\xaeB`\x82")
    assert (recorded.results["plain"].directory / "curves.png").read_bytes() == image


@pytest.mark.parametrize("file", ["report.html", "facts.json"])
def test_the_page_and_its_facts_are_artifacts(recorded: Recorded, file: str, tmp_path: Path) -> None:
    assert (
        recorded.artifact("plain", file, tmp_path).read_bytes()
        == (recorded.results["plain"].directory / file).read_bytes()
    )


def test_the_facts_of_a_run_that_no_fednar_command_started_say_python(recorded: Recorded) -> None:
    """The arguments of another program, here pytest's, are not known to be harmless."""
    facts = json.loads((recorded.results["plain"].directory / "facts.json").read_text())
    assert facts["command"] == "Python"
    assert {"Python", "torch", "ray", "mlflow", "numpy"} <= set(facts["versions"])


def test_artifacts_are_stored_next_to_the_sqlite_file(recorded: Recorded) -> None:
    beside = recorded.folder / "store" / "mlruns" / "tracked"
    for name in VARIANTS:
        assert recorded.run(name).info.artifact_uri.startswith(beside.as_uri() + "/")
    assert {path.name for path in (recorded.folder / "work").iterdir()} == {".git", "runs"}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_journal_equals_the_history(recorded: Recorded, name: str) -> None:
    result = recorded.results[name]
    assert result.directory == recorded.folder / "work" / "runs" / f"{name}-{result.run_id[:8]}"
    lines = (result.directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    written = [json.loads(line) for line in lines]
    times = [line.pop("time") for line in written]
    norms = [line.pop("step_norms") for line in written]
    assert {len(line.pop("norm_quantiles")) for line in written} == {len(LEVELS)}
    assert [sorted(map(int, each)) for each in norms] == [sorted(r.client_ids) for r in result.history]
    assert written == [
        {"round": r.round_index, "clients": [*r.client_ids], "exclusions": {}, "metrics": r.metrics}
        for r in result.history
    ]
    history = recorded.client.get_metric_history(result.run_id, "loss/train")
    assert times == [point.timestamp for point in sorted(history, key=lambda point: point.step)]
    for line in lines:
        json.loads(line, parse_constant=lambda token: pytest.fail(f"{token} is not JSON"))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.usefixtures("fluent")
def test_the_logged_model_is_the_evaluated_one(recorded: Recorded, name: str) -> None:
    result, source = recorded.results[name], load_digits()
    x, y = torch.from_numpy(source.test_x), torch.from_numpy(source.test_y)
    loaded = mlflow.pytorch.load_model(f"runs:/{result.run_id}/model")
    for model in (loaded, result.model):
        accuracy, loss = compute_accuracy_and_loss(model, x, y)
        assert accuracy == pytest.approx(result.metrics["test_accuracy"], abs=1e-12)
        assert loss == pytest.approx(result.metrics["test_loss"], rel=1e-5)
    if name == "fedexp":  # the average is logged, not the iterate
        load_parameters(result.model, result.parameters)
        assert abs(compute_accuracy_and_loss(result.model, x, y)[1] - result.metrics["test_loss"]) > 1e-3


@torch.no_grad()
def compute_accuracy_and_loss(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    outputs = model(x)
    return float((outputs.argmax(dim=1) == y).double().mean()), float(cross_entropy(outputs, y))


@pytest.mark.parametrize("name", ["plain", "cnn"])
@pytest.mark.usefixtures("fluent")
def test_the_logged_model_has_signature_and_example(recorded: Recorded, name: str) -> None:
    uri = f"runs:/{recorded.results[name].run_id}/model"
    info = mlflow.models.get_model_info(uri)
    assert info.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    assert info.signature.inputs.inputs[0].type == np.dtype("float32")
    assert info.signature.outputs.inputs[0].shape == (-1, 10)
    example = mlflow.models.Model.load(uri).load_input_example()
    np.testing.assert_array_equal(example, load_digits().test_x[:2])


@pytest.mark.parametrize("name", VARIANTS)
def test_the_model_is_the_runs_only_output_with_the_last_rounds_metrics(recorded: Recorded, name: str) -> None:
    run, result = recorded.run(name), recorded.results[name]
    (output,) = run.outputs.model_outputs
    model = recorded.client.get_logged_model(output.model_id)
    assert (model.name, model.status, model.source_run_id) == ("model", "READY", run.info.run_id)
    assert output.step == ROUNDS - 1
    assert model.params == run.data.params
    wanted = {name_in_mlflow(metric): value for metric, value in result.metrics.items()}
    assert {metric.key: metric.value for metric in model.metrics} == wanted
    described = mlflow.models.Model.load(result.directory / "model")
    assert (described.model_id, described.run_id) == (model.model_id, run.info.run_id)


def test_a_run_that_raises_is_marked_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also outside of a checkout: the commit is absent, and a relative store is below the working directory."""
    monkeypatch.chdir(tmp_path)
    diverging = build_settings(
        "diverging", Path("m.db"), algorithm={"local_lr": 1e30}, regularizer={"name": "none", "weight_decay": 0}
    )
    with pytest.raises(fr.RoundAborted, match=r"round \d+ aborted: 0 of \d client updates usable"):
        fr.run(diverging)
    client = MlflowClient(create_store(tmp_path / "m.db"))
    (run,) = client.search_runs([client.get_experiment_by_name("tracked").experiment_id])
    assert run.info.status == "FAILED"
    assert run.data.tags["fednar.end"].startswith("RoundAborted: round ")
    assert "mlflow.source.git.commit" not in run.data.tags


@pytest.mark.usefixtures("processes")
def test_processes_that_start_at_once_share_a_new_database(tmp_path: Path) -> None:
    code = (
        "import sys; from fednar_ray.tracking.store import Store; sys.stdin.read(); "
        "store = Store(sys.argv[1]); store.check(); print(store.ensure_experiment(sys.argv[2]))"
    )
    uri = create_store(tmp_path / "m.db")
    read, write = os.pipe()
    starting = [
        subprocess.Popen([get_executable(), "-c", code, uri, name], stdin=read, stdout=PIPE, stderr=PIPE, text=True)
        for name in ("a", "b")
    ]
    os.close(read)
    os.close(write)  # both wait for the end of this input
    ends = [(*each.communicate(timeout=300), each.returncode) for each in starting]
    assert [code for *_, code in ends] == [0, 0], ends
    assert {experiment.name for experiment in MlflowClient(uri).search_experiments()} >= {"a", "b"}
