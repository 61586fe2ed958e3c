"""A search, read back from MLflow: one parent run, and a child a trial.

The parent is tagged as a search of its name, its children as trials, as the best one's run and as the baseline's;
the runs of these two with further seeds as ``best, another seed`` and ``baseline, another seed``.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities import Run

from fednar_ray.config import yaml_text
from fednar_ray.core.errors import BadInput
from fednar_ray.tracking.mlflow import Store, answering
from fednar_ray.tracking.reading import History, history_of, pages, runs_like
from fednar_ray.tracking.tags import KIND_TAG, PARENT_TAG, SEARCH_ID_TAG, SEARCH_TAG, STATUS_TAG

FINISHED, STOPPED, FAILED, UNFINISHED = "finished", "stopped early", "failed", "unfinished"
ANOTHER_SEED = ", another seed"
ABOUT = ("search.metric", "search.mode", "search.algorithm", "search.scheduler", "search.seeds", "search.space")
"""What a search is described by, among the parent's parameters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One trial."""

    name: str
    values: Mapping[str, Any]  # of the searched keys
    status: str  # finished: it ran all rounds; or stopped early, failed, unfinished
    history: History  # of the metric

    @property
    def rounds(self) -> int:
        """How many rounds were trained, up to the last evaluation."""
        return self.history[-1][0] + 1 if self.history else 0

    @property
    def value(self) -> float | None:
        """The metric's last value; None where there was none."""
        return self.history[-1][1] if self.history else None

    @property
    def final(self) -> float:
        """``value``, of a trial that has one."""
        assert self.value is not None
        return self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The best trial or the baseline, trained as runs of their own: their mean over the seeds."""

    run_id: str  # of the first seed, as are the settings
    settings: Mapping[str, Any]  # by dotted key
    history: History  # of the search's metric
    test_history: History  # of the same on the test set, where there is such a metric
    test_accuracy: float | None  # at the end


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRecord:
    """A search, with all that reports are made of."""

    name: str
    run_id: str
    metric: str
    mode: Literal["max", "min"]
    algorithm: str
    scheduler: str
    seeds: int  # federations a trial, whose mean it reports
    settings: Mapping[str, Any]  # the base experiment, by dotted key
    space: Mapping[str, Mapping[str, Sequence[Any]]]  # searched key → {kind: values}
    trials: tuple[TrialRecord, ...]  # by name
    best: Curve | None
    baseline: Curve | None

    @property
    def finished(self) -> tuple[TrialRecord, ...]:
        """The trials that ran all rounds, and have a value."""
        return tuple(trial for trial in self.trials if trial.status == FINISHED and trial.value is not None)

    @property
    def best_trial(self) -> TrialRecord | None:
        """The best of the finished trials; of equal ones the first."""
        return min(self.finished, key=lambda trial: self.cost(trial.final), default=None)

    def cost(self, value: float) -> float:
        """The metric, or its negative where more is better: lower is better in any search."""
        return -value if self.mode == "max" else value


def read_search(uri: str | None, name: str) -> SearchRecord:
    """The newest search of that name in a tracking store; None is MLflow's own choice of one.

    Raises BadInput where there is none, and TrackingUnavailable.
    """
    store = Store(uri)
    with answering(store.uri):
        searches = list(_searches(store.client))
    parent = next((run for run in searches if run.data.tags.get(SEARCH_TAG) == name), None)
    if parent is None:
        known = sorted({run.data.tags.get(SEARCH_TAG, "") for run in searches} - {""})
        there = f"it has {', '.join(known)}" if known else "it has no searches"
        raise BadInput(f"MLflow at {store.uri} has no search of the name {name!r}; {there}")
    if not set(ABOUT) <= set(parent.data.params):
        raise BadInput(f"MLflow at {store.uri} does not know yet what the search {name!r} is; try again in a moment")
    with answering(store.uri):
        return _record(store.client, parent, name)


def parent_run(store: Store, experiment_id: str, name: str, search_id: str) -> str:
    """The id of a search's parent run, which is created unless an earlier process did so and was killed.

    Raises TrackingUnavailable.
    """
    with answering(store.uri):
        found = next(runs_like(store.client, [experiment_id], f"tags.`{SEARCH_ID_TAG}` = '{search_id}'"), None)
    if found is not None:
        return str(found.info.run_id)
    return store.create_run(experiment_id, name, {KIND_TAG: "search", SEARCH_TAG: name, SEARCH_ID_TAG: search_id})


def _searches(client: MlflowClient) -> Iterator[Run]:
    """The parent runs of all searches, newest first."""
    experiments = [
        experiment.experiment_id for experiment in pages(lambda token: client.search_experiments(page_token=token))
    ]
    return runs_like(client, experiments, f"tags.`{KIND_TAG}` = 'search'")


def _record(client: MlflowClient, parent: Run, name: str) -> SearchRecord:
    params, run_id = parent.data.params, parent.info.run_id
    space, metric = json.loads(params["search.space"]), params["search.metric"]
    children: dict[str, dict[str, Run]] = {"trial": {}, "best": {}, "baseline": {}}
    for run in runs_like(client, [parent.info.experiment_id], f"tags.`{PARENT_TAG}` = '{run_id}'"):
        kind = run.data.tags.get(KIND_TAG, "").removesuffix(ANOTHER_SEED)
        if kind in children:
            children[kind].setdefault(run.info.run_name, run)  # the newest of a name
    begun = [run for run in children["trial"].values() if set(space) <= set(run.data.params)]
    trials = [_trial(client, run, metric, space) for run in begun]
    return SearchRecord(
        name=name,
        run_id=run_id,
        metric=metric,
        mode="min" if params["search.mode"] == "min" else "max",
        algorithm=params["search.algorithm"],
        scheduler=params["search.scheduler"],
        seeds=int(params["search.seeds"]),
        settings=_settings(params),
        space=space,
        trials=tuple(sorted(trials, key=lambda trial: (len(trial.name), trial.name))),
        best=_curve(client, children["best"].values(), metric),
        baseline=_curve(client, children["baseline"].values(), metric),
    )


def _trial(client: MlflowClient, run: Run, metric: str, space: Mapping[str, object]) -> TrialRecord:
    return TrialRecord(
        name=run.info.run_name,
        values={key: parsed(text) for key, text in run.data.params.items() if key in space},
        status=run.data.tags.get(STATUS_TAG, UNFINISHED),
        history=history_of(client, run, metric),
    )


def _curve(client: MlflowClient, runs: Iterable[Run], metric: str) -> Curve | None:
    """``runs``: one a seed."""
    seeds = sorted(runs, key=lambda run: run.data.tags[KIND_TAG])  # the first seed's sorts first
    if not seeds:
        return None
    on_test = metric.replace("validation_", "test_")
    accuracies = [run.data.metrics["test_accuracy"] for run in seeds if "test_accuracy" in run.data.metrics]
    return Curve(
        run_id=seeds[0].info.run_id,
        settings=_settings(seeds[0].data.params),
        history=_mean([history_of(client, run, metric) for run in seeds]),
        test_history=_mean([history_of(client, run, on_test) for run in seeds]) if on_test != metric else (),
        test_accuracy=fmean(accuracies) if accuracies else None,
    )


def _mean(histories: Sequence[History]) -> History:
    """The mean over the seeds, at the rounds that all of them have."""
    rounds = [dict(history) for history in histories]
    return tuple((t, fmean(each[t] for each in rounds)) for t in rounds[0] if all(t in each for each in rounds))


def _settings(params: Mapping[str, str]) -> dict[str, Any]:
    return {key: parsed(text) for key, text in params.items() if not key.startswith(("search.", "best."))}


def parsed(text: str) -> Any:
    """A parameter's value; MLflow keeps text."""
    try:
        return yaml_text.parse(text)
    except yaml_text.NotYaml:
        return text
