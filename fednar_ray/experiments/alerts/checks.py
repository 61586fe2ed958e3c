"""The checks behind the alerts: what is wrong with a run, its likely cause, and which setting to change.

The thresholds are chosen so that no check reports a run that learns, even if it learns slowly (docs/alerts.md).
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fednar_ray.config.algorithm import ServerLrSettings
from fednar_ray.core.client_names import are_named, list_clients
from fednar_ray.core.errors import RoundAborted
from fednar_ray.core.exclusion import ExclusionReason
from fednar_ray.core.reports import RoundRecord
from fednar_ray.experiments.alerts.history import FAR, LONGEST, SOON, RunHistory, divide

WINDOW = 10  # rounds that the slower checks look at
RISE = 2.0  # a loss this many times that of the first and of the best round has diverged
LEARNED, UNLEARNED = 0.3, 0.05  # share of the way from chance to perfect: above, a model has learned; below, it has not
STALLED = 0.1  # the same share: a run stalls if it stays below and no longer improves
LOST, FAILED = 0.5, 0.2  # shares of the clients that a round should have
CLOSE, MAJORITY = 1e-6, 0.7  # relative difference of equal metrics; share of a class that is much more frequent
DOMINATES, SHRUNK = 0.25, 0.9  # λ‖x‖ relative to the norm of a step; ‖x‖ relative to ‖x‖ after the first round


class Finding(NamedTuple):
    """What a check has found: what is wrong, its likely cause, and what to change. Each is part of a sentence."""

    what: str
    cause: str
    change: str


def _check_divergence(history: RunHistory) -> Finding | None:
    metrics, losses = history.recent[-1].metrics, history.get_last("train_loss", 3)
    for name in ("train_loss", "validation_loss", "test_loss"):
        if name in metrics and not math.isfinite(metrics[name]):
            return _explain_long_steps(history, f"{name} is not finite")
    progress = history.get_progress(3)
    if history.best_progress > LEARNED and len(progress) == 3 and progress.max() < UNLEARNED:
        return _explain_long_steps(history, "the model is back at chance after it had learned")
    limit = RISE * max(history.first.get("train_loss", math.inf), history.best_loss)
    if len(losses) == 3 and losses.min() > limit:
        return _explain_long_steps(
            history, f"the training loss has risen from {history.best_loss:.3g} to {losses[-1]:.3g}"
        )
    return None


def _explain_long_steps(history: RunHistory, what: str) -> Finding:
    """Explains why steps, or the updates they add up to, are too long."""
    settings, rate = history.experiment, history.compute_median("local_lr")
    if history.unexplained:
        return Finding(
            what,
            f"some clients send updates longer than their steps: ‖Δ‖ is {history.compute_median('update_norm'):.3g}",
            "look at these clients; screening.max_deviation: 5 leaves out those far from the rest, and "
            "aggregation.name: norm_bound shortens their updates, honest ones too",
        )
    if rate * history.compute_median("weight_decay") >= 1:
        decay = min(settings.regularizer.weight_decay / 100, 0.01 / settings.algorithm.local_lr)
        cause = "local_lr · weight_decay is 1 or more, so that a step moves parameters across zero"
        cost = "; a step then shrinks the parameters by 1 % at most"
        return Finding(
            what, cause, _format_change("regularizer.weight_decay", settings.regularizer.weight_decay, decay) + cost
        )
    beginning = "" if history.first else ", or inputs are not normalized"  # nothing was ever trained
    return Finding(what, f"steps are too long{beginning}", _suggest_shorter_steps(history))


def _suggest_shorter_steps(history: RunHistory) -> str:
    settings = history.experiment
    rate, bound = settings.algorithm.local_lr, settings.regularizer.clip_bound
    change = _format_change("algorithm.local_lr", rate, rate / 10)
    if isinstance(settings.algorithm, ServerLrSettings) and settings.algorithm.server_lr != 1.0:
        change += f", or algorithm.server_lr (now {settings.algorithm.server_lr:g})"
    change += "; shorter steps take more rounds"
    healthy, name = history.healthy_bound, settings.regularizer.name
    bites = 0 < healthy < history.compute_median("step_norm")
    if bites and (name == "coupled" or (history.clips and history.norm_in_bounds < 1 and healthy < bound)):
        switch = "regularizer.name: fednar with " if name == "coupled" else ""
        cost = "which would have clipped at most half of the steps up to the best round"
        change += f". Or {switch}{_format_bound(bound, healthy)}, {cost}"
    return change


def _check_stall(history: RunHistory) -> Finding | None:
    window = int(np.clip(history.experiment.federation.rounds / 5, WINDOW, LONGEST))
    losses, progress = history.get_last("train_loss", window), history.get_progress(window)
    if len(losses) < window or history.best_progress > STALLED:
        return None
    evaluated = math.isfinite(history.best_progress)
    if not evaluated and history.best_loss < 0.9 * history.first["train_loss"]:
        return None
    halves = np.array_split(losses, 2)
    improved = halves[1].mean() < 0.99 * halves[0].mean()
    if improved or (len(progress) >= 4 and _is_rising(progress)):
        return None
    where = (
        ""
        if history.chance is None or not evaluated
        else f"{history.chance.metric} is no better than chance ({history.chance.value:.3g}), "
    )
    what = f"{where}and the training loss has not fallen for {window} rounds".removeprefix("and ")
    return _explain_stall(history, what)


def _is_rising(values: npt.NDArray[np.float64]) -> bool:
    before, after = np.array_split(values, 2)
    return bool(after.mean() > before.mean() + 0.01)


def _explain_stall(history: RunHistory, what: str) -> Finding:
    moved, rate = history.moved, history.experiment.algorithm.local_lr
    if history.clips_nearly_everything:
        return Finding(what, "steps are clipped to almost nothing", _suggest_larger_bound(history))
    if history.decay_share >= 1:
        return Finding(what, "weight decay is stronger than the gradient", _suggest_less_decay(history))
    if len(moved) and moved.max() > FAR:
        cause = "steps are too long: a round changes the parameters by as much as their norm"
        return Finding(
            what, cause, _format_change("algorithm.local_lr", rate, rate / 10) + "; shorter steps take more rounds"
        )
    if len(moved) and float(np.median(moved)) < 0.01:
        cause = f"steps are too short: a round moves the parameters by {100 * float(np.median(moved)):.2g} %"
        return Finding(what, cause, _suggest_longer_steps(history))
    cause = "the model, its labels or its inputs; steps have a usual length"
    return Finding(what, cause, "look at the data (fednar data inspect) and the model; try algorithm.local_lr too")


def _suggest_longer_steps(history: RunHistory) -> str:
    rate, most = history.experiment.algorithm.local_lr, float(history.moved.max())
    if history.clips and history.norm_in_bounds > 1:
        return _suggest_larger_bound(history)
    factor = min(10.0, divide(FAR, most))
    share = 100 * min(factor * most, FAR)
    longer = f"; a round would then move the parameters by {share:.2g} % of their norm at most"
    return _format_change("algorithm.local_lr", rate, rate * factor) + longer


def _suggest_larger_bound(history: RunHistory) -> str:
    """Suggests a larger clip bound; names a value only if this run's norms support one and steps stay short."""
    bound, longer = history.experiment.regularizer.clip_bound, history.norm_in_bounds
    if 0 < history.mild_bound < math.inf and history.may_lengthen(longer):
        change = _format_bound(bound, history.mild_bound)
        return (
            f"{change}, which would have clipped at most half of this run's steps; they get {longer:.2g} times longer"
        )
    return (
        f"regularizer.clip_bound (now {bound:g}) could be larger, but whole steps, {longer:.2g} times longer, may be "
        f"too long for algorithm.local_lr {history.experiment.algorithm.local_lr:g}: raise the bound by a factor of 2 "
        "at a time, and keep what the validation metric confirms"
    )


def _check_lost_clients(history: RunHistory) -> Finding | None:
    rounds = list(history.recent)[-WINDOW:]
    wanted = sum(_count_wanted_clients(history, record) for record in rounds)
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
    what = f"{100 * missing / wanted:.0f} % of the clients of the last {len(rounds)} rounds were not included"
    return Finding(what, f"{cause} ({counted[name]:.0f} of {wanted:.0f}){_name_excluded(history, rounds)}", change)


def _name_excluded(history: RunHistory, rounds: Sequence[RoundRecord]) -> str:
    """Returns the names of the clients that were excluded, most often excluded first; empty if they have no names."""
    often = Counter(client_id for record in rounds for client_id in record.exclusions)
    if not often or not are_named(history.client_names):
        return ""
    return f": {list_clients([client_id for client_id, _ in often.most_common()], history.client_names)}"


def _count_wanted_clients(history: RunHistory, record: RoundRecord) -> float:
    """Returns how many clients a round should have; clients sampled beyond that number are spare."""
    sampled, wanted = record.metrics.get("clients_sampled", 0.0), history.experiment.federation.clients_per_round
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
    "": (
        "they were not available",
        "availability: which clients the trace or on_off makes available, or federation.clients_per_round",
    ),
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
        "look at these clients; a larger screening.max_deviation includes them",
    ),
}
"""Cause and suggested change, if all excluded clients were excluded for the same reason."""


def _check_clipping(history: RunHistory) -> Finding | None:
    settings = history.experiment.regularizer
    if not history.clips_nearly_everything:
        return None
    left = divide(100, history.norm_in_bounds)
    effective = history.compute_median("effective_weight_decay")
    decay = f"; the effective weight decay is {effective:.2g}, not {settings.weight_decay:g}"
    return Finding(
        f"every step is clipped, to {left:.2g} % of its length" + (decay if settings.name == "fednar" else ""),
        f"the bound is {history.norm_in_bounds:.3g} times smaller than ‖v‖ = {history.compute_median('step_norm'):.3g}",
        _suggest_larger_bound(history),
    )


def _check_decay(history: RunHistory) -> Finding | None:
    shrunk = divide(history.compute_median("parameter_norm"), history.first.get("parameter_norm", math.inf))
    if len(history.get_last("parameter_norm", SOON)) < SOON or history.experiment.regularizer.name == "none":
        return None
    if history.decay_share < DOMINATES or shrunk > SHRUNK:
        return None
    what = f"parameters have shrunk to {100 * shrunk:.0f} % of what they were after the first round"
    pull = history.compute_median("weight_decay") * history.compute_median("parameter_norm")
    cause = f"weight decay: it pulls with λ·‖x‖ = {pull:.2g}, {history.decay_share:.2g} times the norm of a step"
    return Finding(what, cause, _suggest_less_decay(history))


def _check_one_class(history: RunHistory) -> Finding | None:
    """Finds a model that gives every test example the most frequent label: its accuracy and macro F1 follow from it."""
    chance, last = history.chance, [record.metrics for record in history.recent if "test_macro_f1" in record.metrics]
    if chance is None or chance.metric != "accuracy" or chance.value == 1.0 or len(last) < WINDOW:
        return None
    share = chance.value
    for metrics in last[-WINDOW:]:
        classes = divide(2 * share / (1 + share), metrics["test_macro_f1"])  # macro F1 of such a model is F1 of 1 class
        if abs(metrics["test_accuracy"] - share) > CLOSE or abs(classes - round(classes)) > CLOSE * classes:
            return None
    model = history.experiment.model
    weighted = model is not None and model.class_weights is not None
    what = f"the model gives every test example the most frequent label, in the last {WINDOW} tests"
    rounds = f"federation.rounds (now {history.experiment.federation.rounds}) or algorithm.local_lr: more"
    if weighted or share < MAJORITY:
        return Finding(what, "it has learned little so far", rounds)
    weights = "model.class_weights: balanced, which raises the probabilities of rare classes"
    return Finding(what, f"{100 * share:.3g} % of the labels are of this class", f"{weights}; or {rounds}")


def _suggest_less_decay(history: RunHistory) -> str:
    """Suggests a tenth of the decay, and a comparison: other regularizers' norms do not show what FedNAR would do."""
    settings = history.experiment.regularizer
    tenth = _format_change("regularizer.weight_decay", settings.weight_decay, settings.weight_decay / 10)
    change = (
        f"{tenth}, which would pull with {history.decay_share / 10:.2g} times the norm of a step, and regularizes less"
    )
    if settings.name == "fednar" or history.is_compared:
        return change
    return (
        f"{change}. Whether regularizer.name: fednar is better at this decay is shown by: "
        f"fednar compare FILE compare.regularizers=[{settings.name},fednar]"
    )


def _format_change(key: str, now: float, then: float) -> str:
    return f"{key}: {then:.2g} (now {now:g})"


def _format_bound(now: float, then: float) -> str:
    """Suggests a clip bound, rounded up, so that the message is also true of the rounded number."""
    return _format_change("regularizer.clip_bound", now, 1.05 * then)  # two digits are off by at most 5 %


def explain_abort(history: RunHistory, error: RoundAborted) -> tuple[str, Finding]:
    """Returns the name of the alert that an aborted round gives, and its finding."""
    if error.cause in (ExclusionReason.NOT_FINITE, ExclusionReason.BUFFER_NOT_FINITE):
        return "diverges", _explain_long_steps(history, error.reason)
    return "loses_clients", Finding(error.reason, *FAILED_CLIENTS)


CHECKS: Mapping[str, Callable[[RunHistory], Finding | None]] = {
    "diverges": _check_divergence,
    "stalls": _check_stall,
    "loses_clients": _check_lost_clients,
    "clips_everything": _check_clipping,
    "decay_dominates": _check_decay,
    "predicts_one_class": _check_one_class,
}
"""The names of the alerts → the checks that find them."""
