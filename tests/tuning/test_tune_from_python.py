"""``fr.tune`` runs the search of ``fednar tune``, and takes data, a model and metrics as objects."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fednar_ray as fr
from fednar_ray.report.search_answer import describe_clipping
from fednar_ray.tuning.search_view import build_search_chart, build_search_frame, summarize_search, tabulate_search
from fednar_ray.tuning.trial_table import FAILED, FINISHED, STOPPED, TrialEntry
from tests.support.searches import IGNORED_WARNINGS

pytestmark = IGNORED_WARNINGS

RATE, BOUND = "algorithm.local_lr", "regularizer.clip_bound"
SPACE = {RATE: {"grid": [0.02, 0.3]}}


def build_experiment(uri: str, **sections: Any) -> fr.Experiment:
    base = {
        "name": "small",
        "federation": {"rounds": 3, "local_steps": 2},
        "checkpoint": {"every": None},
        "execution": {"placement": "serial"},
        "tracking": {"uri": uri},
    }
    return fr.Experiment.model_validate({**base, **sections})


def build_federation() -> fr.Federation:
    rng = np.random.default_rng(0)

    def points(count: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.normal(size=(count, 2)).astype(np.float32)
        return x, (x[:, 0] > 0).astype(np.int64)

    return fr.Federation([points(30) for _ in range(3)], test=points(40), validation=points(40))


@pytest.mark.usefixtures("searches")
def test_trials_in_other_processes_get_the_data_the_model_and_the_metrics(uri: str, session: fr.RaySession) -> None:
    federation = build_federation()
    torch.manual_seed(0)
    model, bias = nn.Linear(2, 2), 0.25

    class StopAfterTwo(fr.RoundCallback):
        def on_round_end(self, report: fr.RoundReport) -> None:
            if report.round_index == 1:
                raise fr.StopRun("two rounds are enough")

    def shifted_accuracy(y: np.ndarray, predictions: np.ndarray) -> float:
        return float((y == predictions).mean()) + bias

    experiment = build_experiment(uri)
    result = fr.tune(
        experiment,
        space=SPACE,
        metric="validation_shifted_accuracy",
        algorithm="grid",
        name="objects",
        federation=federation,
        model=model,
        metrics=[shifted_accuracy],
        callbacks=[StopAfterTwo()],
        session=session,
    )
    assert (result.metric, result.mode, result.name) == ("validation_shifted_accuracy", "max", "objects")
    frame = result.to_frame()
    assert frame["status"].tolist() == [FINISHED] * 2  # also of a trial that a callback has ended
    assert frame["rounds"].tolist() == [2, 2]
    assert {entry.ended for entry in result.trials} == {"two rounds are enough"}
    assert result.rounds_saved == 2
    assert fr.load(result.best_file).federation.rounds == 2
    for _, row in frame.iterrows():
        algorithm = experiment.algorithm.model_copy(update={"local_lr": row[RATE]})
        varied = experiment.model_copy(update={"algorithm": algorithm})
        alone = list(fr.iter_rounds(varied, federation=federation, model=model))[1]
        assert row["validation_shifted_accuracy"] == pytest.approx(alone.metrics["validation_accuracy"] + bias)
    best = fr.run(fr.load(result.best_file), federation=federation, model=model, metrics=[shifted_accuracy])
    assert best.metrics["test_accuracy"] == result.best_test
    shares = [record.metrics["clip_fraction"] for record in best.history]
    assert result.clipped == pytest.approx(sum(shares) / len(shares))
    assert result.report is not None
    assert str(describe_clipping(result.clipped)) in result.report.page.read_text()  # as fednar tune prints it
    assert "<svg" in result._repr_html_()
    assert repr(result).startswith("<search of 2 trials, best validation shifted accuracy ")


def test_what_cannot_be_searched_is_refused_before_anything_starts(uri: str) -> None:
    given = {"federation": build_federation(), "model": nn.Linear(2, 2)}
    experiment = build_experiment(uri)
    replaced = {"data.partition.clients": {"grid": [2, 3]}, "model.hidden": {"grid": [4, 8]}}

    lock = threading.Lock()

    def locked(y: np.ndarray, predictions: np.ndarray) -> float:
        with lock:
            return 0.5

    cases: list[tuple[dict[str, Any], str]] = [
        ({"experiment": None}, "experiment: missing"),
        ({"space": None}, "space: missing"),
        ({"resume": "small"}, "takes no experiment and no settings"),
        ({"trials": 0}, "search.trials: 0"),
        ({"metric": "test_accuracy"}, "a test metric cannot guide a search"),
        ({"metric": "validation_los"}, "search.metric: 'validation_los'"),
        ({"seedz": 3}, "search.seedz"),
        ({"space": {"algorithm.local_rl": {"uniform": [0, 1]}}}, "local_rl"),
        ({"metrics": [locked]}, "metrics: .*:locked: cannot be sent to other processes: cannot pickle"),
        ({"federation": None}, "data: missing"),
        ({"callbacks": [fr.EarlyStopping(metric="validation_auc")]}, "EarlyStopping.metric: 'validation_auc'"),
        ({"callbacks": [lambda: lock]}, "callbacks: 0: .* cannot be sent to other processes"),
    ]
    for change, says in cases:
        arguments = {"experiment": experiment, "space": SPACE, "algorithm": "grid", **given, **change}
        with pytest.raises(fr.BadInput, match=says):
            fr.tune(**arguments)
    whole = build_experiment(uri, data={"source": "digits"}, model={"name": "mlp"})
    with pytest.raises(fr.ConfigError) as caught:
        fr.tune(whole, space=replaced, algorithm="grid", **given)
    assert "data.partition.clients" in str(caught.value)
    assert not Path("searches").exists() or not list(Path("searches").glob("[!.]*"))


def build_trials() -> list[TrialEntry]:
    """Returns trials, best first, of which the third one failed and the fourth was stopped."""
    values = [(0, FINISHED, 0.7), (3, FINISHED, 0.6), (2, FAILED, 0.0), (1, STOPPED, 0.9)]
    return [
        TrialEntry(
            name=f"trial-{number:04d}",
            values={BOUND: 1.0 + number, "regularizer.name": "fednar"},
            status=status,
            value=value,
            rounds=3,
            failure="it broke" if status == FAILED else None,
        )
        for number, status, value in values
    ]


def test_a_frame_has_one_row_per_trial() -> None:
    frame = build_search_frame(build_trials(), "validation_accuracy")
    assert list(frame) == [
        "trial", "validation_accuracy", BOUND, "regularizer.name", "status", "rounds", "seconds", "failure",
    ]  # fmt: skip
    assert frame["trial"].tolist() == ["trial-0000", "trial-0003", "trial-0002", "trial-0001"]
    assert frame["validation_accuracy"].tolist() == [0.7, 0.6, 0.0, 0.9]
    assert frame[BOUND].tolist() == [1.0, 4.0, 3.0, 2.0]
    assert frame["failure"].tolist()[2] == "it broke"


def test_the_chart_shows_trials_in_their_order_and_the_best_complete_one_so_far() -> None:
    best, dots = build_search_chart(build_trials(), "s", "validation_accuracy", "max").lines
    assert dots.x.tolist() == [0, 1, 3]  # the failed one has no value
    assert dots.y.tolist() == [0.7, 0.9, 0.6]
    assert best.y.tolist() == [0.7, 0.7, 0.7]  # a trial that was stopped early is not comparable
    lowest, _ = build_search_chart(build_trials(), "s", "validation_loss", "min").lines
    assert lowest.y.tolist() == [0.7, 0.7, 0.6]
    (over,) = build_search_chart(build_trials(), "s", "validation_accuracy", "max", BOUND).lines
    assert over.x.tolist() == [1.0, 2.0, 4.0]
    with pytest.raises(fr.BadInput, match=r"was not searched; use one of regularizer\.clip_bound, regularizer.name"):
        build_search_chart(build_trials(), "s", "m", "max", RATE)
    with pytest.raises(fr.BadInput, match="'fednar', which is not a number"):
        build_search_chart(build_trials(), "s", "m", "max", "regularizer.name")


def test_a_search_is_described_by_its_best_trial() -> None:
    trials = build_trials()
    assert summarize_search(trials, trials[0], "validation_accuracy") == (
        "search of 4 trials, best validation accuracy 0.7: regularizer.clip_bound=1, regularizer.name=fednar"
    )
    assert tabulate_search(trials, "validation_accuracy")[1] == ("trial-0000", "finished", "3", "0.7", "1", "fednar")
