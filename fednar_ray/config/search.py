"""The ``search`` section of a file: what ``fednar tune`` varies, how, and until when."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_serializer, model_validator

from fednar_ray.config import problems
from fednar_ray.config.base import Count, NonNegative, Positive, Settings, Size
from fednar_ray.config.experiment import CHANGEABLE, Experiment
from fednar_ray.config.scheduler import NoSchedulerSettings, SchedulerSection
from fednar_ray.core.errors import ConfigError, shown

DomainKind = Literal["uniform", "loguniform", "quniform", "randint", "choice", "grid"]
RANGES: Mapping[str, str] = {
    "uniform": "[low, high]",
    "loguniform": "[low, high], both above 0",
    "quniform": "[low, high, step]",
    "randint": "[low, high), whole numbers",
}
LISTS = ("choice", "grid")
HIGHER_IS_BETTER = {"accuracy": True, "macro_f1": True, "auc": True, "loss": False, "perplexity": False, "rmse": False}
NEEDS_VALIDATION = tuple(f"validation_{name}" for name in HIGHER_IS_BETTER)
CLIENT_METRICS = {
    "client_accuracy_mean": True, "client_accuracy_worst_decile": True,
    "client_rmse_mean": False, "client_rmse_worst_decile": False,
}  # fmt: skip
NEEDS_FEDERATED = tuple(CLIENT_METRICS)
METRICS = (*NEEDS_VALIDATION, *NEEDS_FEDERATED, "train_loss")
"""What may guide a search, as far as the task has it; test figures never do."""


class Domain(Settings):
    """The values of one searched key; in a file a mapping of one entry, ``{loguniform: [0.1, 30.0]}``."""

    kind: DomainKind
    values: tuple[Any, ...]

    @model_validator(mode="before")
    @classmethod
    def _of_one_entry(cls, given: Any) -> Any:
        if isinstance(given, Domain) or (isinstance(given, dict) and set(given) == {"kind", "values"}):
            return given
        known = ", ".join((*RANGES, *LISTS))
        if not isinstance(given, dict) or len(given) != 1:
            raise ValueError(f"a domain is one of {known}, with its values: {{loguniform: [0.1, 30.0]}}")
        ((kind, values),) = given.items()
        if kind not in (*RANGES, *LISTS):
            raise ValueError(f"unknown domain{problems.nearest(str(kind), (*RANGES, *LISTS))}")
        if not isinstance(values, list | tuple):
            raise ValueError(f"{kind} takes a list: {RANGES.get(kind, '[value, value, …]')}")
        return {"kind": kind, "values": tuple(values)}

    @model_validator(mode="after")
    def _with_room(self) -> Self:
        if self.kind in LISTS:
            if not self.values:
                raise ValueError(f"{self.kind} is empty: give it values")
            if len({repr(value) for value in self.values}) < len(self.values):
                raise ValueError(f"{self.kind} names a value twice")
            return self
        wanted = f"{self.kind} takes {RANGES[self.kind]}"
        if len(self.values) != (3 if self.kind == "quniform" else 2) or not all(map(_is_number, self.values)):
            raise ValueError(wanted)
        low, high = self.values[:2]
        if low >= high:
            raise ValueError(
                f"the range from {low:g} to {high:g} is {'empty' if low == high else 'inverted'}; {wanted}"
            )
        if self.kind == "loguniform" and low <= 0:
            raise ValueError(wanted)
        if self.kind == "randint" and not all(isinstance(value, int) for value in self.values):
            raise ValueError(wanted)
        if self.kind == "quniform" and not 0 < self.values[2] <= high - low:
            raise ValueError(f"the step {self.values[2]:g} is not within the range from {low:g} to {high:g}")
        return self

    @model_serializer
    def _as_written(self) -> dict[str, list[Any]]:
        return {self.kind: list(self.values)}

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Values that are all right where every value is: a list's own, a range's ends."""
        if self.kind in LISTS:
            return self.values
        low, high = self.values[:2]
        return low, high - 1 if self.kind == "randint" else high


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class WarmStartSettings(Settings):
    """The best points of an earlier search, tried first."""

    search: str
    """Its name, in ``searches/``."""
    points: Count = 5


class StopSettings(Settings):
    """When a search ends before all its trials; what is running then is stopped."""

    wall_seconds: Positive | None = None
    patience_trials: Count | None = None
    """So many trials ended one after the other, and none was the best so far."""
    target: float | None = None
    """A trial that ran all its rounds has reached it."""


class SearchSettings(Settings):
    """What ``fednar tune`` does with the experiment of the same file."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] | None = None
    """null: the experiment's name."""
    metric: str = "validation_accuracy"
    mode: Literal["max", "min"] = "max"
    trials: Count = 32
    """32 unless given. Of ``grid``: how many times each point, once unless given."""
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    """A trial trains so many federations, of seeds counted up from the experiment's, and reports the mean."""
    space: Annotated[dict[str, Domain], Field(min_length=1)]
    algorithm: Literal["random", "grid", "optuna"] = "optuna"
    scheduler: SchedulerSection = NoSchedulerSettings()
    seed: Annotated[Size, Field(lt=2**32)] = 0
    """Of what is drawn from the space; NumPy takes no more."""
    concurrent: Literal["auto"] | Count = "auto"
    """Trials at a time; auto: as many as fit."""
    retries: Size = 1
    """How often a trial that crashed is tried again."""
    points: tuple[dict[str, Any], ...] = ()
    """Tried first."""
    warm_start: WarmStartSettings | None = None
    stop: StopSettings = StopSettings()
    baseline: Mapping[str, Any] = {"regularizer.name": "decoupled"}
    """What differs from the experiment in the run that the best trial is compared with."""
    report_rounds: Literal["auto"] | Count = "auto"
    """Rounds from one report of a trial to the next; auto: what the scheduler looks at; without one a tenth of the
    rounds, or as many tenths as a second holds."""
    checkpoint_seconds: Annotated[NonNegative, BeforeValidator(float)] = 30.0
    """How much of a trial may have to be trained again after a crash."""

    @model_validator(mode="before")
    @classmethod
    def _a_grid_once(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("algorithm") == "grid":
            return {"trials": 1, **values}
        return values

    def rounds_a_report(self, rounds: int) -> int:
        """``report_rounds`` for trials of so many rounds."""
        if self.report_rounds != "auto":
            return min(self.report_rounds, rounds)
        fallback = max(1, rounds // (20 if self.scheduler.name == "hyperband" else 10))
        return min(self.scheduler.decision_rounds or fallback, rounds)

    def problems(self, experiment: Experiment, varied: Callable[[Mapping[str, Any]], Experiment]) -> Iterator[str]:
        """What does not go with the experiment; ``varied`` gives it with other values, or raises ConfigError."""
        for key, domain in self.space.items():
            if key.partition(".")[0] in ("tracking", "checkpoint", "name", "execution"):
                yield f"search.space.{key}: {key.partition('.')[0]} does not change what is trained; search another key"
            elif key == "federation.rounds":
                yield f"search.space.{key}: trials of different lengths cannot be compared; search another key"
            else:
                yield from _of_values(f"search.space.{key}", ({key: value} for value in domain.extremes), varied)
            if domain.kind == "grid" and self.algorithm != "grid":
                yield f"search.space.{key}: a grid belongs to search.algorithm: grid; {self.algorithm} takes choice"
            if domain.kind not in LISTS and self.algorithm == "grid":
                yield f"search.space.{key}: algorithm grid goes through grid and choice; {domain.kind} has no end"
        yield from _of_values("search.baseline", (self.baseline,), varied)
        for index, point in enumerate(self.points):
            unknown = [key for key in point if key not in self.space]
            if unknown:
                yield f"search.points.{index}: {', '.join(unknown)} is not in search.space"
            elif set(point) != set(self.space):
                yield f"search.points.{index}: gives no {', '.join(key for key in self.space if key not in point)}"
            else:
                yield from _of_values(f"search.points.{index}", (point,), varied)
        if self.algorithm == "grid" and (self.points or self.warm_start is not None):
            yield "search.points: a grid goes through all its points anyway; use random or optuna"
        yield from self._metric_problems(experiment)
        yield from self._values_without_the_metric(varied)
        yield from self._scheduler_problems(experiment.federation.rounds)

    def _metric_problems(self, experiment: Experiment) -> Iterator[str]:
        metric = f"search.metric: {shown(self.metric)}"
        if self.metric.startswith("test_"):
            yield f"{metric}: test figures guide no search, or they mean nothing at its end; use validation_accuracy"
        elif self.metric not in METRICS:
            yield f"{metric}: no round reports it{problems.nearest(self.metric, METRICS)}"
        elif (lacking := self._lacking(experiment)) is not None:
            yield f"{metric}: {lacking}"
        name = self.metric
        higher = CLIENT_METRICS[name] if name in CLIENT_METRICS else HIGHER_IS_BETTER.get(name.partition("_")[2], True)
        if higher != (self.mode == "max"):
            yield f"search.mode: {self.mode!r}: {self.metric} is better {'higher' if higher else 'lower'}"

    def _lacking(self, experiment: Experiment) -> str | None:
        """What the experiment would need to report the metric; None where it needs nothing more."""
        if self.metric in NEEDS_VALIDATION and experiment.data is not None and not experiment.data.validation:
            return "no examples are held out; set data.validation=0.1"
        if self.metric in NEEDS_FEDERATED and not experiment.evaluation.federated:
            return "set evaluation.federated=true"
        return None

    def _values_without_the_metric(self, varied: Callable[[Mapping[str, Any]], Experiment]) -> Iterator[str]:
        """Values of the space under which a trial would not report the metric."""
        for key in ("data.validation", "evaluation.federated"):
            for value in self.space[key].extremes if key in self.space else ():
                with suppress(ConfigError):  # said already
                    lacking = self._lacking(varied({key: value}))
                    if lacking is not None:
                        yield f"search.space.{key}: {value!r}: such a trial does not report {self.metric}; leave it out"

    def _scheduler_problems(self, rounds: int) -> Iterator[str]:
        scheduler, place = self.scheduler, "search.scheduler"
        for key in ("grace_rounds", "perturb_rounds"):
            value = getattr(scheduler, key, None)
            if value is not None and value >= rounds:
                yield f"{place}.{key}: {value} leaves nothing to stop in federation.rounds ({rounds}); use less"
            if value is not None and self.report_rounds != "auto" and value % self.report_rounds:
                yield f"search.report_rounds: {self.report_rounds} does not divide {place}.{key} ({value})"
        if scheduler.name != "pbt":
            return
        if self.algorithm != "random":
            yield f"search.algorithm: {self.algorithm!r}: pbt draws its own values as it goes; use random"
        if self.trials < 4:
            yield f"search.trials: {self.trials} is no population; pbt needs 4"
        if self.concurrent != "auto":
            yield "search.concurrent: pbt needs its whole population; what does not fit takes turns; leave it at auto"
        if self.seeds != 1:
            yield "search.seeds: pbt exchanges single federations; use 1"
        for key, domain in self.space.items():
            if key not in CHANGEABLE:
                yield f"search.space.{key}: cannot change within a run; pbt takes {', '.join(CHANGEABLE)}"
            if domain.kind in ("grid", "randint", "quniform"):
                yield f"search.space.{key}: pbt perturbs uniform, loguniform and choice, not {domain.kind}"


def _of_values(
    place: str, points: Iterable[Mapping[str, Any]], varied: Callable[[Mapping[str, Any]], Experiment]
) -> Iterator[str]:
    """What the experiment says to such values, each thing once."""
    said = set()
    for values in points:
        try:
            varied(values)
        except ConfigError as error:
            said |= set(error.problems)
            if "unknown key" in str(error):
                break  # whatever the value
    return (f"{place}: {problem}" for problem in sorted(said))
