"""The table of a comparison says what its numbers are, and shows them as a reader would write them."""

import numpy as np
import pytest

from fednar_ray.config import CompareSettings
from fednar_ray.core.metric_names import format_metric_value, format_spread
from fednar_ray.core.reports import RoundRecord
from fednar_ray.report.comparison_answer import explain_values
from fednar_ray.report.comparison_table import Outcome, Row, build_rows, shows_target
from fednar_ray.report.run_plots import Variant


def build(values: list[float], others: list[float], settings: CompareSettings, metric: str = "test_rmse") -> list[Row]:
    """Builds the rows of decoupled decay and FedNAR, whose runs have one round and these values by seed."""

    def train(value: float) -> Outcome:
        metrics = {metric: value, "bytes_down": 1e6, "bytes_up": 1e6, "client_seconds": 1.0, "round_seconds": 1.0}
        return Outcome((RoundRecord(round_index=0, metrics=metrics, client_ids=(), exclusions={}),), ())

    runs = {
        Variant(0.1, "decoupled"): [train(value) for value in values],
        Variant(0.1, "fednar"): [train(value) for value in others],
    }
    return list(build_rows(runs, settings))


@pytest.mark.parametrize(
    ("metric", "value", "written"),
    [
        ("rmse", 32350.49, "32350"),
        ("rmse", 9999.4, "9999"),
        ("rmse", 1.23456, "1.235"),
        ("rmse", 0.00012345, "0.0001234"),
        ("rmse", -123456.7, "-123457"),
        ("rmse", 3.2e12, "3.2e+12"),
        ("auc", 0.98765, "0.988"),
    ],
)
def test_a_value_has_an_exponent_only_if_it_is_very_large(metric: str, value: float, written: str) -> None:
    assert format_metric_value(metric, value) == written


def test_a_spread_has_two_digits_or_all_whole_ones() -> None:
    assert [format_spread("rmse", value) for value in (410.3, 41.03, 0.4103)] == ["410", "41", "0.41"]


def test_large_errors_are_written_without_exponents() -> None:
    settings = CompareSettings(seeds=2, final_rounds=1)
    first, second = build([32000.0, 33000.0], [31000.0, 31500.0], settings)
    assert first.format_cells()["final rmse"] == "32500 ± 707"
    assert second.format_cells()["difference"].startswith("-1250 ± ")


def test_no_difference_is_a_negative_zero() -> None:
    rows = build([0.5, 0.5], [0.5 - 1e-9, 0.5 - 1e-9], CompareSettings(seeds=2), "test_accuracy")
    assert rows[1].format_cells()["difference"] == "+0.000 ± 0.000"


def test_the_numbers_behind_the_text_are_those_of_the_seeds() -> None:
    rows = build([1.0, 2.0], [1.5, np.inf], CompareSettings(seeds=2))
    assert rows[0].numbers == {"rmse by seed": [1.0, 2.0], "mean difference": None, "interval": None}
    assert rows[1].numbers["rmse by seed"] == [1.5, None]


def test_columns_of_the_target_need_a_target_or_a_run_that_reached_it() -> None:
    for settings, reached, shown in (
        (CompareSettings(seeds=1), 0.5, False),  # the default target, which nobody asked for
        (CompareSettings(seeds=1), 0.9, True),
        (CompareSettings(seeds=1, target_accuracy=0.95), 0.5, True),
    ):
        rows = build([0.4], [reached], settings, "test_accuracy")
        assert shows_target(rows, settings) == shown
    assert "rounds to target" not in rows[0].format_cells(with_target=False)


def test_the_explanation_names_the_rounds_both_spreads_and_the_test_set() -> None:
    settings = CompareSettings(seeds=2, final_rounds=5)
    text = explain_values(build([1.0, 2.0], [1.5, 2.5], settings), settings)
    for words in ("the mean over the last 5 rounds", "± their standard deviation", "to decoupled", "95 % interval",
                  "All seeds have the same test set"):  # fmt: skip
        assert words in text
    single = CompareSettings(seeds=1, final_rounds=1)
    assert (
        explain_values(build([1.0], [1.5], single), single) == "Final rmse is that of the last round, on the test set."
    )


def test_an_alert_of_several_seeds_is_told_once_per_row() -> None:
    record = RoundRecord(
        round_index=0,
        metrics={"test_accuracy": 0.5, "bytes_down": 1.0, "bytes_up": 1.0, "client_seconds": 1.0, "round_seconds": 1.0},
        client_ids=(),
        exclusions={},
    )
    runs = [Outcome((record,), ("stalls",), (f"chance ({seed})",)) for seed in (1, 2)] + [Outcome((record,), ())]
    (row,) = build_rows({Variant(0.1, "decoupled"): runs}, CompareSettings(seeds=3))
    assert row.alert_lines == ("stalls (2 of 3 seeds): chance (1)",)
