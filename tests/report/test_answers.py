"""The sentence about a result says what is better, in the direction of the metric."""

import pytest

import fednar_ray as fr
from fednar_ray.core.reports import RoundRecord
from fednar_ray.report.answers import describe_comparison, describe_run, describe_search
from fednar_ray.report.axes import format_values

TRIALS = [
    {"name": "trial-0002", "value": 0.9, "values": {"regularizer.clip_bound": 3.16228, "regularizer.name": "fednar"}},
    {"name": "trial-0001", "value": None, "values": {"regularizer.clip_bound": 1.0, "regularizer.name": "none"}},
]


def build_record(t: int, **metrics: float) -> RoundRecord:
    return RoundRecord(round_index=t, metrics=metrics, client_ids=(), exclusions={})


def test_values_are_shown_by_their_symbols() -> None:
    values = {"regularizer.clip_bound": 3.16228, "regularizer.weight_decay_anneal": 0.97, "federation.batch_size": 16}
    assert format_values({**values, "regularizer.name": "fednar"}) == "A=3.16 γ_λ=0.97 batch_size=16 fednar"


def test_a_run_is_described_by_its_last_and_its_best_round() -> None:
    history = [
        build_record(t, test_rmse=value, bytes_up=5e5, client_seconds=1800.0) for t, value in enumerate((2, 1, 3))
    ]
    note = describe_run(fr.Experiment(), history, "rmse")
    assert note.answer == "fedavg with fednar reaches a test rmse of 3 after 3 rounds."
    assert (note.figures["test rmse, best round"], note.figures["sent, down and up"]) == ("1", "1.5 MB")
    assert note.figures["client-hours"] == "1.5"


def test_a_run_that_was_never_tested_has_an_answer_too() -> None:
    assert "without a test" in describe_run(fr.Experiment(), [build_record(0)], "accuracy").answer


@pytest.mark.parametrize(("measure", "best"), [("accuracy", "fednar"), ("rmse", "decoupled")])
def test_the_best_variant_of_a_comparison_follows_from_the_metric(measure: str, best: str) -> None:
    cells = [
        {"regularizer": name, "weight decay": "0.01", f"final {measure}": value, "difference": difference}
        for name, value, difference in (
            ("decoupled", "0.8 ± 0.1", "–"),
            ("fednar", "0.9 ± 0.1", "+0.1"),
            ("none", "not finite", "–"),
        )
    ]
    note = describe_comparison(cells, measure, 2, "k")
    assert note.answer.startswith(f"Of 3 variants, {best}, weight decay 0.01 is best: test {measure}")
    assert note.figures[f"fednar, weight decay 0.01: test {measure}"] == "0.9 ± 0.1 (+0.1)"


def test_a_search_is_compared_with_its_baseline() -> None:
    keys = ["regularizer.clip_bound"]
    note = describe_search(TRIALS, keys, "validation_loss", "test_accuracy", (0.8, 0.7), "k")
    assert note.answer == "Best of 2 trials: A=3.16. Test accuracy 0.800, better than the baseline's 0.700."
    assert list(note.figures) == ["trial-0002: A=3.16 fednar"]
    worse = describe_search(TRIALS, keys, "validation_rmse", "test_rmse", (0.8, 0.7), "k")
    assert "no better than" in worse.answer
