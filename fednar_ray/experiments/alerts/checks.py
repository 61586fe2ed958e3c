"""The kinds of alerts: what each sees, its likely cause, and which setting to change.

The thresholds stay silent on runs that learn, slowly too (docs/alerts.md).
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fednar_ray.core.errors import RoundAborted
from fednar_ray.core.exclusion import ExclusionReason
from fednar_ray.core.reports import RoundRecord
from fednar_ray.experiments.alerts.history import FAR, LONGEST, SOON, RunHistory, ratio

WINDOW = 10  # rounds, of the slower checks
RISE = 2.0  # times the training loss of the beginning, and of the best round
LEARNED, UNLEARNED = 0.3, 0.05  # of the way from chance to perfect: a model that has learned, one that has not
STALLED = 0.1  # of the way: a run that stays below, and no longer improves
LOST, FAILED = 0.5, 0.2  # shares of the clients a round is to have
DOMINATES, SHRUNK = 0.25, 0.9  # λ‖x‖ in norms of the step; ‖x‖ in what it was after the first round


class Finding(NamedTuple):
    """What a check has found."""

    what: str
    cause: str
    change: str


def _diverges(past: RunHistory) -> Finding | None:
    metrics, losses = past.recent[-1].metrics, past.last("train_loss", 3)
    for name in ("train_loss", "validation_loss", "test_loss"):
        if name in metrics and not math.isfinite(metrics[name]):
            return _too_long(past, f"{name} is not finite")
    progress = past.progress(3)
    if past.best_progress > LEARNED and len(progress) == 3 and progress.max() < UNLEARNED:
        return _too_long(past, "the model is back at chance after it had learned")
    limit = RISE * max(past.first.get("train_loss", math.inf), past.best_loss)
    if len(losses) == 3 and losses.min() > limit:
        return _too_long(past, f"the training loss has risen from {past.best_loss:.3g} to {losses[-1]:.3g}")
    return None


def _too_long(past: RunHistory, what: str) -> Finding:
    """Why steps, or what they sum up to, are too long."""
    settings, rate = past.experiment, past.typical("local_lr")
    if past.unexplained:
        return Finding(
            what,
            f"some clients send updates longer than their steps: ‖Δ‖ is {past.typical('update_norm'):.3g}",
            "look at these clients; screening.max_deviation: 5 leaves out those far from the rest, and "
            "aggregation.name: norm_bound shortens their updates, honest ones too",
        )
    if rate * past.typical("weight_decay") >= 1:
        decay = min(settings.regularizer.weight_decay / 100, 0.01 / settings.algorithm.local_lr)
        cause = "local_lr · weight_decay is 1 or more, so that a step throws parameters across zero"
        cost = "; a step then shrinks the parameters by 1 % at most"
        return Finding(what, cause, _to("regularizer.weight_decay", settings.regularizer.weight_decay, decay) + cost)
    beginning = "" if past.first else ", or inputs are not normalized"  # nothing was ever trained
    return Finding(what, f"steps are too long{beginning}", _shorter_steps(past))


def _shorter_steps(past: RunHistory) -> str:
    settings = past.experiment
    rate, bound = settings.algorithm.local_lr, settings.regularizer.clip_bound
    change = _to("algorithm.local_lr", rate, rate / 10)
    if settings.algorithm.server_lr not in (None, 1.0):
        change += f", or algorithm.server_lr (now {settings.algorithm.server_lr:g})"
    change += "; shorter steps take more rounds"
    healthy, name = past.healthy_bound, settings.regularizer.name
    bites = 0 < healthy < past.typical("step_norm")
    if bites and (name == "coupled" or (past.clips and past.norm_in_bounds < 1 and healthy < bound)):
        switch = "regularizer.name: fednar with " if name == "coupled" else ""
        cost = "which would have clipped at most half of the steps up to the best round"
        change += f". Or {switch}{_to_bound(bound, healthy)}, {cost}"
    return change


def _stalls(past: RunHistory) -> Finding | None:
    window = int(np.clip(past.experiment.federation.rounds / 5, WINDOW, LONGEST))
    losses, progress = past.last("train_loss", window), past.progress(window)
    if len(losses) < window or past.best_progress > STALLED:
        return None
    evaluated = math.isfinite(past.best_progress)
    if not evaluated and past.best_loss < 0.9 * past.first["train_loss"]:
        return None
    halves = np.array_split(losses, 2)
    improved = halves[1].mean() < 0.99 * halves[0].mean()
    if improved or (len(progress) >= 4 and _rises(progress)):
        return None
    where = (
        ""
        if past.chance is None or not evaluated
        else f"{past.chance.metric} is no better than chance ({past.chance.value:.3g}), "
    )
    what = f"{where}and the training loss has not fallen for {window} rounds".removeprefix("and ")
    return _why_nothing_is_learned(past, what)


def _rises(values: npt.NDArray[np.float64]) -> bool:
    before, after = np.array_split(values, 2)
    return bool(after.mean() > before.mean() + 0.01)


def _why_nothing_is_learned(past: RunHistory, what: str) -> Finding:
    moved, rate = past.moved, past.experiment.algorithm.local_lr
    if past.clips_nearly_everything:
        return Finding(what, "steps are clipped to almost nothing", _larger_bound(past))
    if past.decay_share >= 1:
        return Finding(what, "weight decay is stronger than the gradient", _less_decay(past))
    if len(moved) and moved.max() > FAR:
        cause = "steps are too long: a round moves the parameters by as much as they are long"
        return Finding(what, cause, _to("algorithm.local_lr", rate, rate / 10) + "; shorter steps take more rounds")
    if len(moved) and float(np.median(moved)) < 0.01:
        cause = f"steps are too short: a round moves the parameters by {100 * float(np.median(moved)):.2g} %"
        return Finding(what, cause, _longer_steps(past))
    cause = "the model, its labels or its inputs; steps have a usual length"
    return Finding(what, cause, "look at the data (fednar data inspect) and the model; try algorithm.local_lr too")


def _longer_steps(past: RunHistory) -> str:
    rate, most = past.experiment.algorithm.local_lr, float(past.moved.max())
    if past.clips and past.norm_in_bounds > 1:
        return _larger_bound(past)
    factor = min(10.0, ratio(FAR, most))
    share = 100 * min(factor * most, FAR)
    longer = f"; a round would then move the parameters by {share:.2g} % of their norm at most"
    return _to("algorithm.local_lr", rate, rate * factor) + longer


def _larger_bound(past: RunHistory) -> str:
    """A larger clip bound: a value only where this run's norms support one, and where the longer steps stay short."""
    bound, longer = past.experiment.regularizer.clip_bound, past.norm_in_bounds
    if 0 < past.mild_bound < math.inf and past.may_lengthen(longer):
        change = _to_bound(bound, past.mild_bound)
        return (
            f"{change}, which would have clipped at most half of this run's steps; they get {longer:.2g} times longer"
        )
    return (
        f"regularizer.clip_bound (now {bound:g}) could be larger, but whole steps, {longer:.2g} times longer, may be "
        f"too long for algorithm.local_lr {past.experiment.algorithm.local_lr:g}: raise the bound by a factor of 2 at "
        "a time, and keep what the validation metric confirms"
    )


def _loses_clients(past: RunHistory) -> Finding | None:
    rounds = list(past.recent)[-WINDOW:]
    wanted = sum(_wanted(past, record) for record in rounds)
    if len(rounds) < SOON or not wanted:
        return None
    counted = {name: sum(record.metrics.get(name, 0.0) for record in rounds) for name in LOSSES}
    missing = wanted - sum(record.metrics.get("clients_trained", 0.0) for record in rounds)
    if missing < LOST * wanted and counted["clients_failed"] < FAILED * wanted:
        return None
    name = max(counted, key=lambda each: counted[each])
    failed, reasons = name == "clients_failed", {why.reason for r in rounds for why in r.exclusions.values()}
    cause, change = LOSSES[name]
    if failed:
        cause, change = EXCLUSIONS.get(reasons.pop(), FAILED_CLIENTS) if len(reasons) == 1 else FAILED_CLIENTS
    what = f"{100 * missing / wanted:.0f} % of the clients of the last {len(rounds)} rounds did not count"
    return Finding(what, f"{cause} ({counted[name]:.0f} of {wanted:.0f})", change)


def _wanted(past: RunHistory, record: RoundRecord) -> float:
    """How many clients a round is to have; whoever was sampled beyond them does not count."""
    sampled, wanted = record.metrics.get("clients_sampled", 0.0), past.experiment.federation.clients_per_round
    return sampled if wanted is None else float(wanted)


LOSSES = {
    "clients_dropped_out": (
        "they did not return",
        "federation.clients_per_round or availability.over_sampling: more; a round then costs more",
    ),
    "clients_late": (
        "they were late",
        "availability.deadline_seconds: more, or availability.over_sampling: above 1; a round then takes or costs more",
    ),
    "clients_failed": ("they failed", "see excluded_clients.json"),
    "": ("they were not there", "availability: whom the trace or on_off leaves, and federation.clients_per_round"),
}
FAILED_CLIENTS = (
    "they failed",
    "the reasons in the log; execution.retries and execution.client_timeout_seconds: more",
)
EXCLUSIONS = {
    ExclusionReason.NOT_FINITE: (
        "their updates are not finite",
        "look at the data of these clients; if it is in order, algorithm.local_lr: a tenth, which takes more rounds",
    ),
    ExclusionReason.NORM_TOO_LARGE: (
        "their updates are far longer than others'",
        "look at these clients; screening.max_deviation: more lets them in, whatever they send",
    ),
}
"""What to say where all excluded clients were excluded for one reason."""


def _clips_everything(past: RunHistory) -> Finding | None:
    settings = past.experiment.regularizer
    if not past.clips_nearly_everything:
        return None
    left = ratio(100, past.norm_in_bounds)
    decay = (
        f"; the weight decay that acts is {past.typical('effective_weight_decay'):.2g}, not {settings.weight_decay:g}"
    )
    return Finding(
        f"every step is clipped, to {left:.2g} % of its length" + (decay if settings.name == "fednar" else ""),
        f"the bound is {past.norm_in_bounds:.3g} times smaller than ‖v‖, which is {past.typical('step_norm'):.3g}",
        _larger_bound(past),
    )


def _decay_dominates(past: RunHistory) -> Finding | None:
    shrunk = ratio(past.typical("parameter_norm"), past.first.get("parameter_norm", math.inf))
    if len(past.last("parameter_norm", SOON)) < SOON or past.experiment.regularizer.name == "none":
        return None
    if past.decay_share < DOMINATES or shrunk > SHRUNK:
        return None
    what = f"parameters have shrunk to {100 * shrunk:.0f} % of what they were after the first round"
    pull = past.typical("weight_decay") * past.typical("parameter_norm")
    cause = f"weight decay: it pulls with λ·‖x‖ = {pull:.2g}, {past.decay_share:.2g} times the norm of a step"
    return Finding(what, cause, _less_decay(past))


def _less_decay(past: RunHistory) -> str:
    """A tenth of the decay. What FedNAR would make of it no other regularizer's norms can tell: a comparison does."""
    settings = past.experiment.regularizer
    change = (
        f"{_to('regularizer.weight_decay', settings.weight_decay, settings.weight_decay / 10)}, which would pull with "
        f"{past.decay_share / 10:.2g} times the norm of a step, and regularizes less"
    )
    if settings.name == "fednar":
        return change
    return (
        f"{change}. Whether regularizer.name: fednar is better at this decay is shown by: "
        f"fednar compare FILE compare.regularizers=[{settings.name},fednar]"
    )


def _to(key: str, now: float, then: float) -> str:
    return f"{key}: {then:.2g} (now {now:g})"


def _to_bound(now: float, then: float) -> str:
    """A clip bound, rounded up: what is said of the bound holds for the number as it is written."""
    return _to("regularizer.clip_bound", now, 1.05 * then)  # two digits are off by at most 5 %


def of_an_abort(past: RunHistory, error: RoundAborted) -> tuple[str, Finding]:
    """The kind of alert that an aborted round is, and what is known of it."""
    if error.cause in (ExclusionReason.NOT_FINITE, ExclusionReason.BUFFER_NOT_FINITE):
        return "diverges", _too_long(past, error.reason)
    return "loses_clients", Finding(error.reason, *FAILED_CLIENTS)


CHECKS: Mapping[str, Callable[[RunHistory], Finding | None]] = {
    "diverges": _diverges,
    "stalls": _stalls,
    "loses_clients": _loses_clients,
    "clips_everything": _clips_everything,
    "decay_dominates": _decay_dominates,
}
"""The kinds, with what finds them."""
