"""The phases that a round's time is divided into."""

import pytest

import fednar_ray as fr
from fednar_ray.core.timing import DURATIONS, PHASES
from tests.conftest import build_small_federation


def run_rounds(**more: object) -> list[fr.RoundReport]:
    settings = {
        "model": {"hidden": 4},
        "federation": {"rounds": 4, "local_steps": 2},
        "execution": {"placement": "serial"},
        **more,
    }
    return list(fr.iter_rounds(fr.Experiment.model_validate(settings), federation=build_small_federation((7, 30, 12))))


@pytest.mark.parametrize("more", [{}, {"screening": {"max_deviation": 10}}], ids=["summed at once", "looked at first"])
def test_phases_add_up_to_the_round(more: dict[str, object]) -> None:
    for report in run_rounds(**more, evaluation={"every": 2}):
        seconds = {phase: report.metrics[f"seconds/{phase}"] for phase in PHASES}
        assert min(seconds.values()) >= 0
        assert sum(seconds.values()) - seconds["log"] == pytest.approx(report.metrics["round_seconds"])
        assert report.metrics["client_seconds"] <= seconds["train"]  # the driver's own process trains
        assert (seconds["evaluate"] > 0) == (report.round_index % 2 == 1)
        assert (seconds["log"] > 0) == (report.round_index > 0)


def test_only_durations_differ_from_run_to_run() -> None:
    for first, second in zip(run_rounds(), run_rounds(), strict=True):
        unlike = {name for name, value in first.metrics.items() if value != second.metrics[name]}
        assert unlike <= set(DURATIONS) <= first.metrics.keys()
