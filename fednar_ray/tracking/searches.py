"""Reads a search back from MLflow: one parent run, and one nested run per trial.

The tag ``fednar.kind`` of the parent is ``search``, and that of a nested run ``trial``, ``best`` or ``baseline``. Runs
of the last two with further seeds are tagged ``best, another seed`` and ``baseline, another seed``.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from mlflow import MlflowClient
from mlflow.entities import Run

from fednar_ray.config import yaml_text
from fednar_ray.core.errors import BadInput
from fednar_ray.core.metric_names import find_judged
from fednar_ray.core.private_metrics import EPSILON, SIMULATED
from fednar_ray.tracking.mlflow_names import TOTALS, name_in_mlflow
from fednar_ray.tracking.reading import History, get_name, iterate_pages, read_history, search_runs_where
from fednar_ray.tracking.store import Store, raise_as_unavailable
from fednar_ray.tracking.tags import KIND_TAG, PARENT_TAG, PRIMARY_TAG, SEARCH_ID_TAG, SEARCH_TAG, STATUS_TAG

FINISHED, STOPPED, FAILED, UNFINISHED = "finished", "stopped early", "failed", "unfinished"
STATUS_ORDER = (FINISHED, STOPPED, UNFINISHED, FAILED)
"""The states of trials, in the order in which they are listed. One that is being trained is unfinished."""
ANOTHER_SEED = ", another seed"
ABOUT = ("search.metric", "search.mode", "search.algorithm", "search.scheduler", "search.seeds", "search.space")
"""The parameters of the parent run that describe the search."""


def compute_place(name: str, status: str, value: float | None, mode: str) -> tuple[int, bool, float, int, str]:
    """Computes the key by which trials are sorted wherever they are listed.

    First come those that trained all rounds, then the states in ``STATUS_ORDER``; within each the best one first, and
    among equals the one that was started first.

    Args:
        name: The trial's name, which numbers it.
        status: Its state.
        value: The search's metric; None if the trial was never evaluated.
        mode: Which values are better, ``max`` or ``min``.
    """
    group = STATUS_ORDER.index(status if status in STATUS_ORDER else UNFINISHED)
    cost = 0.0 if value is None else -value if mode == "max" else value
    return group, value is None, cost, len(name), name


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One trial of a search."""

    name: str
    values: Mapping[str, Any]  # by searched key
    status: str  # finished (it ran all rounds), stopped early, failed or unfinished
    history: History  # of the search's metric
    totals: Mapping[str, float] = field(default_factory=dict)  # what all rounds of one seed cost; see ``TOTALS``
    privacy: Mapping[str, float] = field(default_factory=dict)  # ε after the last round of one seed, if it is private

    @property
    def rounds(self) -> int:
        """Number of rounds that were trained, up to the last evaluation."""
        return self.history[-1][0] + 1 if self.history else 0

    @property
    def value(self) -> float | None:
        """The last value of the metric; None if it was never evaluated."""
        return self.history[-1][1] if self.history else None

    @property
    def final(self) -> float:
        """``value``, for a trial that was evaluated."""
        assert self.value is not None
        return self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The best trial or the baseline, trained again as separate runs: their mean over the seeds."""

    run_id: str  # the run of the first seed
    settings: Mapping[str, Any]  # of the first seed, by dotted key
    history: History  # of the search's metric
    test_history: History  # of the same metric on the test set; empty if there is none
    test_values: tuple[float, ...]  # the last values of the search's ``test_metric``, by seed
    clipped: float | None = None  # the share of clipped steps, averaged over rounds and seeds; None: not recorded

    @property
    def test_value(self) -> float | None:
        """The mean of ``test_values``; None if there are none."""
        return fmean(self.test_values) if self.test_values else None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRecord:
    """A search, with everything that its report needs."""

    name: str
    run_id: str
    metric: str
    mode: Literal["max", "min"]
    test_metric: str | None  # judges the best trial and the baseline, such as test_accuracy; None until one is trained
    algorithm: str
    scheduler: str
    seeds: int  # federations per trial; the trial reports their mean
    settings: Mapping[str, Any]  # the base experiment, by dotted key
    space: Mapping[str, Mapping[str, Sequence[Any]]]  # searched key → {kind: values}
    trials: tuple[TrialRecord, ...]  # by name
    best: Curve | None
    baseline: Curve | None
    baseline_changes: Mapping[str, Any] | None = None  # what makes the experiment the baseline; None: not recorded

    @property
    def finished(self) -> tuple[TrialRecord, ...]:
        """The trials that ran all rounds and have a value."""
        return tuple(trial for trial in self.trials if trial.status == FINISHED and trial.value is not None)

    @property
    def best_trial(self) -> TrialRecord | None:
        """The best of the finished trials, the first one among equals; None if none is finished."""
        return min(self.finished, key=lambda trial: self.compute_cost(trial.final), default=None)

    def compute_cost(self, value: float) -> float:
        """Returns the metric, or its negative if higher is better, so that lower is better in every search."""
        return -value if self.mode == "max" else value


def read_search(uri: str | None, name: str) -> SearchRecord:
    """Reads the newest search of a name.

    Args:
        uri: The tracking store; None takes MLflow's default.
        name: The name of the search.

    Raises:
        BadInput: The store has no such search, or not yet its settings.
        TrackingUnavailable: The store does not answer.
    """
    store = Store(uri)
    with raise_as_unavailable(store.uri):
        searches = list(_list_search_runs(store.client))
    parent = next((run for run in searches if run.data.tags.get(SEARCH_TAG) == name), None)
    if parent is None:
        known = sorted({run.data.tags.get(SEARCH_TAG, "") for run in searches} - {""})
        there = f"it has {', '.join(known)}" if known else "it has no searches"
        raise BadInput(f"MLflow at {store.uri} has no search of the name {name!r}; {there}")
    if not set(ABOUT) <= set(parent.data.params):
        raise BadInput(
            f"MLflow at {store.uri} does not have the settings of the search {name!r} yet; try again in a moment"
        )
    with raise_as_unavailable(store.uri):
        return _read_record(store.client, parent, name)


def find_search_run(store: Store, name: str) -> Run | None:
    """Returns the parent run of the newest search of a name; None if there is none. Raises TrackingUnavailable."""
    with raise_as_unavailable(store.uri):
        return next((run for run in _list_search_runs(store.client) if run.data.tags.get(SEARCH_TAG) == name), None)


def ensure_parent_run(store: Store, experiment_id: str, name: str, search_id: str) -> str:
    """Returns the id of a search's parent run, and creates the run unless an earlier process has done so.

    Raises:
        TrackingUnavailable: The store does not answer.
    """
    with raise_as_unavailable(store.uri):
        found = next(search_runs_where(store.client, [experiment_id], f"tags.`{SEARCH_ID_TAG}` = '{search_id}'"), None)
    if found is not None:
        return str(found.info.run_id)
    return store.create_run(experiment_id, name, {KIND_TAG: "search", SEARCH_TAG: name, SEARCH_ID_TAG: search_id})


def _list_search_runs(client: MlflowClient) -> Iterator[Run]:
    """Yields the parent runs of all searches, newest first."""
    experiments = iterate_pages(lambda token: client.search_experiments(page_token=token))
    return search_runs_where(client, [each.experiment_id for each in experiments], f"tags.`{KIND_TAG}` = 'search'")


def _read_record(client: MlflowClient, parent: Run, name: str) -> SearchRecord:
    params, run_id = parent.data.params, parent.info.run_id
    space, metric = json.loads(params["search.space"]), params["search.metric"]
    children: dict[str, dict[str, Run]] = {"trial": {}, "best": {}, "baseline": {}}
    for run in search_runs_where(client, [parent.info.experiment_id], f"tags.`{PARENT_TAG}` = '{run_id}'"):
        kind = run.data.tags.get(KIND_TAG, "").removesuffix(ANOTHER_SEED)
        if kind in children:
            own_name = get_name(run) if kind == "trial" else run.info.run_name
            children[kind].setdefault(own_name, run)  # the newest run of a name
    started = [run for run in children["trial"].values() if set(space) <= set(run.data.params)]
    trials = [_read_trial(client, run, metric, space) for run in started]
    test_metric = _find_test_metric([*children["best"].values(), *children["baseline"].values()])
    return SearchRecord(
        name=name,
        run_id=run_id,
        metric=metric,
        mode="min" if params["search.mode"] == "min" else "max",
        test_metric=test_metric,
        algorithm=params["search.algorithm"],
        scheduler=params["search.scheduler"],
        seeds=int(params["search.seeds"]),
        settings=_parse_settings(params),
        space=space,
        trials=tuple(sorted(trials, key=lambda trial: (len(trial.name), trial.name))),
        best=_read_curve(client, children["best"].values(), metric, test_metric),
        baseline=_read_curve(client, children["baseline"].values(), metric, test_metric),
        baseline_changes=json.loads(params["search.baseline"]) if "search.baseline" in params else None,
    )


def _read_trial(client: MlflowClient, run: Run, metric: str, space: Mapping[str, object]) -> TrialRecord:
    return TrialRecord(
        name=get_name(run),
        values={key: parse_value(text) for key, text in run.data.params.items() if key in space},
        status=run.data.tags.get(STATUS_TAG, UNFINISHED),
        history=read_history(client, run, metric),
        totals={name: run.data.metrics[name] for name in TOTALS if name in run.data.metrics},
        privacy={name: run.data.metrics[name] for name in (EPSILON, SIMULATED) if name in run.data.metrics},
    )


def _find_test_metric(finals: Sequence[Run]) -> str | None:
    """Returns the metric by which the final runs are judged; None if none of them was evaluated."""
    on_test = (name.removesuffix("/test") for run in finals for name in run.data.metrics if name.endswith("/test"))
    names = {f"test_{name}" for name in on_test}
    primary = next((run.data.tags[PRIMARY_TAG] for run in finals if PRIMARY_TAG in run.data.tags), None)
    metric = f"test_{find_judged(names, primary)}"
    return metric if metric in names else None


def _read_curve(client: MlflowClient, runs: Iterable[Run], metric: str, test_metric: str | None) -> Curve | None:
    """Reads the best trial or the baseline from its runs, one per seed; None if there is none."""
    seeds = sorted(runs, key=lambda run: run.data.tags[KIND_TAG])  # the run of the first seed comes first
    if not seeds:
        return None
    on_test = metric.replace("validation_", "test_")
    test_histories = [read_history(client, run, on_test) for run in seeds] if on_test != metric else []
    name = None if test_metric is None else name_in_mlflow(test_metric)
    values = [run.data.metrics[name] for run in seeds if name in run.data.metrics]
    clipped = [value for run in seeds for _, value in read_history(client, run, "clip_fraction")]
    return Curve(
        run_id=seeds[0].info.run_id,
        settings=_parse_settings(seeds[0].data.params),
        history=_average_histories([read_history(client, run, metric) for run in seeds]),
        test_history=_average_histories(test_histories) if test_histories else (),
        test_values=tuple(values),
        clipped=fmean(clipped) if clipped else None,
    )


def _average_histories(histories: Sequence[History]) -> History:
    """Averages histories over seeds, at the rounds that all of them have."""
    rounds = [dict(history) for history in histories]
    return tuple((t, fmean(each[t] for each in rounds)) for t in rounds[0] if all(t in each for each in rounds))


def _parse_settings(params: Mapping[str, str]) -> dict[str, Any]:
    return {key: parse_value(text) for key, text in params.items() if not key.startswith(("search.", "best."))}


def parse_value(text: str) -> Any:
    """Returns the value of a parameter, which MLflow stores as text."""
    try:
        return yaml_text.parse(text)
    except yaml_text.NotYaml:
        return text
