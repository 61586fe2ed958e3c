"""The notes that MLflow shows first: the answer, and key figures."""

from dataclasses import replace

import fednar_ray as fr
from fednar_ray.core.reports import RoundRecord
from fednar_ray.report.axes import format_values
from fednar_ray.report.facts import RunFacts
from fednar_ray.report.notes import note_comparison, note_run, note_search
from fednar_ray.report.search_answer import SearchOutcome, describe_search

TRIALS = [
    {"name": "trial-0002", "value": 0.9, "values": {"regularizer.clip_bound": 3.16228, "regularizer.name": "fednar"}},
    {"name": "trial-0001", "value": None, "values": {"regularizer.clip_bound": 1.0, "regularizer.name": "none"}},
]


def build_record(t: int, **metrics: float) -> RoundRecord:
    return RoundRecord(round_index=t, metrics=metrics, client_ids=(), exclusions={})


def test_values_are_shown_by_their_symbols() -> None:
    values = {"regularizer.clip_bound": 3.16228, "regularizer.weight_decay_anneal": 0.97, "federation.batch_size": 16}
    assert format_values({**values, "regularizer.name": "fednar"}) == "A=3.16 γ_λ=0.97 batch_size=16 fednar"


def test_the_note_of_a_run_has_its_answer_and_its_best_round() -> None:
    history = [
        build_record(t, test_rmse=value, bytes_up=5e5, client_seconds=1800.0) for t, value in enumerate((2, 1, 3))
    ]
    note = note_run(fr.Experiment(), history, "rmse", RunFacts(), "report.html")
    assert note.answer == "After 3 rounds the model reaches a test rmse of 3."
    assert (note.figures["test rmse, best round"], note.figures["sent, down and up"]) == ("1", "1.5 MB")
    assert note.figures["training, all clients"] == "1.5 h"
    assert "report.html" in note.build_markdown()
    assert note.picture == "curves.png"


def test_a_run_that_was_never_tested_has_a_note_too() -> None:
    assert "nothing was evaluated" in note_run(fr.Experiment(), [build_record(0)], "accuracy", RunFacts()).answer


def test_the_note_of_a_comparison_lists_its_rows() -> None:
    cells = [
        {"regularizer": name, "weight decay": "0.01", "final rmse": value, "difference": difference}
        for name, value, difference in (("decoupled", "0.8 ± 0.1", "–"), ("fednar", "0.9 ± 0.1", "+0.1"))
    ]
    note = note_comparison(["FedNAR is better.", "It costs the same."], cells, "k", "report.html")
    assert note.figures == {
        "decoupled, weight decay 0.01: final rmse": "0.8 ± 0.1",
        "fednar, weight decay 0.01: final rmse": "0.9 ± 0.1 (+0.1)",
    }
    assert note.build_markdown().startswith("**FedNAR is better. It costs the same.**")


def test_the_note_of_a_search_has_the_answer_of_its_page() -> None:
    outcome = SearchOutcome(
        trials=2,
        metric="validation_loss",
        best_value=0.9,
        best_values={"regularizer.clip_bound": 3.16228},
        test_metric="test_accuracy",
        best_tests=(0.8, 0.81),
        baseline_tests=(0.7, 0.72),
    )
    note = note_search(outcome, TRIALS, "k", "report/index.html")
    assert note.picture == "report/best_and_baseline.png"
    assert note.answer == " ".join(describe_search(outcome))
    assert note.answer.startswith("The best of 2 trials reaches a validation loss of 0.900; trained again, it ends at")
    assert "+9.5 points (95 % interval " in note.answer
    assert note.answer.endswith("It has clip bound A = 3.162.")
    assert note.figures == {"trial-0002: A=3.16 fednar": "validation loss 0.9"}
    for clipped, told in (
        (0.0, "At the best bound no step is clipped"),
        (0.43, "The best bound clips 43 % of the steps."),
    ):
        assert told in note_search(replace(outcome, clipped=clipped), TRIALS, "k").answer
    for changes, named in (
        ({"regularizer.name": "decoupled"}, "the baseline (decoupled decay) at 0.710"),
        ({"regularizer.name": "none", "regularizer.clip_bound": 2.0}, "(no weight decay, clip bound A = 2) at"),
        ({}, "the baseline (the settings from before the search) at"),
        (None, "the baseline at 0.710"),  # a search of an earlier version
    ):
        assert named in note_search(replace(outcome, baseline_changes=changes), TRIALS, "k").answer
    worse = replace(outcome, test_metric="test_rmse", best_tests=(0.8, 0.81), baseline_tests=(0.1, 0.12))
    assert "worse beyond luck with 2 seeds" in note_search(worse, TRIALS, "k").answer
