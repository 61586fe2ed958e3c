"""Losses and metrics of classification, binary labels and regression, against formulas and scikit-learn."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    r2_score,
    roc_auc_score,
    root_mean_squared_error,
)
from torch import nn

import fednar_ray as fr
from fednar_ray.core.messages import Scores
from fednar_ray.core.metric_names import HIGHER_IS_BETTER, METRICS_BY_TASK
from fednar_ray.core.reports import RoundReport
from fednar_ray.data.examples import Examples, Shards
from fednar_ray.models.metrics import (
    compute_calibration_error,
    compute_macro_f1,
    compute_perplexity,
    count_by_class,
    sum_overconfidence,
)
from fednar_ray.models.tasks import (
    BINARY,
    CLASSIFICATION,
    REGRESSION,
    TASKS,
    Task,
)
from tests.support.drawn import draw

drawn = draw(200)
SIZES = (9, 20, 0, 14)

# ——— losses ———


def compute_sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def compute_losses_by_hand(name: str, outputs: np.ndarray, y: np.ndarray) -> np.ndarray:
    outputs = outputs.astype(float)
    if name == "classification":
        return np.log(np.exp(outputs).sum(axis=1)) - outputs[np.arange(len(y)), y]
    if name == "binary":
        return -np.log(np.where(y == 1, compute_sigmoid(outputs[:, 0]), 1 - compute_sigmoid(outputs[:, 0])))
    return (outputs[:, 0] - y) ** 2


def draw_sample(name: str, count: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    outputs = 2 * rng.normal(size=(count, TASKS[name].outputs or 4)).astype(np.float32)
    if name == "regression":
        return outputs, rng.normal(size=count).astype(np.float32)
    return outputs, rng.integers(2 if name == "binary" else 4, size=count)


@pytest.mark.parametrize("name", TASKS)
def test_losses_equal_their_formulas_and_are_averaged_with_weights(name: str) -> None:
    task, (outputs, y) = TASKS[name], draw_sample(name)
    expected = compute_losses_by_hand(name, outputs, y)
    given_to = torch.from_numpy(outputs), torch.from_numpy(y)
    np.testing.assert_allclose(task.losses(*given_to), expected, rtol=1e-5, atol=1e-6)
    assert task.mean_loss(*given_to).item() == pytest.approx(expected.mean(), rel=1e-5)
    weights = np.array([0.5, 0, 0.1, 0, 0.2, 0.2, 0], dtype=np.float32)  # zeros are padding
    weighted = task.weighted_loss(*given_to, torch.from_numpy(weights)).item()
    assert weighted == pytest.approx(weights @ expected, rel=1e-5)


def test_losses_of_extreme_logits_are_finite() -> None:
    for task, outputs in ((BINARY, [[500.0], [-500.0]]), (CLASSIFICATION, [[500.0, -500.0], [-500.0, 500.0]])):
        losses = task.losses(torch.tensor(outputs), torch.tensor([0, 0]))
        assert losses.tolist() == pytest.approx([500, 0] if task is BINARY else [0, 1000])


# ——— training ———


def draw_examples(name: str, count: int, rng: np.random.Generator) -> Examples:
    """Points in the plane with labels that depend on them, noisily."""
    x = rng.normal(size=(count, 2)).astype(np.float32)
    value = x @ np.array([1.0, -2.0]) + rng.normal(size=count)
    if name == "regression":
        return Examples(x, value.astype(np.float32))  # type: ignore[arg-type]
    return Examples(x, (value > 0).astype(np.int64) if name == "binary" else np.digitize(value, [-1, 1]))


def load_experiment_data(name: str, test: int = 61) -> fr.Federation:
    rng = np.random.default_rng(3)
    block, held_out = draw_examples(name, sum(SIZES), rng), draw_examples(name, test, rng)
    shards = Shards(block, np.cumsum([0, *SIZES]))
    return fr.Federation.from_shards(name, shards, held_out, None, 0, name)


def build_linear(outputs: int) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(2, outputs)


def build_experiment(width: int = 1, *, federated: bool = False, **federation: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "federation": {"rounds": 1, "local_steps": 1, "batch_size": 100, **federation},
            "algorithm": {"local_lr": 0.1},
            "regularizer": {"name": "none"},
            "evaluation": {"federated": federated},
            "execution": {"placement": "serial", "vectorize": width},
        }
    )


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("name", ["binary", "regression"])
def test_a_round_with_one_output_follows_the_closed_form_gradient(name: str, width: int) -> None:
    federation, model = load_experiment_data(name), build_linear(1)
    (report,) = fr.iter_rounds(build_experiment(width), federation=federation, model=model)
    w, b = (p.detach().double().numpy() for p in model.parameters())
    total, losses = np.zeros(3), []
    for client_id, size in enumerate(SIZES):
        shard = federation.shards.only(client_id).examples
        outputs = shard.x @ w.T + b
        residual = (compute_sigmoid(outputs) if name == "binary" else 2 * outputs)[:, 0]
        residual = residual - (shard.y if name == "binary" else 2 * shard.y)
        if size:  # one full-batch step, weighted by n_i/Σn: the gradient of the mean over all
            total += np.append(residual @ shard.x, residual.sum())
            losses.append(compute_losses_by_hand(name, outputs, shard.y).mean())
    expected = np.append(w, b) - 0.1 * total / sum(SIZES)
    np.testing.assert_allclose(report.parameters, expected, rtol=1e-5, atol=1e-6)
    assert report.metrics["train_loss"] == pytest.approx(np.average(losses, weights=[n for n in SIZES if n]), rel=1e-5)


@pytest.mark.parametrize("name", ["binary", "regression"])
def test_training_lowers_the_loss_of_every_task(name: str) -> None:
    chosen = build_experiment(3, rounds=8, local_steps=5, batch_size=8)
    first, *_, last = fr.iter_rounds(chosen, federation=load_experiment_data(name), model=build_linear(1))
    assert last.metrics["test_loss"] < 0.8 * first.metrics["test_loss"]


@pytest.mark.parametrize(("name", "outputs"), [("classification", 3), ("binary", 1), ("regression", 1)])
def test_a_named_model_has_as_many_outputs_as_the_task_needs(name: str, outputs: int) -> None:
    chosen = build_experiment().model_copy(
        update={"model": fr.Experiment.model_validate({"model": {"name": "logistic"}}).model}
    )
    (report,) = fr.iter_rounds(chosen, federation=load_experiment_data(name))
    assert len(report.parameters) == 3 * outputs


# ——— metrics of a run ———


def select_test_metrics(report: RoundReport) -> dict[str, float]:
    return {
        key: value
        for key, value in report.metrics.items()
        if key.startswith(("test_", "client_accuracy", "client_rmse"))
    }


def compute_outputs(report: RoundReport, x: np.ndarray) -> np.ndarray:
    parameters = report.eval_params.astype(float)
    return x @ parameters[:-1] + parameters[-1]


def compute_error(confidences: np.ndarray, correct: np.ndarray) -> float:
    """Computes the calibration error with one loop over the bins."""
    gaps = []
    for low in range(15):
        inside = (confidences * 15 >= low) & (confidences * 15 < low + 1)
        gaps.append(abs((confidences[inside] - correct[inside]).sum()))
    return sum(gaps) / len(correct)


def test_a_binary_run_reports_accuracy_auc_and_loss() -> None:
    federation = load_experiment_data("binary")
    (report,) = fr.iter_rounds(build_experiment(federated=True), federation=federation, model=build_linear(1))
    logits, y = compute_outputs(report, federation.test.x), federation.test.y
    shards = [federation.shards.only(i).examples for i, size in enumerate(SIZES) if size]
    rates = [((compute_outputs(report, shard.x) > 0) == shard.y).mean() for shard in shards]
    assert select_test_metrics(report) == {
        "test_accuracy": ((logits > 0) == y).mean(),
        "test_auc": pytest.approx(roc_auc_score(y, logits), abs=1e-12),
        "test_average_precision": pytest.approx(average_precision_score(y, logits), abs=1e-12),
        "test_macro_f1": pytest.approx(f1_score(y, logits > 0, average="macro"), abs=1e-12),
        "test_loss": pytest.approx(compute_losses_by_hand("binary", logits[:, None], y).mean(), rel=1e-5),
        "test_log_loss": pytest.approx(log_loss(y, compute_sigmoid(logits)), rel=1e-5),
        "test_calibration_error": pytest.approx(
            compute_error(compute_sigmoid(abs(logits)), (logits > 0) == y), abs=1e-5
        ),
        "client_accuracy_mean": pytest.approx(np.mean(rates), abs=1e-12),
        "client_accuracy_worst_decile": pytest.approx(min(rates), abs=1e-12),
    }


def test_a_regression_run_reports_errors_and_the_worst_decile_is_the_highest() -> None:
    federation = load_experiment_data("regression")
    (report,) = fr.iter_rounds(build_experiment(federated=True), federation=federation, model=build_linear(1))
    squares = (compute_outputs(report, federation.test.x) - federation.test.y) ** 2
    shards = [federation.shards.only(i).examples for i, size in enumerate(SIZES) if size]
    errors = [np.sqrt(((compute_outputs(report, shard.x) - shard.y) ** 2).mean()) for shard in shards]
    assert select_test_metrics(report) == {
        "test_rmse": pytest.approx(np.sqrt(squares.mean()), rel=1e-5),
        "test_mae": pytest.approx(np.sqrt(squares).mean(), rel=1e-5),
        "test_r2": pytest.approx(r2_score(federation.test.y, compute_outputs(report, federation.test.x)), rel=1e-4),
        "test_loss": pytest.approx(squares.mean(), rel=1e-5),
        "client_rmse_mean": pytest.approx(np.mean(errors), rel=1e-5),
        "client_rmse_worst_decile": pytest.approx(max(errors), rel=1e-5),
    }


def test_a_classification_run_reports_accuracy_macro_f1_and_loss() -> None:
    federation, model = load_experiment_data("classification"), build_linear(3)
    (report,) = fr.iter_rounds(build_experiment(), federation=federation, model=model)
    weights, bias = report.eval_params[:6].reshape(3, 2), report.eval_params[6:]
    outputs, y = federation.test.x @ weights.T + bias, federation.test.y
    softmax = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    assert select_test_metrics(report) == {
        "test_accuracy": (outputs.argmax(axis=1) == y).mean(),
        "test_macro_f1": pytest.approx(f1_score(y, outputs.argmax(axis=1), average="macro"), abs=1e-12),
        "test_loss": pytest.approx(compute_losses_by_hand("classification", outputs, y).mean(), rel=1e-5),
        "test_log_loss": pytest.approx(log_loss(y, softmax), rel=1e-5),
        "test_calibration_error": pytest.approx(
            compute_error(softmax.max(axis=1), outputs.argmax(axis=1) == y), abs=1e-5
        ),
    }


def test_sequences_of_tokens_also_have_a_perplexity() -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(5, size=(9, 4), dtype=np.uint8), rng.integers(5, size=9)) for _ in range(3)]
    section = {"name": "char_transformer", "vocabulary": 5, "layers": 1, "hidden": 4}
    chosen = fr.Experiment.model_validate({**build_experiment().model_dump(exclude_none=True), "model": section})
    (report,) = fr.iter_rounds(chosen, federation=fr.Federation(pairs[:2], pairs[2]))
    assert select_test_metrics(report).keys() == {f"test_{name}" for name in METRICS_BY_TASK["classification"]}
    assert report.metrics["test_perplexity"] == pytest.approx(np.exp(report.metrics["test_loss"]), rel=1e-12)


def test_a_test_set_with_one_label_has_no_auc() -> None:
    federation = load_experiment_data("binary")
    federation.test.y[:] = 1
    (report,) = fr.iter_rounds(build_experiment(), federation=federation, model=build_linear(1))
    assert select_test_metrics(report).keys() == {
        f"test_{name}" for name in METRICS_BY_TASK["binary"] if name not in ("auc", "average_precision")
    }


@pytest.mark.parametrize("name", ["binary", "regression"])
def test_metrics_and_parameters_of_a_task_do_not_depend_on_placement(name: str, session: fr.RaySession) -> None:
    serial = build_experiment(rounds=2, federated=True, batch_size=5)
    runs = []
    for placement in ({"placement": "serial"}, {"placement": "pooled", "actors": 2}, {"placement": "dedicated"}):
        execution = {**placement, "vectorize": 1, "gpus_per_actor": 0, "cpus_per_actor": 0.5}
        chosen = fr.Experiment.model_validate({**serial.model_dump(exclude_none=True), "execution": execution})
        federation = load_experiment_data(name, test=3000)  # enough for more than one call
        *_, last = fr.iter_rounds(chosen, federation=federation, model=build_linear(1), session=session)
        runs.append((select_test_metrics(last), last.parameters.tobytes()))
    assert runs[0] == runs[1] == runs[2]


# ——— metrics ———


def test_macro_f1_matches_numbers_by_hand() -> None:
    # Class 0: TP 2, FP 1, FN 1 → 4/6.  Class 1: TP 1, FP 1, FN 1 → 2/4.  Class 2 is neither a label nor a prediction.
    # Class 3: never predicted → 0.  Class 4: never a label → 0.
    y, predictions = np.array([0, 0, 0, 1, 1, 3]), np.array([0, 0, 1, 1, 0, 4])
    assert compute_macro_f1(count_by_class(y, predictions)) == pytest.approx((4 / 6 + 2 / 4 + 0 + 0) / 4, abs=1e-15)


ranked = st.lists(st.tuples(st.integers(0, 1), st.integers(-5, 5)), min_size=2, max_size=40)
labels = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=40)


@drawn
@given(labels)
def test_macro_f1_equals_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    y, predictions = np.array(pairs).T
    expected = f1_score(y, predictions, average="macro", zero_division=0)
    assert compute_macro_f1(count_by_class(y, predictions.astype(np.int32))) == pytest.approx(expected, abs=1e-12)


def score(y: np.ndarray, predictions: np.ndarray) -> Scores:
    errors = (predictions - y).astype(np.float32)
    confidences = np.linspace(0, 1, len(y), dtype=np.float32)
    return Scores(
        predictions=predictions, correct=predictions == y, losses=abs(errors), errors=errors, confidences=confidences
    )


def compute_auc(y: np.ndarray, logits: np.ndarray) -> float:
    return BINARY.exact_metrics(y, score(y, logits))["auc"]


def test_auc_with_a_tie_matches_the_number_by_hand() -> None:
    # Pairs (positive, negative): 3>2, 3>1, 1<2, 1=1 → (1 + 1 + 0 + 1/2)/4
    assert compute_auc(np.array([1, 0, 0, 1]), np.array([3, 2, 1, 1], dtype=np.float32)) == 2.5 / 4


@drawn
@given(ranked.filter(lambda pairs: len({label for label, _ in pairs}) == 2))
def test_auc_equals_that_of_scikit_learn_and_depends_only_on_the_order(pairs: list[tuple[int, int]]) -> None:
    y, logits = np.array(pairs).T
    assert compute_auc(y, logits.astype(np.float32)) == pytest.approx(roc_auc_score(y, logits), abs=1e-12)
    assert compute_auc(y, np.exp(logits / 2)) == compute_auc(y, logits)
    assert compute_auc(1 - y, -logits) == pytest.approx(compute_auc(y, logits), abs=1e-12)


def test_auc_is_nan_for_nan_outputs_but_not_for_infinite_ones() -> None:
    y = np.array([0, 1, 1])
    assert np.isnan(compute_auc(y, np.array([0, np.nan, 1], dtype=np.float32)))
    assert compute_auc(y, np.array([0, np.inf, -np.inf], dtype=np.float32)) == 0.5


@drawn
@given(labels, labels)
def test_metric_sums_of_two_parts_add_up_to_those_of_the_whole(
    one: list[tuple[int, int]], other: list[tuple[int, int]]
) -> None:
    whole, *parts = (np.array(pairs).T for pairs in (one + other, one, other))
    for task in (CLASSIFICATION, REGRESSION):
        scores = [score(y, predictions) for y, predictions in parts]
        joined = Scores(
            **{
                name: np.concatenate([getattr(each, name) for each in scores])
                for name in ("predictions", "correct", "losses", "errors", "confidences")
            }
        )
        sums = [task.metric_sums(y, each) for (y, _), each in zip(parts, scores, strict=True)]
        total, first, second = map(task.metrics, (task.metric_sums(whole[0], joined), *sums))
        assert task.metrics(sums[0] + sums[1]) == pytest.approx(total, abs=1e-12)
        assert first["loss"] * len(one) + second["loss"] * len(other) == pytest.approx(total["loss"] * len(whole[0]))


def test_the_auc_of_two_silos_counts_the_pairs_across_silos() -> None:
    # Positives 2 and 5, negatives 1, 4 and 7: of six pairs, 2>1, 5>1 and 5>4 are in order.
    a = BINARY.metric_sums(y := np.array([1, 0]), score(y, np.array([2.0, 1.0])))
    b = BINARY.metric_sums(y := np.array([1, 0, 0]), score(y, np.array([5.0, 4.0, 7.0])))
    assert BINARY.metrics(a + b)["auc"] == 3 / 6


@pytest.mark.parametrize("spread", [0.02, 1.0, 30.0])
def test_silos_rank_as_their_pooled_logits_do_up_to_pairs_in_one_bin(spread: float) -> None:
    """The bound that docs/silos.md states: half of the pairs whose logits lie in one bin."""
    rng = np.random.default_rng(1)
    y = (rng.random(500) < 0.2).astype(np.int64)
    logits = (spread * (rng.normal(size=500) + y)).astype(np.float32)
    parts = [BINARY.metric_sums(y[i::3], score(y[i::3], logits[i::3])) for i in range(3)]
    sums = parts[0] + parts[1] + parts[2]
    found, positives, negatives = BINARY.metrics(sums), *sums.logits
    bound = (positives * negatives).sum() / 2 / (positives.sum() * negatives.sum())
    assert abs(found["auc"] - roc_auc_score(y, logits)) <= bound
    if spread == 1.0:
        assert bound < 0.01
        assert found["auc"] == pytest.approx(roc_auc_score(y, logits), abs=2e-3)
        assert found["average_precision"] == pytest.approx(average_precision_score(y, logits), abs=2e-2)


@drawn
@given(ranked.filter(lambda pairs: len({label for label, _ in pairs}) == 2))
def test_average_precision_equals_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    y, logits = np.array(pairs).T
    found = BINARY.exact_metrics(y, score(y, logits.astype(np.float32)))["average_precision"]
    assert found == pytest.approx(average_precision_score(y, logits), abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_regression_metrics_equal_those_of_scikit_learn_pooled_and_by_silo(shift: float) -> None:
    rng = np.random.default_rng(3)
    y = (rng.normal(size=101) + shift).astype(np.float32)
    predictions = (y + 0.3 * rng.normal(size=101)).astype(np.float32)
    parts = [REGRESSION.metric_sums(y[i::4], score(y[i::4], predictions[i::4])) for i in range(4)]
    for sums in (REGRESSION.metric_sums(y, score(y, predictions)), parts[0] + parts[1] + parts[2] + parts[3]):
        found = REGRESSION.metrics(sums)
        assert found["r2"] == pytest.approx(r2_score(y.astype(float), predictions.astype(float)), abs=1e-6)
        assert found["mae"] == pytest.approx(mean_absolute_error(y.astype(float), predictions.astype(float)), rel=1e-6)
        assert found["rmse"] == pytest.approx(root_mean_squared_error(y, predictions), rel=1e-5)


def test_calibration_error_equals_that_of_scikit_learns_calibration_curve() -> None:
    rng = np.random.default_rng(4)
    confidences, correct = rng.random(300).astype(np.float32), rng.random(300) < 0.7
    counts = np.histogram(confidences, bins=15, range=(0, 1))[0]
    share, mean = calibration_curve(correct, confidences, n_bins=15)
    expected = (counts[counts > 0] * np.abs(share - mean)).sum() / 300
    assert compute_calibration_error(sum_overconfidence(confidences, correct), 300) == pytest.approx(expected, abs=1e-9)


def test_every_metric_of_every_task_has_a_direction_and_is_reported() -> None:
    assert {name for names in METRICS_BY_TASK.values() for name in names} == set(HIGHER_IS_BETTER)
    for name, task in TASKS.items():
        y = np.array([0, 1, 1])
        scores = score(y, np.array([0.5, 2.0, -1.0], dtype=np.float32) if name != "classification" else y)
        reported = task.metrics(task.metric_sums(y, scores)) | task.exact_metrics(y, scores)
        assert set(reported) == set(METRICS_BY_TASK[name]) - {"perplexity"}


def test_a_uniform_guess_over_80_characters_has_perplexity_80_and_a_diverged_one_has_none() -> None:
    assert compute_perplexity(float(np.log(80))) == pytest.approx(80)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compute_perplexity(1e4) == np.inf
        assert np.isnan(compute_perplexity(float("nan")))


def test_tasks_survive_pickling() -> None:
    import pickle

    for task in (CLASSIFICATION, BINARY, REGRESSION):
        again: Task = pickle.loads(pickle.dumps(task))  # noqa: S301
        assert again == task
