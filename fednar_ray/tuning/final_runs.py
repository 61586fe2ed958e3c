"""Trains a search's best experiment and its baseline again, as separate runs that measure test metrics."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Literal

import numpy as np

from fednar_ray.algorithms.regularizers import CLIPPING
from fednar_ray.config import Document, Experiment, SearchSettings
from fednar_ray.core.errors import CheckpointError, ConfigError
from fednar_ray.core.generators import drain
from fednar_ray.core.reports import RoundReport
from fednar_ray.core.stages import announce, update
from fednar_ray.execution.session import RaySession
from fednar_ray.experiments.given import NOTHING_GIVEN, Given
from fednar_ray.experiments.result import Result
from fednar_ray.experiments.resume import Resumption, resume_from
from fednar_ray.experiments.train import train
from fednar_ray.report.run_plots import find_last, find_measure
from fednar_ray.tracking.reading import find_mlflow_run
from fednar_ray.tracking.run_views import format_rank
from fednar_ray.tracking.searches import ANOTHER_SEED
from fednar_ray.tracking.store import Store
from fednar_ray.tracking.tags import KIND_TAG, PARENT_TAG, RANK_TAG, SEARCH_TAG
from fednar_ray.tuning.trial_plan import TrialPlan, vary_seed
from fednar_ray.tuning.trial_table import TrialEntry, TrialTable

log = logging.getLogger("fednar_ray")

Role = Literal["best", "baseline"]
STAGES: Mapping[Role, str] = {"best": "training the best trial once more", "baseline": "training the baseline"}


def count_final_runs(search: SearchSettings) -> int:
    """Counts the final runs of a search, which have the first places in its saved view."""
    return len(STAGES) * search.seeds


@dataclass(frozen=True, slots=True)
class FinalRuns:
    """The runs of the best experiment and of the baseline, one run per seed each."""

    best: Sequence[Result]
    baseline: Sequence[Result]

    @property
    def test_metric(self) -> str:
        """The primary metric on the test set, such as ``test_accuracy``."""
        return find_measure(self.best[0].history, self.best[0].primary).metric

    @property
    def best_test(self) -> float:
        """The test metric of the best experiment, averaged over the seeds."""
        return float(np.mean(self.best_tests))

    @property
    def baseline_test(self) -> float:
        """The test metric of the baseline, averaged over the seeds."""
        return float(np.mean(self.baseline_tests))

    @property
    def clipped(self) -> float | None:
        """The share of steps that the best experiment's bound clips, averaged over rounds and seeds.

        None if its regularizer does not clip, or no step was taken.
        """
        if self.best[0].experiment.regularizer.name not in CLIPPING:
            return None
        shares = [record.metrics.get("clip_fraction") for run in self.best for record in run.history]
        known = [share for share in shares if share is not None]
        return fmean(known) if known else None

    @property
    def best_tests(self) -> list[float]:
        """The test metric of the best experiment, by seed."""
        return [get_last(run, self.test_metric) for run in self.best]

    @property
    def baseline_tests(self) -> list[float]:
        """The test metric of the baseline, by seed."""
        return [get_last(run, self.test_metric) for run in self.baseline]


class FinalTraining:
    """Trains the final runs of a search.

    If the search is resumed, final runs of the earlier process are read if they are finished, and resumed if not.
    """

    def __init__(
        self,
        document: Document,
        table: TrialTable,
        store: Store,
        session: RaySession,
        given: Given = NOTHING_GIVEN,
        *,
        resume: bool,
    ) -> None:
        assert document.search is not None
        self._given = given
        self._document, self._search, self._table = document, document.search, table
        self._store, self._session, self._resume = store, session, resume
        self._with_callbacks = True  # whether callbacks see the best experiment; those that ended its trial do not

    def build_best(self, plan: TrialPlan, best: TrialEntry) -> Experiment:
        """Builds the experiment of the best trial, with all changes that population-based training made to it.

        If a callback has ended the trial, the experiment has only as many rounds.
        """
        self._with_callbacks = best.ended is None
        experiment = plan.build_experiment(best.initial_values)
        changes = None if best.lineage is None else best.lineage.changes
        changed = Experiment.model_validate(
            {**experiment.model_dump(exclude_none=True, exclude_unset=True), "changes": changes}
        )
        if best.ended is not None:  # the same rounds, without the callbacks that ended them
            federation = changed.federation.model_copy(update={"rounds": best.rounds})
            changed = changed.model_copy(update={"federation": federation})
        return self._build_single_run(changed, "best", best)

    def train(self, best: Experiment) -> FinalRuns:
        """Trains the best experiment and the baseline."""
        baseline = self._build_single_run(self._document.build_variant(self._search.baseline), "baseline", None)
        return FinalRuns(self._train_seeds("best", best), self._train_seeds("baseline", baseline))

    def _build_single_run(self, experiment: Experiment, role: Role, trial: TrialEntry | None) -> Experiment:
        """Builds a trial's experiment for a separate run, with the file's placement and evaluation."""
        own = self._document.experiment
        execution = own.execution
        if trial is not None and trial.group_size is not None:
            resolved = {"vectorize": trial.group_size, "compile": "on" if trial.compiled else "off"}
            execution = execution.model_copy(update=resolved)
        tracking = own.tracking.model_copy(update={"experiment": own.tracking.experiment or own.name})
        return experiment.model_copy(
            update={
                "name": f"{self._table.name}-{role}",
                "execution": execution,
                "evaluation": own.evaluation,
                "tracking": tracking,
            }
        )

    def _train_seeds(self, role: Role, experiment: Experiment) -> list[Result]:
        results = []
        first = list(STAGES).index(role) * self._search.seeds
        for index, each in enumerate(vary_seed(experiment, self._search.seeds)):
            kind = role if index == 0 else f"{role}{ANOTHER_SEED}"
            tags = {PARENT_TAG: self._table.parent_id, KIND_TAG: kind, SEARCH_TAG: self._table.name}
            tags[RANK_TAG] = format_rank(first + index)
            announce(STAGES[role])
            name = role if index == 0 else f"{role}, seed {each.seed}"
            resumption = self._find_resumption(each) if self._resume else None
            settings = self._place(each if resumption is None else resumption.experiment)
            prepared = self._given.prepare(settings, self._session)
            callbacks = self._given.build_callbacks() if role == "baseline" or self._with_callbacks else ()
            training = train(prepared, self._session, tags=tags, name=name, resumption=resumption, callbacks=callbacks)
            results.append(drain(training, partial(_say_round, name, each.federation.rounds)))
        return results

    def _place(self, experiment: Experiment) -> Experiment:
        """Returns the experiment as it is trained: in this process, on one machine, if packs on its CPU trained trials.

        What fits beside others in one process is trained before actors have started.
        """
        execution = experiment.execution
        on_cpu = self._table.pack > 1 and not self._table.gpu
        if not on_cpu or self._session.address != "local" or execution.placement != "auto":
            return experiment
        return experiment.model_copy(update={"execution": execution.model_copy(update={"placement": "serial"})})

    def _find_resumption(self, experiment: Experiment) -> Resumption | None:
        """Finds this search's run of the experiment that an earlier process started."""
        try:
            found = resume_from(None, experiment)
        except (ConfigError, CheckpointError):
            return None
        run = None if found is None else find_mlflow_run(self._store, found.run_id)
        return found if run is not None and run.data.tags.get(PARENT_TAG) == self._table.parent_id else None


def _say_round(name: str, rounds: int, report: RoundReport) -> None:
    update(f"{name}: round {report.round_index + 1}/{rounds}")


def average_metric(metric: str, runs: Sequence[Result]) -> float:
    """Averages the last value of a metric over runs."""
    return float(np.mean([get_last(run, metric) for run in runs]))


def get_last(run: Result, metric: str) -> float:
    """Returns the last value of a metric, which a run that a callback has ended may not have in its last round."""
    value = find_last(run.history, metric)
    assert value is not None, metric
    return value


def warn_if_different(runs: Sequence[Result], best: TrialEntry, metric: str) -> None:
    """Warns if the best trial, trained again, reached a different value than before."""
    privacy = runs[0].experiment.privacy
    if privacy is not None and privacy.secret:
        return  # it has noise of its own: it is another release
    again = average_metric(metric, runs)
    if again != best.value:
        log.warning("%s reached a %s of %s, but %s when it was trained again", best.name, metric, best.value, again)
