"""What a notebook shows of a comparison, from the outcomes of its runs."""

from pathlib import Path

from fednar_ray.config import CompareSettings
from fednar_ray.experiments.comparison.view import ComparedRun, build_comparison_frame
from tests.report.test_pages import BETTER, build_outcomes


def test_a_frame_begins_with_the_run_its_result_and_what_was_compared() -> None:
    runs = [
        ComparedRun(variant=variant, seed=seed, directory=Path(f"runs/{variant.regularizer}-{seed}"), outcome=outcome)
        for variant, outcomes in build_outcomes(BETTER).items()
        for seed, outcome in enumerate(outcomes)
    ]
    frame = build_comparison_frame(runs, CompareSettings(seeds=3, final_rounds=1), "accuracy")
    assert list(frame) == [
        "run", "final_accuracy", "difference", "regularizer", "weight_decay", "seed", "rounds_to_target",
        "bytes_to_target", "clip_fraction", "client_seconds", "wall_seconds", "alerts",
    ]  # fmt: skip
    assert frame["run"].tolist()[:2] == ["decoupled-0", "fednar-0"]
    assert frame["final_accuracy"].tolist()[:2] == [0.7, 0.9]
