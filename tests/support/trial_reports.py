"""Reports of trials, as trials send them to Tune."""

from typing import Any

from fednar_ray.tuning.trial_report import TrialReport


def build_report(**fields: Any) -> TrialReport:
    """Builds the report of a trial that has trained two rounds and is not done, with other values in ``fields``."""
    usual = {"value": 0.5, "rounds": 2, "lines": ("{}",), "failure": None, "train_seconds": 1.5, "group_size": 4}
    usual |= {"compiled": False, "lineage": None}
    return TrialReport(**{**usual, "done": False, "should_checkpoint": False, **fields})
