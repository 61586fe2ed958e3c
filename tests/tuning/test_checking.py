"""A metric that no trial reports is refused before Ray starts, with the metrics that trials do report."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import fednar_ray as fr
from fednar_ray.config import Document
from fednar_ray.config.loading import parse_document
from fednar_ray.core.metric_names import HIGHER_IS_BETTER
from fednar_ray.experiments.prepare import load_experiment_data
from fednar_ray.federated.evaluation import list_metric_names
from fednar_ray.tuning.checking import check_trials
from fednar_ray.tuning.search import start_search

LABELS = {
    "classification": np.arange(60) % 3,
    "binary": np.arange(60) % 2,
    "regression": np.arange(60, dtype=np.float32) / 60,
}
METRICS_OF_TASK = {
    "classification": ("accuracy", "loss", "log_loss", "macro_f1", "calibration_error"),
    "binary": ("accuracy", "loss", "log_loss", "macro_f1", "calibration_error", "auc", "average_precision"),
    "regression": ("rmse", "mae", "loss", "r2"),
}
KNOWN = tuple(HIGHER_IS_BETTER)


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def build_search(
    task: str,
    metric: str,
    *,
    labels: Any = None,
    federated: bool = False,
    evaluation: Any = None,
    mode: str | None = None,
    **space: Any,
) -> Document:
    y = LABELS[task] if labels is None else labels
    x = np.random.default_rng(0).normal(size=(len(y), 3)).astype(np.float32)
    np.savez("data.npz", train_x=x, train_y=y, test_x=x, test_y=y)
    experiment = {
        "name": "small",
        "data": {"source": "npz", "path": "data.npz", "task": task, "validation": 0.3, "partition": {"clients": 3}},
        "model": {"name": "mlp", "hidden": 4},
        "federation": {"rounds": 2, "local_steps": 1},
        "evaluation": {"federated": federated, **(evaluation or {})},
        "execution": {"placement": "serial"},
    }
    lower = any(word in metric for word in ("loss", "rmse", "mae", "perplexity", "error"))
    search = {
        "metric": metric,
        "mode": mode or ("min" if lower else "max"),
        "space": {"algorithm.local_lr": {"uniform": [0.01, 0.1]}, **space},
    }
    return parse_document(yaml.safe_dump({"experiment": experiment, "search": search}), "f.yaml", to_search=True)


@pytest.mark.parametrize("task", LABELS)
@pytest.mark.parametrize("metric", KNOWN)
def test_a_metric_of_another_task_is_refused_with_the_available_metrics(task: str, metric: str) -> None:
    given = build_search(task, f"validation_{metric}")
    if metric in METRICS_OF_TASK[task]:
        check_trials(given, fr.RaySession())
        return
    there = ", ".join([*(f"validation_{name}" for name in METRICS_OF_TASK[task]), "train_loss"])
    with pytest.raises(fr.ConfigError, match=rf"^search.metric: 'validation_{metric}': trials .*; use one of {there}$"):
        check_trials(given, fr.RaySession())


@pytest.mark.parametrize(
    ("task", "metric", "reported"),
    [
        ("classification", "client_accuracy_mean", True),
        ("binary", "client_accuracy_worst_decile", True),
        ("regression", "client_accuracy_mean", False),
        ("regression", "client_rmse_mean", True),
        ("classification", "client_rmse_worst_decile", False),
    ],
)
def test_metrics_across_clients_follow_from_the_task(task: str, metric: str, reported: bool) -> None:
    given = build_search(task, metric, federated=True)
    if reported:
        check_trials(given, fr.RaySession())
        return
    with pytest.raises(fr.ConfigError, match=f"search.metric: '{metric}': trials on these data do not report"):
        check_trials(given, fr.RaySession())


@pytest.mark.parametrize(
    ("task", "labels", "evaluation", "metric", "mode"),
    [
        ("classification", None, {}, "validation_accuracy", "max"),
        ("binary", None, {}, "validation_accuracy", "max"),
        ("binary", np.arange(60) % 10 == 0, {}, "validation_auc", "max"),  # one in ten: imbalanced
        ("regression", None, {}, "validation_rmse", "min"),
        ("binary", None, {"primary": "log_loss"}, "validation_log_loss", "min"),
        ("regression", None, {"primary": "r2"}, "validation_r2", "max"),
    ],
)
def test_without_a_metric_the_primary_one_guides(
    task: str, labels: Any, evaluation: Any, metric: str, mode: str
) -> None:
    given = build_search(task, "auto", labels=labels, evaluation=evaluation, mode="auto")
    search = check_trials(given, fr.RaySession()).search
    assert search is not None
    assert (search.metric, search.mode) == (metric, mode)


def test_a_mode_that_the_primary_metric_does_not_have_is_refused() -> None:
    with pytest.raises(fr.ConfigError, match=r"search\.mode: 'max': validation_rmse is better lower"):
        check_trials(build_search("regression", "auto", mode="max"), fr.RaySession())


def test_auc_requires_both_labels_among_the_validation_examples() -> None:
    with pytest.raises(fr.ConfigError, match="validation_macro_f1, validation_calibration_error, train_loss"):
        check_trials(build_search("binary", "validation_auc", labels=np.zeros(60, dtype=np.int64)), fr.RaySession())


def test_searched_data_settings_are_checked_too() -> None:
    space = {"data.task": {"choice": ["classification", "binary"]}}
    given = build_search("binary", "validation_auc", **space)
    with pytest.raises(fr.ConfigError) as raised:
        check_trials(given, fr.RaySession())
    (problem,) = raised.value.problems
    assert problem.startswith(
        "search.space.data.task: 'classification': search.metric: 'validation_auc': trials on these data do not"
    )


@pytest.mark.parametrize("task", LABELS)
def test_the_listed_metrics_equal_those_that_rounds_report(task: str) -> None:
    """Compares with the metrics of a trained round that is evaluated on every split."""
    experiment = build_search(task, "validation_loss", federated=True).experiment
    *_, last = fr.iter_rounds(experiment)
    evaluated = {name for name in last.metrics if name.startswith(("validation_", "test_", "client_"))}
    evaluated.remove("client_seconds")  # a duration, not a metric of the model
    names = list_metric_names(load_experiment_data(experiment), ("validation", "test"), federated=True)
    assert set(names) == evaluated
    assert len(names) == len(evaluated)


def test_perplexity_requires_tokens() -> None:
    tokens = np.arange(40).reshape(10, 4)
    pair = (tokens, np.arange(10))
    assert "validation_perplexity" in list_metric_names(
        fr.Federation([pair], pair, pair), ["validation"], federated=False
    )
    pair = (tokens.astype(np.float32), np.arange(10))
    names = list_metric_names(fr.Federation([pair], pair, pair), ["validation"], federated=False)
    assert names == tuple(f"validation_{name}" for name in METRICS_OF_TASK["classification"])


def test_a_search_is_refused_before_anything_starts() -> None:
    given = build_search("classification", "validation_auc")
    with fr.RaySession() as session, pytest.raises(fr.ConfigError, match=r"search\.metric: 'validation_auc'"):
        start_search(given, session, lambda status: None)
    assert sorted(path.name for path in Path().iterdir()) == ["data.npz"]  # neither a search nor an MLflow store


def test_data_that_cannot_be_used_are_refused_before_anything_starts() -> None:
    given = build_search("classification", "validation_loss")
    Path("data.npz").unlink()
    with pytest.raises(fr.BadInput, match=r"data\.npz"):
        start_search(given, fr.RaySession(), lambda status: None)
    assert list(Path().iterdir()) == []
