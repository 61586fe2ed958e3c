"""Which setting to change, and to which value: what this run's own norms support."""

import math

from fednar_ray.config.algorithm import ServerLrSettings
from fednar_ray.experiments.alerts.history import FAR, RunHistory, divide


def suggest_shorter_steps(history: RunHistory) -> str:
    """Suggests a tenth of the learning rate, and a clip bound if one would have shortened only the long steps."""
    settings = history.experiment
    rate, bound = settings.algorithm.local_lr, settings.regularizer.clip_bound
    change = format_change("algorithm.local_lr", rate, rate / 10)
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


def suggest_longer_steps(history: RunHistory) -> str:
    """Suggests a larger bound if steps are clipped, else a learning rate at which no round moves too far."""
    rate, most = history.experiment.algorithm.local_lr, float(history.moved.max())
    if history.clips and history.norm_in_bounds > 1:
        return suggest_larger_bound(history)
    factor = min(10.0, divide(FAR, most))
    share = 100 * min(factor * most, FAR)
    longer = f"; a round would then move the parameters by {share:.2g} % of their norm at most"
    return format_change("algorithm.local_lr", rate, rate * factor) + longer


def suggest_larger_bound(history: RunHistory) -> str:
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


def suggest_less_decay(history: RunHistory) -> str:
    """Suggests a tenth of the decay, and a comparison: other regularizers' norms do not show what FedNAR would do."""
    settings = history.experiment.regularizer
    tenth = format_change("regularizer.weight_decay", settings.weight_decay, settings.weight_decay / 10)
    change = (
        f"{tenth}, which would pull with {history.decay_share / 10:.2g} times the norm of a step, and regularizes less"
    )
    if settings.name == "fednar" or history.is_compared:
        return change
    return (
        f"{change}. Whether regularizer.name: fednar is better at this decay is shown by: "
        f"fednar compare FILE compare.regularizers=[{settings.name},fednar]"
    )


def format_change(key: str, now: float, then: float) -> str:
    """Formats a change of a setting with its present value."""
    return f"{key}: {then:.2g} (now {now:g})"


def _format_bound(now: float, then: float) -> str:
    """Suggests a clip bound, rounded up, so that the message is also true of the rounded number."""
    return format_change("regularizer.clip_bound", now, 1.05 * then)  # two digits are off by at most 5 %
