"""Builds the experiments of trials, and keeps what all trials of a search share."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fednar_ray.config import Experiment, SearchSettings, build_variant
from fednar_ray.experiments.given import NOTHING_GIVEN, Given
from fednar_ray.tuning.trial_report import TrialReport


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPlan:
    """The experiment that trials vary, and the reports of trials that have already ended.

    Attributes:
        raw: The experiment section as the user wrote it.
        execution: The execution section of every trial.
        search: The search section.
        recorded: The last reports of ended trials that Tune would train again. The key is Tune's trial id or, for a
            trial that Tune forgot and proposes again under a new id, the ``build_values_key`` of its values.
        given: The objects that replace sections of the experiment.
    """

    raw: Mapping[str, Any]
    execution: Mapping[str, Any]
    search: SearchSettings
    recorded: Mapping[str, TrialReport] = field(default_factory=dict)
    given: Given = NOTHING_GIVEN

    def find_recorded(self, trial_id: str, values: Mapping[str, Any]) -> TrialReport | None:
        """Returns the last report of a trial that ended before the search was resumed; None for other trials."""
        return self.recorded.get(trial_id) or self.recorded.get(build_values_key(values))

    def build_experiment(self, values: Mapping[str, Any]) -> Experiment:
        """Builds the experiment of one trial from its values by searched key.

        It is evaluated at least whenever the trial reports.

        Raises:
            ConfigError: The values do not fit the experiment.
        """
        experiment = build_variant({**self.raw, "execution": dict(self.execution)}, values)
        report = self.search.choose_report_rounds(experiment.federation.rounds)
        every = experiment.evaluation.every
        evaluation = experiment.evaluation.model_copy(update={"every": every if report % every == 0 else report})
        return experiment.model_copy(update={"evaluation": evaluation})


def to_plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Converts NumPy scalars, which Tune draws, to Python's own types."""
    return {key: value.item() if hasattr(value, "item") else value for key, value in values.items()}


def build_values_key(values: Mapping[str, Any]) -> str:
    """Returns a trial's values as text that identifies them, whether they come from Tune or from a file."""
    return json.dumps(to_plain_values(values), sort_keys=True, default=str)


def vary_seed(experiment: Experiment, seeds: int) -> list[Experiment]:
    """Returns copies of the experiment whose seeds count up from its own."""
    return [experiment.model_copy(update={"seed": experiment.seed + i}) for i in range(seeds)]
