"""Class weights, own losses and metrics, and scaled targets, against plain torch and scikit-learn."""

import copy
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import cohen_kappa_score, root_mean_squared_error
from torch.nn.functional import cross_entropy

import fednar_ray as fr
from fednar_ray.data.loading import load_federation
from fednar_ray.experiments.prepare import prepare
from fednar_ray.models.losses import build_task, compute_class_weights


def compute_absolute_errors(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (outputs - y).abs()


def compute_mean(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (outputs - y).abs().mean()


def compute_nan(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (outputs - y) * torch.nan


def count_outputs(y: np.ndarray, outputs: np.ndarray) -> float:
    return float(outputs.shape[1])


def return_nan(y: np.ndarray, predictions: np.ndarray) -> float:
    return float("nan")


HERE = __name__


def build(model: dict[str, Any] | None = None, vectorize: int = 1, **evaluation: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "model": {"name": "logistic", **(model or {})},
            "federation": {"rounds": 2, "local_steps": 2, "batch_size": 100},
            "regularizer": {"name": "none"},
            "evaluation": evaluation,
            "execution": {"placement": "serial", "vectorize": vectorize},
        }
    )


def build_federation(task: str = "classification", classes: int = 3) -> fr.Federation:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 2)).astype(np.float32)
    y = np.where(rng.random(90) < 0.1, 1, 0) if task == "binary" else rng.integers(classes, size=90)
    y = (x[:, 0] * 50 + 1000).astype(np.float32) if task == "regression" else y
    y[:classes] = y[:classes] if task == "regression" else np.arange(classes)
    return fr.Federation([(x[:30], y[:30]), (x[30:60], y[30:60])], (x[60:], y[60:]), task=task)


def train(experiment: fr.Experiment, federation: fr.Federation) -> Any:
    *_, last = fr.iter_rounds(experiment, federation=federation)
    return last


@pytest.mark.parametrize("vectorize", [1, 2])
def test_class_weights_train_as_a_plain_loop_with_weights(vectorize: int) -> None:
    federation, weights = build_federation(), torch.tensor([0.5, 1.0, 4.0])
    experiment = build({"class_weights": weights.tolist()}, vectorize)
    model = prepare(experiment, federation).model
    for _ in range(2):
        locals_ = []
        for client_id in range(2):
            own, examples = copy.deepcopy(model), federation.shards.only(client_id).examples
            x, y = torch.from_numpy(examples.x), torch.from_numpy(examples.y)
            for _ in range(2):
                own.zero_grad()
                (weights[y] * cross_entropy(own(x), y, reduction="none")).mean().backward()
                with torch.no_grad():
                    for parameter in own.parameters():
                        parameter -= 0.1 * parameter.grad
            locals_.append(torch.nn.utils.parameters_to_vector(own.parameters()).detach())
        torch.nn.utils.vector_to_parameters(torch.stack(locals_).mean(dim=0), model.parameters())
    last = train(experiment, federation)
    expected = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    np.testing.assert_allclose(last.parameters, expected, rtol=1e-5, atol=1e-6)
    assert last.metrics["test_loss"] == last.metrics["test_log_loss"]  # evaluation has no weights


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    y = np.repeat([0, 1, 2], [5, 20, 75])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=y)
    assert compute_class_weights("balanced", "classification", np.bincount(y)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("task", "weights", "problem"),
    [
        ("classification", [1.0, 2.0], "2 weights, but the labels have 3 classes; give one each"),
        ("regression", "balanced", "a regression has no classes; remove it"),
    ],
)
def test_class_weights_that_do_not_fit_are_refused(task: str, weights: Any, problem: str) -> None:
    with pytest.raises(fr.BadInput, match=problem):
        prepare(build({"class_weights": weights}), build_federation(task))


@pytest.mark.parametrize("vectorize", [1, 2])
def test_an_own_loss_trains_and_is_reported_beside_the_log_loss(vectorize: int) -> None:
    federation = build_federation("binary", 2)
    metrics = train(build({"loss": f"{HERE}:compute_absolute_errors"}, vectorize), federation).metrics
    assert metrics["test_loss"] != metrics["test_log_loss"]
    assert {"test_auc", "test_macro_f1"} <= metrics.keys()


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("no_such_module:loss", "cannot be imported: No module named"),
        (f"{HERE}:compute_mean", r"returns \[\]; one loss per example is needed, \[4\]"),
        (f"{HERE}:compute_nan", "not finite"),
        (f"{HERE}:HERE", "is str, not a function"),
    ],
)
def test_a_bad_own_loss_is_refused_before_training(path: str, problem: str) -> None:
    with pytest.raises(fr.BadInput, match=f"^model.loss: {path}: .*{problem}"):
        prepare(build({"loss": path}), build_federation("binary", 2))


def test_own_metrics_are_reported_and_can_be_primary() -> None:
    paths = ["sklearn.metrics:cohen_kappa_score", f"{HERE}:count_outputs"]
    federation, experiment = build_federation(), build(metrics=paths, primary="cohen_kappa_score")
    last = train(experiment, federation)
    weights, bias = last.eval_params[:6].reshape(3, 2), last.eval_params[6:]
    predictions = (federation.test.x @ weights.T + bias).argmax(axis=1)
    assert last.metrics["test_cohen_kappa_score"] == pytest.approx(cohen_kappa_score(federation.test.y, predictions))
    assert last.metrics["test_count_outputs"] == 3
    assert prepare(experiment, federation).primary == "cohen_kappa_score"


def test_bad_own_metrics_are_refused_all_at_once() -> None:
    with pytest.raises(fr.ConfigError) as caught:
        prepare(build(metrics=[f"{HERE}:return_nan", "no_such_module:metric"]), build_federation())
    assert [line.startswith("evaluation.metrics: ") for line in caught.value.problems] == [True, True]
    with pytest.raises(fr.ConfigError, match=r"evaluation.primary: 'auc' is not a metric of task classification"):
        prepare(build(primary="auc"), build_federation())


def test_the_primary_metric_follows_from_task_and_labels() -> None:
    federations = [build_federation(), build_federation("binary", 2), build_federation("regression")]
    assert [prepare(build(), each).primary for each in federations] == ["accuracy", "auc", "rmse"]


# ——— scaled targets ———


def write_tables(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(120, 2))
    y = 5000 + 300 * x[:, 0] - 40 * x[:, 1] + 10 * rng.normal(size=120)
    directory.mkdir()
    for name, rows in (("a", slice(0, 50)), ("b", slice(50, 120))):
        lines = [f"{u!r},{v!r},{t!r}" for (u, v), t in zip(x[rows].tolist(), y[rows].tolist(), strict=True)]
        (directory / f"{name}.csv").write_text("u,v,price\n" + "\n".join(lines) + "\n")
    return x, y


def build_priced(directory: Path, **data: Any) -> fr.Experiment:
    section = {"source": "folder", "directory": str(directory), "label": "price", "task": "regression", **data}
    changes = {"data": section, "federation": {"rounds": 15, "local_epochs": 1, "batch_size": 16}}
    return fr.Experiment.model_validate({**build().model_dump(exclude_none=True), **changes})


@pytest.mark.usefixtures("long_computation")
def test_a_scaled_regression_predicts_in_the_labels_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = write_tables(tmp_path / "houses")
    result = fr.run(build_priced(tmp_path / "houses"))
    mean, scale = prepare(result.experiment).federation.target_scale or (0.0, 0.0)
    assert mean == pytest.approx(y.mean(), rel=0.02)
    assert scale == pytest.approx(y.std(), rel=0.2)
    predictions = result.model(torch.from_numpy(x)).detach().numpy()[:, 0]
    assert root_mean_squared_error(y, predictions) < 0.1 * y.std()
    assert result.metrics["test_rmse"] == pytest.approx(root_mean_squared_error(y, predictions), rel=0.5)
    assert result.metrics["test_loss"] == pytest.approx((result.metrics["test_rmse"] / scale) ** 2, rel=1e-3)
    assert result.metrics["test_r2"] > 0.99
    again = fr.load_model(result.directory, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 1)))
    np.testing.assert_array_equal(again(torch.from_numpy(x)).detach().numpy()[:, 0], predictions)
    rows, saved = pd.DataFrame(x, columns=["u", "v"]), mlflow.pyfunc.load_model(str(result.directory / "model"))
    np.testing.assert_array_equal(np.asarray(saved.predict(rows)).ravel(), predictions)
    np.testing.assert_array_equal(fr.predict(result.directory, rows)["prediction"], predictions)


def test_silos_agree_on_the_scale_of_the_targets_and_train_to_the_same_bytes(tmp_path: Path) -> None:
    write_tables(tmp_path / "houses")
    together = build_priced(tmp_path / "houses").model_dump(exclude_none=True)
    together["execution"] = {"placement": "serial", "vectorize": 1}
    data = {key: value for key, value in together["data"].items() if key != "directory"}
    silos = {name: {"data": str(tmp_path / "houses" / f"{name}.csv")} for name in ("a", "b")}
    apart = {**together, "data": data, "execution": {"placement": "serial", "silos": silos}}
    one, other = (fr.Experiment.model_validate(each) for each in (together, apart))
    known, silo_federation = (prepare(each).federation for each in (one, other))
    labels = load_federation(one.data, 0).shards.examples.y.astype(np.float64)
    assert silo_federation.target_scale == known.target_scale == pytest.approx((labels.mean(), labels.std()), rel=1e-6)
    (*_, last), (*_, at_silos) = (list(fr.iter_rounds(each)) for each in (one, other))
    assert last.parameters.tobytes() == at_silos.parameters.tobytes()
    for name in ("test_rmse", "test_mae", "test_r2"):
        assert at_silos.metrics[name] == pytest.approx(last.metrics[name], rel=1e-6), name


def test_without_standardize_targets_are_not_scaled(tmp_path: Path) -> None:
    write_tables(tmp_path / "houses")
    prepared = prepare(build_priced(tmp_path / "houses", standardize=False))
    assert prepared.federation.target_scale is None
    assert prepared.task is build_task("regression")


def test_a_target_with_one_value_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "houses"
    write_tables(directory)
    for path in directory.iterdir():
        path.write_text("u,v,price\n" + "1.5,2,7\n2,1,7\n3,3,7\n" * 4)
    with pytest.raises(
        fr.DataError, match=r"houses/a.csv and 1 more: column price: .* same value, 7; there is nothing"
    ):
        prepare(build_priced(directory))
