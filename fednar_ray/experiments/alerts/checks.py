"""The checks behind the alerts: what is wrong with a run, its likely cause, and which setting to change.

The thresholds are chosen so that no check reports a run that learns, even if it learns slowly (docs/alerts.md).
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from fednar_ray.core.errors import RoundAborted
from fednar_ray.core.exclusion import ExclusionReason
from fednar_ray.experiments.alerts.finding import Finding
from fednar_ray.experiments.alerts.history import FAR, LONGEST, SOON, WINDOW, RunHistory, divide
from fednar_ray.experiments.alerts.lost_clients import FAILED_CLIENTS, check_lost_clients
from fednar_ray.experiments.alerts.suggestions import (
    format_change,
    suggest_larger_bound,
    suggest_less_decay,
    suggest_longer_steps,
    suggest_shorter_steps,
)

RISE = 2.0  # a loss this many times that of the first and of the best round has diverged
LEARNED, UNLEARNED = 0.3, 0.05  # share of the way from chance to perfect: above, a model has learned; below, it has not
STALLED = 0.1  # the same share: a run stalls if it stays below and no longer improves
CLOSE, MAJORITY = 1e-6, 0.7  # relative difference of equal metrics; share of a class that is much more frequent
DOMINATES, SHRUNK = 0.25, 0.9  # λ‖x‖ relative to the norm of a step; ‖x‖ relative to ‖x‖ after the first round


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
            what, cause, format_change("regularizer.weight_decay", settings.regularizer.weight_decay, decay) + cost
        )
    beginning = "" if history.first else ", or inputs are not normalized"  # nothing was ever trained
    return Finding(what, f"steps are too long{beginning}", suggest_shorter_steps(history))


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
        return Finding(what, "steps are clipped to almost nothing", suggest_larger_bound(history))
    if history.decay_share >= 1:
        return Finding(what, "weight decay is stronger than the gradient", suggest_less_decay(history))
    if len(moved) and moved.max() > FAR:
        cause = "steps are too long: a round changes the parameters by as much as their norm"
        return Finding(
            what, cause, format_change("algorithm.local_lr", rate, rate / 10) + "; shorter steps take more rounds"
        )
    if len(moved) and float(np.median(moved)) < 0.01:
        cause = f"steps are too short: a round moves the parameters by {100 * float(np.median(moved)):.2g} %"
        return Finding(what, cause, suggest_longer_steps(history))
    cause = "the model, its labels or its inputs; steps have a usual length"
    return Finding(what, cause, "look at the data (fednar data inspect) and the model; try algorithm.local_lr too")


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
        suggest_larger_bound(history),
    )


def _check_decay(history: RunHistory) -> Finding | None:
    shrunk = divide(history.compute_median("parameter_norm"), history.first.get("parameter_norm", math.inf))
    known = bool(history.first) and len(history.get_last("parameter_norm", SOON)) == SOON
    if not known or history.experiment.regularizer.name == "none":
        return None
    if history.decay_share < DOMINATES or shrunk > SHRUNK:
        return None
    what = f"parameters have shrunk to {100 * shrunk:.0f} % of what they were after the first round"
    pull = history.compute_median("weight_decay") * history.compute_median("parameter_norm")
    cause = f"weight decay: it pulls with λ·‖x‖ = {pull:.2g}, {history.decay_share:.2g} times the norm of a step"
    return Finding(what, cause, suggest_less_decay(history))


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


def explain_abort(history: RunHistory, error: RoundAborted) -> tuple[str, Finding]:
    """Returns the name of the alert that an aborted round gives, and its finding."""
    if error.cause in (ExclusionReason.NOT_FINITE, ExclusionReason.BUFFER_NOT_FINITE):
        return "diverges", _explain_long_steps(history, error.reason)
    return "loses_clients", Finding(error.reason, *FAILED_CLIENTS)


CHECKS: Mapping[str, Callable[[RunHistory], Finding | None]] = {
    "diverges": _check_divergence,
    "stalls": _check_stall,
    "loses_clients": check_lost_clients,
    "clips_everything": _check_clipping,
    "decay_dominates": _check_decay,
    "predicts_one_class": _check_one_class,
}
"""The names of the alerts → the checks that find them."""
