"""Says how much two methods differ, and whether that is more than luck."""

from fednar_ray.core.metric_names import SHARES, is_higher_better


def describe_difference(name: str, change: float, interval: float | None, seeds: int) -> str:
    """Describes the mean difference of a metric over seeds, as a clause.

    Args:
        name: The metric, without its split.
        change: The mean difference. That of a share is written in points, which are hundredths.
        interval: The half-width of its 95 % interval; None if it is not known, which is so for a single seed.
        seeds: The number of seeds.

    Examples:
        >>> describe_difference("accuracy", 0.2, 0.02, 3)
        '+20.0 points (95 % interval +18.0 to +22.0), better beyond luck with 3 seeds'
    """
    if change == 0 and not interval:
        return "no difference at all"
    text = _format_change(name, change) + (" points" if name in SHARES else "")
    if interval is None:
        return f"{text}, from one seed, which cannot tell it from luck"
    low, high = change - interval, change + interval
    span = f"{text} (95 % interval {_format_change(name, low)} to {_format_change(name, high)})"
    if low <= 0 <= high:
        return f"{span}, not more than luck with {seeds} seeds"
    better = (change > 0) == is_higher_better(name)
    return f"{span}, {'better' if better else 'worse'} beyond luck with {seeds} seeds"


def _format_change(name: str, value: float) -> str:
    """Formats a change with its sign."""
    text = f"{100 * value:+.1f}" if name in SHARES else f"{value:+.3g}"
    return "0.0" if text in ("-0.0", "+0.0") else text.replace("-", "−")
