"""The section ``search``: what ``fednar tune`` varies, how it searches, and when it stops."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fednar_ray.config import problems
from fednar_ray.config.base import Count, Example, NonNegative, Positive, Settings, Size, read_switch
from fednar_ray.config.domain import LISTS, Domain
from fednar_ray.config.experiment import CHANGEABLE, Experiment
from fednar_ray.config.scheduler import NoSchedulerSettings, SchedulerSection
from fednar_ray.core.errors import ConfigError, format_value
from fednar_ray.core.metric_names import CLIENT_METRICS, HIGHER_IS_BETTER, is_higher_better

BuildVariant = Callable[[Mapping[str, Any]], Experiment]
"""Builds the experiment with other values by dotted key. Raises ConfigError if they are invalid."""
AUTO = "auto"
NEEDS_VALIDATION = tuple(f"validation_{name}" for name in HIGHER_IS_BETTER)
NEEDS_FEDERATED = tuple(CLIENT_METRICS)
METRICS = (*NEEDS_VALIDATION, *NEEDS_FEDERATED, "train_loss")
"""The metrics that can guide a search, if the task has them. Test metrics cannot, since they judge the result."""


def _name_own_metrics(experiment: Experiment) -> tuple[str, ...]:
    return tuple(f"validation_{name}" for name in experiment.evaluation.own_metrics)


class WarmStartSettings(Settings):
    """Tries the best points of an earlier search first."""

    search: Annotated[str, Example("first")]
    """The name of the earlier search, in ``searches/``."""
    points: Annotated[Count, Example(3)] = 5
    """Number of points that are taken from it."""


class StopSettings(Settings):
    """When a search ends before all its trials have run. Trials that are still running are then stopped."""

    wall_seconds: Annotated[Positive | None, Example(3600.0)] = None
    """End after this many seconds. null: no limit."""
    patience_trials: Annotated[Count | None, Example(10)] = None
    """End when this many trials in succession have not improved on the best trial. null: never."""
    target: Annotated[float | None, Example(0.95)] = None
    """End when a trial that trained all its rounds reaches this value of the metric. null: never."""


class SearchSettings(Settings):
    """What ``fednar tune`` does with the experiment of the same file."""

    name: Annotated[
        Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] | None, Example("bounds")
    ] = None
    """The search's name, and its directory in ``searches/``. null: the experiment's name."""
    metric: Annotated[str, Example("validation_macro_f1")] = AUTO
    """The metric by which trials are compared. auto: the experiment's primary metric on the examples that are held out,
    such as validation_accuracy or validation_rmse."""
    mode: Annotated[Literal["auto", "max", "min"], Example("max")] = "auto"
    """Whether the metric is maximized or minimized. auto: whichever makes the model better."""
    trials: Annotated[Count, Example(16)] = 32
    """Number of trials. For ``grid``: the number of trials per point, 1 unless given."""
    seeds: Annotated[int, Field(ge=1, le=100), Example(3)] = 1
    """Number of seeds per trial, counted up from the experiment's seed. A trial reports the mean over its seeds."""
    space: Annotated[
        dict[str, Domain], Field(min_length=1), Example({"regularizer.clip_bound": {"loguniform": [0.1, 30.0]}})
    ]
    """Dotted key of the experiment → the values that are searched."""
    algorithm: Annotated[Literal["random", "grid", "optuna"], Example("random")] = "optuna"
    """How points are chosen. grid: every combination. optuna: by the results so far (TPE)."""
    scheduler: SchedulerSection = NoSchedulerSettings()
    seed: Annotated[Size, Field(lt=2**32), Example(1)] = 0
    """The seed of the points that are drawn from the space, below 2^32."""
    concurrent: Annotated[Literal["auto"] | Count, Example(4)] = "auto"
    """Number of trials that run at the same time. auto: as many as fit."""
    pack: Annotated[Literal["auto", "off"] | Count, BeforeValidator(read_switch), Example(8)] = "auto"
    """Number of trials that one process trains together, as one matrix. auto: as many as fill it, if the clients of a
    trial train as one matrix; not for ``hyperband`` and ``pbt``. off: one trial per process."""
    retries: Annotated[Size, Example(3)] = 1
    """How often a trial that crashed is retried."""
    points: Annotated[tuple[dict[str, Any], ...], Example(({"regularizer.clip_bound": 1.1},))] = ()
    """Points that are tried first. Each gives a value for every key of ``space``."""
    warm_start: WarmStartSettings | None = None
    stop: StopSettings = StopSettings()
    baseline: Annotated[Mapping[str, Any], Example({"regularizer.name": "none"})] = {"regularizer.name": "decoupled"}
    """Dotted key → value: how the run that the best trial is compared with differs from the experiment."""
    report_rounds: Annotated[Literal["auto"] | Count, Example(5)] = "auto"
    """Rounds from one report of a trial to the next. auto: the rounds between two decisions of the scheduler; for
    hyperband a twentieth of all rounds; without a scheduler a tenth of them, or as many tenths as a second allows."""
    checkpoint_seconds: Annotated[NonNegative, BeforeValidator(float), Example(60.0)] = 30.0
    """Seconds after which a trial writes a checkpoint with its next report. After a crash, it resumes from there."""

    @model_validator(mode="before")
    @classmethod
    def _count_grid_points_once(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("algorithm") == "grid":
            return {"trials": 1, **values}
        return values

    def choose_report_rounds(self, rounds: int) -> int:
        """Returns the number of rounds per report of a trial.

        Args:
            rounds: Number of rounds of a trial.
        """
        if self.report_rounds != "auto":
            return min(self.report_rounds, rounds)
        fallback = max(1, rounds // (20 if self.scheduler.name == "hyperband" else 10))
        return min(self.scheduler.decision_rounds or fallback, rounds)

    def resolve_metric(self, primary: str) -> Self:
        """Returns the section with a metric and a mode in place of ``auto``.

        Args:
            primary: The experiment's primary metric, without its split.
        """
        metric = f"validation_{primary}" if self.metric == AUTO else self.metric
        better = "max" if is_higher_better(metric) else "min"
        return self.model_copy(update={"metric": metric, "mode": better if self.mode == AUTO else self.mode})

    def find_mode_problems(self) -> Iterator[str]:
        """Finds a mode that is not that of the metric. Yields nothing if one of them is ``auto``."""
        higher = is_higher_better(self.metric)
        if AUTO not in (self.metric, self.mode) and higher != (self.mode == "max"):
            yield f"search.mode: {self.mode!r}: {self.metric} is better {'higher' if higher else 'lower'}"

    def find_problems(self, experiment: Experiment, build_variant: BuildVariant) -> Iterator[str]:
        """Finds contradictions between the search and the experiment.

        Args:
            experiment: The experiment of the same file.
            build_variant: Builds that experiment with other values by dotted key, or raises ConfigError.

        Yields:
            One line per problem: ``place: value: what to change``.
        """
        for key, domain in self.space.items():
            if key.partition(".")[0] in ("tracking", "checkpoint", "name", "execution"):
                yield f"search.space.{key}: {key.partition('.')[0]} does not change what is trained; search another key"
            elif key == "federation.rounds":
                yield f"search.space.{key}: trials of different lengths cannot be compared; search another key"
            else:
                yield from _find_value_problems(
                    f"search.space.{key}", ({key: value} for value in domain.extremes), build_variant
                )
            if domain.kind == "grid" and self.algorithm != "grid":
                yield f"search.space.{key}: grid needs search.algorithm: grid; with {self.algorithm}, use choice"
            if domain.kind not in LISTS and self.algorithm == "grid":
                yield f"search.space.{key}: search.algorithm: grid takes grid and choice, not {domain.kind}"
        yield from _find_value_problems("search.baseline", (self.baseline,), build_variant)
        for index, point in enumerate(self.points):
            unknown = [key for key in point if key not in self.space]
            if unknown:
                yield f"search.points.{index}: {', '.join(unknown)} is not in search.space"
            elif set(point) != set(self.space):
                yield f"search.points.{index}: has no {', '.join(key for key in self.space if key not in point)}"
            else:
                yield from _find_value_problems(f"search.points.{index}", (point,), build_variant)
        if self.algorithm == "grid" and (self.points or self.warm_start is not None):
            yield "search.points: a grid tries all points anyway; remove points and warm_start, or use optuna"
        yield from self._find_metric_problems(experiment)
        yield from self._find_values_without_metric(build_variant)
        yield from self._find_scheduler_problems(experiment.federation.rounds)
        yield from self._find_privacy_problems(experiment)

    def _find_privacy_problems(self, experiment: Experiment) -> Iterator[str]:
        if experiment.privacy is None:
            return
        if self.scheduler.name == "pbt":
            text = "copies one trial to another, whose privacy is accounted for each trial alone; use asha or none"
            yield f"search.scheduler.name: pbt: {text}"
        if self.metric == "train_loss":
            yield "search.metric: 'train_loss': the clients' losses are private; use a validation metric"

    def _find_metric_problems(self, experiment: Experiment) -> Iterator[str]:
        metric = f"search.metric: {format_value(self.metric)}"
        if self.metric.startswith("test_"):
            yield f"{metric}: a test metric cannot guide a search, since it judges its result; use auto"
        elif self.metric not in (known := (AUTO, *METRICS, *_name_own_metrics(experiment))):
            yield f"{metric}: unknown metric{problems.suggest(self.metric, known)}"
        elif (remedy := self._find_remedy(experiment)) is not None:
            yield f"{metric}: {remedy}"
        yield from self.find_mode_problems()

    def _find_remedy(self, experiment: Experiment) -> str | None:
        """Returns what to set so that the experiment reports the metric; None if it does."""
        held_out = self.metric == AUTO or self.metric.startswith("validation_")
        if held_out and experiment.data is not None and not experiment.data.validation:
            return "no examples are held out; set data.validation=0.1"
        if self.metric in NEEDS_FEDERATED and not experiment.evaluation.federated:
            return "set evaluation.federated=true"
        return None

    def _find_values_without_metric(self, build_variant: BuildVariant) -> Iterator[str]:
        """Finds values of the space with which a trial would not report the metric."""
        metric = "the primary metric on held-out examples" if self.metric == AUTO else self.metric
        for key in ("data.validation", "evaluation.federated"):
            for value in self.space[key].extremes if key in self.space else ():
                with suppress(ConfigError):  # an invalid value is reported elsewhere
                    if self._find_remedy(build_variant({key: value})) is not None:
                        yield f"search.space.{key}: {value!r}: a trial with it does not report {metric}; remove it"

    def _find_scheduler_problems(self, rounds: int) -> Iterator[str]:
        scheduler, place = self.scheduler, "search.scheduler"
        for key in ("grace_rounds", "perturb_rounds"):
            value = getattr(scheduler, key, None)
            if value is not None and value >= rounds:
                yield f"{place}.{key}: {value} should be less than federation.rounds ({rounds})"
            if value is not None and self.report_rounds != "auto" and value % self.report_rounds:
                yield f"search.report_rounds: {self.report_rounds} does not divide {place}.{key} ({value})"
        if scheduler.name != "pbt":
            return
        if self.algorithm != "random":
            yield f"search.algorithm: {self.algorithm!r}: pbt changes the values of its trials; use random"
        if self.trials < 4:
            yield f"search.trials: {self.trials} is too few for pbt; use at least 4"
        if self.concurrent != "auto":
            yield "search.concurrent: pbt needs auto: trials that do not fit at the same time take turns"
        if self.seeds != 1:
            yield "search.seeds: pbt copies single federations between trials; use 1"
        for key, domain in self.space.items():
            if key not in CHANGEABLE:
                yield f"search.space.{key}: cannot change within a run; pbt takes {', '.join(CHANGEABLE)}"
            if domain.kind in ("grid", "randint", "quniform"):
                yield f"search.space.{key}: pbt perturbs uniform, loguniform and choice, not {domain.kind}"


def _find_value_problems(place: str, points: Iterable[Mapping[str, Any]], build_variant: BuildVariant) -> Iterator[str]:
    """Finds the problems of the experiment with each point of values, without repeating a problem."""
    found = set()
    for values in points:
        try:
            build_variant(values)
        except ConfigError as error:
            found |= set(error.problems)
            if "unknown key" in str(error):
                break  # another value would not help
    return (f"{place}: {problem}" for problem in sorted(found))
