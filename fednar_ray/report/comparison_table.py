"""The table of a comparison: one row per variant, with differences paired by seed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fednar_ray.config import CompareSettings
from fednar_ray.core.metric_names import format_metric_value, format_spread
from fednar_ray.core.reports import RoundRecord
from fednar_ray.report.effort import Effort, measure_effort
from fednar_ray.report.run_plots import Measure, Variant, compute_final_value, find_measure, get_curve

CONFIDENCE = 0.95
MISSING = "–"


class Outcome(NamedTuple):
    """What a finished run contributes to the table."""

    history: tuple[RoundRecord, ...]  # one record per round
    alerts: tuple[str, ...]  # the names of its alerts
    messages: tuple[str, ...] = ()  # what each of them says
    stop: str = ""  # why a callback ended it early; empty if it trained all rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A variant's results over its seeds."""

    variant: Variant
    measure: Measure  # what the final values measure
    final: npt.NDArray[np.float64]  # [seeds] mean over the last rounds, on the test set
    difference: float | None  # mean paired difference to the first regularizer; None if it is not a number
    interval: float | None  # half-width of its 95 % interval (Student's t, paired by seed)
    rounds_to_target: float | None  # median over the seeds that reached it
    bytes_to_target: float | None  # down and up, median over the same
    seconds_to_target: float | None  # of rounds, on the driver's clock; median over the same
    reached: int  # seeds that reached the target
    clip_fraction: float | None  # mean over rounds and seeds; None if no round had an update
    bytes_sent: float  # in all rounds, down and up, mean over seeds
    client_seconds: float  # of training, mean over seeds
    wall_seconds: float  # of all rounds, without the time before the first; mean over seeds
    alerts: tuple[str, ...]  # the names of the alerts of any seed
    alert_lines: tuple[str, ...] = ()  # one per name: how many seeds raised it, and what the first of them says

    def format_cells(self, *, with_target: bool = True) -> dict[str, str]:
        """Formats the row as text, by column; ``with_target``: including what it took to reach the target."""
        seeds = len(self.final)
        reached = "" if self.reached == seeds else f" ({self.reached}/{seeds} seeds)"
        to_target = MISSING if self.rounds_to_target is None else f"{self.rounds_to_target:g}{reached}"
        target = {
            "rounds to target": to_target,
            "MB to target": MISSING if self.bytes_to_target is None else f"{self.bytes_to_target / 1e6:.1f}",
        }
        return {
            "weight decay": f"{self.variant.weight_decay:g}",
            "regularizer": self.variant.regularizer,
            f"final {self.measure.name}": self._format_final(),
            "difference": self._format_difference(),
            **(target if with_target else {}),
            "clipped": MISSING if self.clip_fraction is None else f"{100 * self.clip_fraction:.0f} %",
            "client-s": f"{self.client_seconds:.1f}",
            "wall s": f"{self.wall_seconds:.1f}",
        }

    def _format_final(self) -> str:
        if not np.isfinite(self.final).all():
            return "not finite"
        name = self.measure.name
        deviation = f" ± {format_spread(name, float(self.final.std(ddof=1)))}" if len(self.final) > 1 else ""
        return f"{format_metric_value(name, float(self.final.mean()))}{deviation}"

    def _format_difference(self) -> str:
        if self.difference is None:
            return MISSING
        name = self.measure.name
        text = format_spread(name, abs(self.difference))
        sign = "-" if self.difference < 0 and text.strip("0.") else "+"
        return f"{sign}{text}" + ("" if self.interval is None else f" ± {format_spread(name, self.interval)}")

    @property
    def numbers(self) -> dict[str, Any]:
        """The numbers behind the cells, by column; a value that is not finite is None."""
        finals = [value if np.isfinite(value) else None for value in self.final.tolist()]
        return {f"{self.measure.name} by seed": finals, "mean difference": self.difference, "interval": self.interval}


def shows_target(rows: Sequence[Row], settings: CompareSettings) -> bool:
    """Returns whether a table has the columns of the target: if somebody has set one, or if a run has reached it."""
    given = {"target", "target_accuracy", "target_rmse"} & settings.model_fields_set
    return bool(given) or any(row.reached for row in rows)


def build_rows(
    outcomes: Mapping[Variant, Sequence[Outcome]], settings: CompareSettings, primary: str | None = None
) -> Iterator[Row]:
    """Builds one row per variant.

    Args:
        outcomes: Per variant, one outcome per seed, in the order of the seeds.
        settings: Which rounds are final, the target, and the regularizers, of which the first is the baseline.
        primary: The primary metric of the runs; see ``find_measure``.
    """
    records = (record for runs in outcomes.values() for run in runs for record in run.history)
    measure = find_measure(records, primary)
    target = settings.get_target(measure.name)
    for variant, runs in outcomes.items():
        baseline = Variant(variant.weight_decay, settings.regularizers[0])
        final, reference = (_compute_finals(outcomes.get(v, ()), settings, measure) for v in (variant, baseline))
        difference, interval = (None, None) if variant == baseline else _compare_if_finite(final, reference)
        reached = (
            [] if target is None else [e for run in runs if (e := _measure_to_target(run, measure, target)) is not None]
        )
        clipped = [shares[~np.isnan(shares)] for run in runs for shares in [get_curve(run.history, "clip_fraction")]]
        yield Row(
            variant=variant,
            measure=measure,
            final=final,
            difference=difference,
            interval=interval,
            rounds_to_target=float(np.median([each.rounds for each in reached])) if reached else None,
            bytes_to_target=float(np.median([each.bytes_sent for each in reached])) if reached else None,
            seconds_to_target=float(np.median([each.seconds for each in reached])) if reached else None,
            reached=len(reached),
            clip_fraction=_average([shares.mean() for shares in clipped if len(shares)]),
            bytes_sent=float(np.mean([measure_effort(run.history).bytes_sent for run in runs])),
            client_seconds=float(np.mean([measure_effort(run.history).client_seconds for run in runs])),
            wall_seconds=float(np.mean([measure_effort(run.history).seconds for run in runs])),
            alerts=tuple(dict.fromkeys(name for run in runs for name in run.alerts)),
            alert_lines=tuple(_describe_alerts(runs)),
        )


def _describe_alerts(runs: Sequence[Outcome]) -> Iterator[str]:
    """Yields one line per kind of alert. Seeds say the same with other numbers, so only the first one is quoted."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for name, message in zip(run.alerts, run.messages, strict=False):
            found.setdefault(name, []).append(message)
    for name, messages in found.items():
        often = f" ({len(messages)} of {len(runs)} seeds)" if len(runs) > 1 else ""
        yield f"{name}{often}: {messages[0]}"


def _average(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _compute_finals(runs: Sequence[Outcome], settings: CompareSettings, measure: Measure) -> npt.NDArray[np.float64]:
    return np.array([compute_final_value(run.history, settings.final_rounds, measure) for run in runs])


def _compare_if_finite(
    values: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]
) -> tuple[float | None, float | None]:
    """Computes ``compute_paired_difference`` of the seeds that both have, or (None, None) if a value is not finite."""
    both = min(len(values), len(reference))
    if both and np.isfinite(values).all() and np.isfinite(reference).all():
        return compute_paired_difference(values[:both], reference[:both])
    return None, None


def compute_paired_difference(
    values: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]
) -> tuple[float, float | None]:
    """Computes the mean difference of pairs and its 95 % confidence interval by Student's t.

    Args:
        values: One value per seed, [seeds].
        reference: The value that each is compared with, [seeds].

    Returns:
        The mean of ``values - reference``, and the half-width of the interval; None for a single pair.
    """
    differences = values - reference
    if len(differences) < 2:
        return float(differences.mean()), None
    from scipy.special import stdtrit  # the quantile of Student's t; scipy.stats takes a second to import

    quantile = stdtrit(len(differences) - 1, 0.5 + CONFIDENCE / 2)
    return float(differences.mean()), float(quantile * differences.std(ddof=1) / math.sqrt(len(differences)))


def _measure_to_target(run: Outcome, measure: Measure, target: float) -> Effort | None:
    """Measures a run until it first reached ``target``; None if it did not."""
    hits = np.flatnonzero(measure.reaches(get_curve(run.history, measure.metric), target))
    return measure_effort(run.history, int(hits[0]) + 1) if len(hits) else None


def build_metrics(rows: Sequence[Row]) -> dict[str, float]:
    """Returns the rows' final values and differences as MLflow metrics of the comparison."""
    found = {}
    for row in rows:
        label = f"{row.variant.regularizer}_{row.variant.weight_decay:g}"
        found[f"final_{row.measure.name}/{label}"] = float(row.final.mean())
        if row.difference is not None:
            found[f"difference/{label}"] = row.difference
    return found
