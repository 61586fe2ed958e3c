"""A run ends once its validation metric has not improved for a number of rounds."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fednar_ray as fr
from fednar_ray.core.reports import RoundReport
from tests.support.drawn import draw

EMPTY = np.zeros(0, dtype=np.float32)
INFO = fr.RunInfo(name="small", rounds=30, primary="accuracy", metrics=("test_accuracy", "validation_accuracy"))


def build_report(round_index: int, value: float | None, metric: str = "validation_accuracy") -> RoundReport:
    return RoundReport(
        round_index=round_index,
        metrics={} if value is None else {metric: value},
        client_ids=(),
        exclusions={},
        parameters=EMPTY,
        eval_params=EMPTY,
        buffers=EMPTY,
    )


def count_rounds(
    callback: fr.EarlyStopping, values: Sequence[float | None], resumed: int = 0, metric: str = "validation_accuracy"
) -> int:
    """Returns after how many rounds the callback ends a run with these values."""
    callback.on_prepare(INFO)
    reports = [build_report(index, value, metric) for index, value in enumerate(values)]
    callback.on_resume(reports[:resumed])
    for report in reports[resumed:]:
        try:
            callback.on_round_end(report)
        except fr.StopRun:
            return report.round_index + 1
    return len(values)


@pytest.mark.parametrize(
    ("values", "rounds"),
    [
        ([0.1, 0.2, 0.3, 0.4], 4),  # it improves
        ([0.5, 0.4, 0.4, 0.6], 3),  # two rounds without an improvement
        ([0.5, 0.5, 0.5, 0.5], 3),  # the same value is none
        ([0.5, 0.4, 0.6, 0.5, 0.5, 0.9], 5),  # counted from the best round
        ([0.5, None, None, 0.4], 4),  # rounds without the metric decide nothing, but they pass
        ([0.5, math.nan, math.nan, 0.9], 3),
        ([math.nan, 0.5, 0.4, 0.6], 4),
    ],
)
def test_a_run_ends_after_rounds_without_an_improvement(values: list[float | None], rounds: int) -> None:
    assert count_rounds(fr.EarlyStopping(2), values) == rounds


def test_a_loss_improves_downward_and_small_changes_may_not_count() -> None:
    losses = [1.0, 0.9, 0.8, 0.7, 0.6]
    loss = "train_loss"
    assert count_rounds(fr.EarlyStopping(2, metric=loss), losses, metric=loss) == 5
    assert count_rounds(fr.EarlyStopping(2, metric=loss), losses[::-1], metric=loss) == 3
    assert count_rounds(fr.EarlyStopping(2, metric=loss, min_change=0.15), losses, metric=loss) == 5
    assert count_rounds(fr.EarlyStopping(2, metric=loss, min_change=0.5), losses, metric=loss) == 3


@draw(50)
@given(
    values=st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=1, max_size=20),
    patience=st.integers(1, 5),
    data=st.data(),
)
def test_a_resumed_run_ends_in_the_same_round(values: list[float | None], patience: int, data: st.DataObject) -> None:
    callback = fr.EarlyStopping(patience)
    rounds = count_rounds(callback, values)
    resumed = data.draw(st.integers(0, rounds - 1))
    assert count_rounds(callback, values, resumed) == rounds  # the same instance forgets the earlier run


def test_the_reason_names_the_best_round() -> None:
    callback = fr.EarlyStopping(1)
    callback.on_prepare(INFO)
    callback.on_round_end(build_report(0, 0.25))
    with pytest.raises(fr.StopRun) as stopped:
        callback.on_round_end(build_report(1, 0.2))
    assert stopped.value.reason == (
        "validation accuracy has not improved for 1 rounds; its best value was 0.250, in round 1"
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"patience": 0}, "EarlyStopping.patience: 0: should be a whole number"),
        ({"patience": True}, "EarlyStopping.patience: True"),
        ({"patience": 1.5}, r"EarlyStopping.patience: 1\.5"),
        ({"min_change": -1}, "EarlyStopping.min_change: -1"),
        ({"min_change": math.nan}, "EarlyStopping.min_change: nan"),
        ({"metric": "test_accuracy"}, "a test metric cannot end a run"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], says: str) -> None:
    with pytest.raises(fr.ConfigError, match=says):
        fr.EarlyStopping(**arguments)  # type: ignore[arg-type]


def test_a_metric_that_rounds_do_not_report_is_refused() -> None:
    with pytest.raises(fr.ConfigError, match="'validation_los': rounds do not report it; use one of validation_acc"):
        fr.EarlyStopping(metric="validation_los").on_prepare(INFO)
    without = fr.RunInfo(name="small", rounds=3, primary="accuracy", metrics=("test_accuracy",))
    with pytest.raises(fr.ConfigError, match=r"use one of train_loss; set data\.validation=0\.1"):
        fr.EarlyStopping().on_prepare(without)
