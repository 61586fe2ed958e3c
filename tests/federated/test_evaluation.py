"""Metrics are those of the reported model, independent of placement and frequency. Evaluation changes no training."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fednar_ray as fr
from fednar_ray.core.flat_params import flatten, flatten_buffers
from fednar_ray.core.messages import EvalParams, ScoringTask
from fednar_ray.core.metric_names import SPLITS
from fednar_ray.core.reports import RoundReport
from fednar_ray.data.examples import Examples, Shards
from fednar_ray.execution.actor_pool import ActorPool
from fednar_ray.experiments.placement import open_pool, plan_execution
from fednar_ray.experiments.prepare import prepare
from fednar_ray.federated.client_summaries import compute_client_means, summarize_accuracies
from fednar_ray.federated.evaluation import TASK_BATCHES, Evaluation
from fednar_ray.federated.scoring import BATCH, CLIENTS, Scorer
from tests.support.drawn import draw

A_TASK = BATCH * TASK_BATCHES
HELD_OUT = {"test_accuracy", "test_loss", "validation_accuracy", "validation_loss"}
FEDERATED = {"client_accuracy_mean", "client_accuracy_worst_decile"}
POOLED = {"placement": "pooled", "actors": 2, "vectorize": 1}


def draw_examples(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws points around three overlapping centers, so that no model classifies all correctly."""
    labels = rng.integers(3, size=count)
    centres = np.array([[0, 1], [1, -1], [-1, -1]])
    return (centres[labels] + rng.normal(size=(count, 2))).astype(np.float32), labels


def build_overlapping(sizes: tuple[int, ...], test: int = 61, validation: int = 37) -> fr.Federation:
    rng = np.random.default_rng(1)
    return fr.Federation(
        [draw_examples(n, rng) for n in sizes], draw_examples(test, rng), draw_examples(validation, rng)
    )


def build_both_modes_model() -> nn.Sequential:
    """Builds a model that differs between training and evaluation mode, with BatchNorm and dropout."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4), nn.Linear(8, 3))


def build_experiment(
    preset: str = "fedavg",
    *,
    evaluation: dict[str, Any] | None = None,
    execution: dict[str, Any] | None = None,
    **federation: Any,
) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "federation": {"rounds": 3, "local_steps": 2, "batch_size": 16, **federation},
            "algorithm": {"name": preset, "local_lr": 0.2},
            "evaluation": evaluation or {},
            "execution": {"gpus_per_actor": 0, "cpus_per_actor": 0.5, **(execution or {"placement": "serial"})},
        }
    )


def score_by_hand(parameters: np.ndarray, buffers: np.ndarray, pair: Examples) -> tuple[np.ndarray, np.ndarray]:
    """Returns which examples the model classifies correctly, and their cross-entropies, in NumPy and float64."""
    w1, b1, scale, shift, w2, b2 = np.split(parameters.astype(float), np.cumsum([16, 8, 8, 8, 24]))
    mean, variance, _ = np.split(buffers, [8, 16])
    hidden = (pair.x @ w1.reshape(8, 2).T + b1 - mean) / np.sqrt(variance + 1e-5) * scale + shift
    outputs = np.maximum(hidden, 0) @ w2.reshape(3, 8).T + b2
    losses = np.log(np.exp(outputs).sum(axis=1)) - outputs[np.arange(len(pair)), pair.y]
    return outputs.argmax(axis=1) == pair.y, losses


def compute_metrics_by_hand(report: RoundReport, federation: fr.Federation) -> dict[str, Any]:
    """Computes every metric of an evaluation, client by client."""
    expected: dict[str, Any] = {}
    for name, split in federation.splits().items():
        right, losses = score_by_hand(report.eval_params, report.buffers, split)
        expected |= {f"{name}_accuracy": right.mean(), f"{name}_loss": pytest.approx(losses.mean(), rel=1e-5)}
    shards = [federation.shards.only(i).examples for i in range(federation.num_clients)]
    accuracies = sorted(
        score_by_hand(report.eval_params, report.buffers, shard)[0].mean() for shard in shards if len(shard)
    )
    worst = accuracies[: max(1, len(accuracies) // 10)]
    return expected | {
        "client_accuracy_mean": pytest.approx(np.mean(accuracies), abs=1e-12),
        "client_accuracy_worst_decile": pytest.approx(np.mean(worst), abs=1e-12),
    }


def select_evaluation_metrics(report: RoundReport) -> dict[str, float]:
    return {name: value for name, value in report.metrics.items() if name in HELD_OUT | FEDERATED}


def train_to_bytes(settings: fr.Experiment, session: fr.RaySession | None = None) -> bytes:
    federation, model = build_overlapping((9, 20, 14)), build_both_modes_model()
    *_, last = fr.iter_rounds(settings, federation=federation, model=model, session=session)
    return last.parameters.tobytes() + last.eval_params.tobytes() + last.buffers.tobytes()


# ——— the evaluated rounds ———


@pytest.mark.parametrize(
    ("every", "rounds", "expected"),
    [(1, 3, [0, 1, 2]), (2, 4, [1, 3]), (3, 7, [2, 5, 6]), (4, 4, [3]), (9, 4, [3])],
)
def test_every_kth_round_and_the_last_are_evaluated_and_no_other(every: int, rounds: int, expected: list[int]) -> None:
    chosen = build_experiment(evaluation={"every": every, "federated": True}, rounds=rounds)
    reports = list(fr.iter_rounds(chosen, federation=build_overlapping((5, 6)), model=nn.Linear(2, 3)))
    names = {report.round_index: set(select_evaluation_metrics(report)) for report in reports}
    assert names == {t: HELD_OUT | FEDERATED if t in expected else set() for t in range(rounds)}
    assert all("train_loss" in report.metrics for report in reports)


def test_by_default_no_client_is_scored() -> None:
    (report,) = fr.iter_rounds(build_experiment(rounds=1), federation=build_overlapping((5, 6)), model=nn.Linear(2, 3))
    assert set(select_evaluation_metrics(report)) == HELD_OUT


@pytest.mark.parametrize("preset", ["fedavg", "fedexp"])
def test_the_frequency_of_evaluation_does_not_change_training(preset: str) -> None:
    choices: list[dict[str, Any]] = [{"every": 1}, {"every": 5}, {"every": 1, "federated": True}]
    trained = {train_to_bytes(build_experiment(preset, evaluation=choice, rounds=6)) for choice in choices}
    assert len(trained) == 1


# ——— the evaluated model ———


@pytest.mark.parametrize("preset", ["fedavg", "fedexp"])
def test_the_metrics_of_every_round_are_those_of_the_reported_model_in_evaluation_mode(preset: str) -> None:
    """This includes FedExP, which evaluates an average of iterates."""
    federation, chosen = build_overlapping((9, 20, 14, 6)), build_experiment(preset, evaluation={"federated": True})
    for report in fr.iter_rounds(chosen, federation=federation, model=build_both_modes_model()):
        assert select_evaluation_metrics(report) == compute_metrics_by_hand(report, federation)


def test_running_statistics_are_averaged_over_clients_before_they_are_evaluated() -> None:
    federation, model = build_overlapping((9, 20)), build_both_modes_model()
    chosen = build_experiment(rounds=1, local_steps=1, batch_size=100)  # one batch, so the statistics are the shard's
    (report,) = fr.iter_rounds(chosen, federation=federation, model=model)
    first = model[0]
    assert isinstance(first, nn.Linear)
    hidden = [first(torch.from_numpy(federation.shards.only(i).examples.x)).detach().numpy() for i in (0, 1)]
    mean = sum(n * (0.9 * 0 + 0.1 * h.mean(axis=0)) for n, h in zip((9, 20), hidden, strict=True)) / 29
    variance = sum(n * (0.9 * 1 + 0.1 * h.var(axis=0, ddof=1)) for n, h in zip((9, 20), hidden, strict=True)) / 29
    buffers = np.concatenate([mean, variance, [1]])
    np.testing.assert_allclose(report.buffers, buffers, rtol=1e-5, atol=1e-6)
    _, losses = score_by_hand(report.eval_params, buffers, federation.test)
    assert report.metrics["test_loss"] == pytest.approx(losses.mean(), rel=1e-5)


@pytest.mark.parametrize("rows", [1, BATCH, BATCH + 1, A_TASK - 1, A_TASK, A_TASK + 1, 2 * A_TASK, 5000])
def test_any_number_of_examples_is_scored_once(rows: int) -> None:
    federation, model = build_overlapping((4, 3), test=rows, validation=rows + 1), build_both_modes_model()
    scorer = Scorer(model, federation.shards, federation.splits(), torch.device("cpu"))
    tasks: list[ScoringTask] = []

    def score(eval_params: EvalParams, wanted: Any) -> Any:
        tasks.extend(wanted)
        return (scorer.score(eval_params, task) for task in wanted)

    parameters, buffers = flatten(model), flatten_buffers(model)
    eval_params = EvalParams(round_index=0, parameters=parameters, buffers=buffers)
    metrics = Evaluation(federation, score, SPLITS, federated=False, by_client=False)(eval_params)
    for name, split in federation.splits().items():
        right, losses = score_by_hand(parameters, buffers, split)
        assert metrics[f"{name}_accuracy"] == right.mean()
        assert metrics[f"{name}_loss"] == pytest.approx(losses.mean(), rel=1e-5)
    assert max(task.stop - task.start for task in tasks) == min(rows + 1, A_TASK)


# ——— across clients ———


def compute_accuracies(clients: list[list[bool]]) -> np.ndarray:
    """Computes the accuracy of each client from predictions that are stored in one block."""
    right = np.array([answer for predictions in clients for answer in predictions], dtype=bool)
    return compute_client_means(right, np.cumsum([0, *(len(predictions) for predictions in clients)]))


def build_predictions(right: int, of: int) -> list[bool]:
    return [True] * right + [False] * (of - right)


def test_with_fewer_than_twenty_clients_the_worst_decile_is_the_worst_client() -> None:
    few = [build_predictions(3, of=4), build_predictions(50, of=100), build_predictions(1, of=1)]
    assert summarize_accuracies(compute_accuracies(few)) == {
        "client_accuracy_mean": 0.75,  # the mean of (3/4, 1/2, 1): clients have equal weight, whatever their size
        "client_accuracy_worst_decile": 0.5,  # the largest client, with 50 correct predictions
    }
    nineteen = [build_predictions(1, of=1)] * 17 + [build_predictions(1, of=4), build_predictions(1, of=2)]
    assert summarize_accuracies(compute_accuracies(nineteen))["client_accuracy_worst_decile"] == 0.25


def test_the_worst_decile_of_twenty_clients_is_two_clients_and_empty_clients_are_ignored() -> None:
    twenty = [
        build_predictions(1, of=4),
        *[build_predictions(3, of=3)] * 9,
        build_predictions(1, of=2),
        *[build_predictions(1, of=1)] * 9,
    ]
    expected = {"client_accuracy_mean": (18 + 0.25 + 0.5) / 20, "client_accuracy_worst_decile": (0.25 + 0.5) / 2}
    assert summarize_accuracies(compute_accuracies(twenty)) == expected
    with_empty = [[], *twenty[:11], [], [], *twenty[11:], *[[]] * 20]
    assert summarize_accuracies(compute_accuracies(with_empty)) == expected
    assert summarize_accuracies(compute_accuracies([[], *twenty[1:]]))["client_accuracy_worst_decile"] == 0.5


@draw(150)
@given(st.data())
def test_metrics_across_clients_are_bounded_and_ordered_and_independent_of_client_order(data: st.DataObject) -> None:
    clients = data.draw(st.lists(st.lists(st.booleans(), max_size=6), min_size=1, max_size=45).filter(has_predictions))
    metrics = summarize_accuracies(compute_accuracies(clients))
    mean, worst = metrics["client_accuracy_mean"], metrics["client_accuracy_worst_decile"]
    assert 0 <= worst <= mean + 1e-12
    assert mean <= 1 + 1e-12
    rates = sorted(Fraction(sum(client), len(client)) for client in clients if client)
    lowest = rates[: max(1, len(rates) // 10)]
    assert mean == pytest.approx(float(sum(rates) / len(rates)), abs=1e-12)
    assert worst == pytest.approx(float(sum(lowest) / len(lowest)), abs=1e-12)
    assert summarize_accuracies(compute_accuracies(data.draw(st.permutations(clients)))) == metrics


def has_predictions(clients: list[list[bool]]) -> bool:
    return any(clients)


def test_empty_clients_are_ignored_in_a_run() -> None:
    rng = np.random.default_rng(1)
    block, test = Examples(*draw_examples(29, rng)), Examples(*draw_examples(40, rng))
    shards = Shards(block, np.array([0, 0, 9, 9, 29, 29]))
    federation = fr.Federation.from_shards("gaps", shards, test, None, 0)
    chosen = build_experiment(evaluation={"federated": True})
    *_, last = fr.iter_rounds(chosen, federation=federation, model=build_both_modes_model())
    assert select_evaluation_metrics(last) == compute_metrics_by_hand(last, federation)


# ——— on actors ———


def test_scores_are_returned_in_the_order_of_their_tasks(session: fr.RaySession) -> None:
    model, federation = build_both_modes_model(), build_overlapping((9, 20, 14), test=150_000)
    prepared = prepare(build_experiment(execution=POOLED), federation, model)
    long, short = ScoringTask(split="test", start=0, stop=len(federation.test)), range(1, 16)
    tasks = [
        long,
        *(ScoringTask(split=CLIENTS, start=i, stop=2 * i) for i in short),
    ]  # task i has i rows, so that any swap is detected
    eval_params = EvalParams(round_index=0, parameters=flatten(model), buffers=flatten_buffers(model))
    with open_pool(prepared, plan_execution(prepared, session), session) as pool:
        assert isinstance(pool, ActorPool)
        scores = list(pool.score(eval_params, tasks))
    splits = {**federation.splits(), CLIENTS: federation.shards.examples}
    for task, got in zip(tasks, scores, strict=True):
        split = splits[task.split]
        rows = Examples(split.x[task.start : task.stop], split.y[task.start : task.stop])
        _, losses = score_by_hand(eval_params.parameters, eval_params.buffers, rows)
        assert len(got.correct) == len(rows)
        np.testing.assert_allclose(got.losses, losses, rtol=1e-4, atol=1e-5)


def test_splits_scored_in_many_tasks_have_the_same_metrics_as_in_one_pass(session: fr.RaySession) -> None:
    """This includes the clients' block, whose tasks end within a client."""
    federation = build_overlapping((1900, 60, 700), test=5000, validation=2 * A_TASK)
    chosen = build_experiment(evaluation={"federated": True}, execution=POOLED, rounds=2)
    reports = list(fr.iter_rounds(chosen, federation=federation, model=build_both_modes_model(), session=session))
    for report in reports:
        assert select_evaluation_metrics(report) == compute_metrics_by_hand(report, federation)


def test_evaluation_on_the_actors_does_not_change_training(session: fr.RaySession) -> None:
    alone = {"placement": "serial", "vectorize": 1}
    serial = train_to_bytes(build_experiment("scaffold", evaluation={"every": 9}, execution=alone))
    for choice in ({"every": 1}, {"every": 9}, {"every": 1, "federated": True}):
        pooled = build_experiment("scaffold", evaluation=choice, execution=POOLED)
        assert train_to_bytes(pooled, session) == serial, choice


def test_metrics_do_not_depend_on_placement(session: fr.RaySession) -> None:
    """This includes clients that were not sampled; each dedicated actor scores its own client."""
    federation, metrics = build_overlapping((9, 60, 25)), {}
    dedicated = {"placement": "dedicated"}
    for execution in ({"placement": "serial", "vectorize": 1}, POOLED, dedicated):
        chosen = build_experiment(evaluation={"every": 2, "federated": True}, execution=execution, clients_per_round=2)
        reports = list(fr.iter_rounds(chosen, federation=federation, model=build_both_modes_model(), session=session))
        metrics[execution["placement"]] = [select_evaluation_metrics(report) for report in reports]
        assert select_evaluation_metrics(reports[-1]) == compute_metrics_by_hand(reports[-1], federation)
    assert [len(names) for names in metrics["serial"]] == [0, 6, 6]
    assert metrics["serial"] == metrics["pooled"] == metrics["dedicated"]
