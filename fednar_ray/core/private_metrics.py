"""The metrics of a run with differential privacy: their names, and how ε is written where people read it."""

from collections.abc import Mapping, Sequence

from fednar_ray.core.counting import format_count

EPSILON, NOISE, NORM_BOUND = "privacy/epsilon", "privacy/noise_multiplier", "privacy/bound"
CLIPPED = "privacy/clipped_clients"
EXAMPLES_EPSILON = "privacy/examples_epsilon"
"""The largest ε of a silo whose single examples are protected."""
SIMULATED = "privacy/simulated"
"""1 where noise and sampling follow from a public seed: ε is then simulated, and protects nobody."""
PRIVATE_METRICS = (EPSILON, NOISE, NORM_BOUND, CLIPPED, EXAMPLES_EPSILON, SIMULATED)
"""What a round spends and spent: the only metrics that tell something of its clients, all of it accounted or public."""


def is_simulated(metrics: Mapping[str, float]) -> bool:
    """Returns whether the ε of a round, or of a sum over runs, is simulated."""
    return bool(metrics.get(SIMULATED))


def format_epsilon(metrics: Mapping[str, float]) -> str:
    """Formats what a round has spent, such as "ε 3.21 (simulated)"; empty for a round without differential privacy."""
    parts = [f"ε {metrics[EPSILON]:.3g}"] if EPSILON in metrics else []
    parts += [f"ε of examples {metrics[EXAMPLES_EPSILON]:.3g}"] if EXAMPLES_EPSILON in metrics else []
    return ", ".join(parts) + (" (simulated)" if parts and is_simulated(metrics) else "")


def describe_privacy(metrics: Mapping[str, float], delta: float, budget: float | None) -> str:
    """Describes in one line what a run has spent on its clients when it ends.

    Args:
        metrics: Those of its last round.
        delta: δ.
        budget: The target ε; None if the noise multiplier was given.
    """
    spent = f"ε {metrics[EPSILON]:.3g}" + ("" if budget is None else f" of {budget:g}")
    return f"privacy: {spent} at δ {delta:g} spent, noise multiplier {metrics[NOISE]:.4g}{_warn_if_simulated(metrics)}"


def describe_example_privacy(metrics: Mapping[str, float], delta: float, budget: float | None) -> str:
    """Describes in one line what a run has spent on single examples when it ends. Arguments as above."""
    spent = f"ε {metrics[EXAMPLES_EPSILON]:.3g}" + ("" if budget is None else f" of {budget:g}")
    return f"privacy of examples: at most {spent} at δ {delta:g} spent by a silo{_warn_if_simulated(metrics)}"


def describe_spending(rounds: Sequence[Mapping[str, float]], times: int = 1) -> str | None:
    """Describes what several runs on the same clients have spent together; None if they have no privacy.

    By composition ε and δ add up. A tighter sum would need the runs' losses together.

    Args:
        rounds: The metrics of the last round of each run.
        times: How many seeds each of them stands for.
    """
    private = [metrics for metrics in rounds if EPSILON in metrics or EXAMPLES_EPSILON in metrics]
    if not private:
        return None
    names = [name for name in (EPSILON, EXAMPLES_EPSILON) if name in private[0]]
    totals = {name: times * sum(metrics[name] for metrics in private) for name in names}
    spent = format_epsilon({**private[0], **totals})
    runs = format_count(times * len(private), "run")
    return f"privacy: {spent} spent by {runs} together; a search on public data would spend nothing of these clients"


def _warn_if_simulated(metrics: Mapping[str, float]) -> str:
    if not is_simulated(metrics):
        return ""
    return " (simulated): the noise follows from the public seed, so nobody is protected"
