"""Builds the page of a comparison: which method is better and by how much, what it saves, curves, and cost."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from fednar_ray.config import CompareSettings, Experiment
from fednar_ray.config.recording import Prices
from fednar_ray.core.metric_names import SHARES, format_metric_value
from fednar_ray.report.bound_section import BoundSection, build_bound_section
from fednar_ray.report.comparison_answer import Contest, describe_comparison, explain_values, name_method
from fednar_ray.report.comparison_table import Outcome, Row
from fednar_ray.report.effort import Effort, format_bytes, format_cost, format_seconds
from fednar_ray.report.facts import RunFacts
from fednar_ray.report.page import Column, KeyFigure, Page, PageFigure, Table
from fednar_ray.report.plots import COLORS, STYLES, draw_band, format_decay_axis, widen
from fednar_ray.report.run_page import CLIENT_FIGURES, describe_making
from fednar_ray.report.run_plots import DECAY, Variant, draw_variants, find_last, get_curve, stack_curves
from fednar_ray.report.svg import draw

MISSING = "–"
DECAY_COLUMN = "weight decay λ"  # the table says what the λ in titles and notes below it is


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonPage:
    """The page of a comparison, and the picture of its curves."""

    name: str  # of the comparison
    rows: Sequence[Row]  # of its table, at least one
    outcomes: Mapping[Variant, Sequence[Outcome]]  # per variant, one outcome per seed
    settings: CompareSettings
    facts: RunFacts
    experiment: Experiment | None = None  # what all runs have in common; None: not known
    notes: Sequence[str] = ()  # below the table
    url: str | None = None  # of its page in MLflow; None if MLflow is a file

    def draw(self, path: Path) -> None:
        """Draws the curves of all variants as a PNG file."""
        draw_variants(
            {v: [run.history for run in runs] for v, runs in self.outcomes.items()}, path, self.rows[0].measure
        )

    def write(self, path: Path) -> None:
        """Writes the page, an HTML file that contains all that it needs."""
        path.write_text(self.build(), encoding="utf-8")

    def build(self) -> str:
        """Returns the HTML of the page."""
        rows, settings, facts = self.rows, self.settings, self.facts
        contest = Contest.choose(rows, settings)
        prices = self.experiment.report.prices if self.experiment is not None else None
        page = Page(
            kind="comparison",
            title=self.name,
            answer=list(describe_comparison(rows, settings)),
            made=describe_making(self.name, facts, self.experiment, self.url),
            content={
                "key": list(_list_key_figures(contest, settings, prices, facts)),
                "results": _tabulate_results(rows, contest),
                "notes": [*_explain_table(rows, settings), *_explain_stops(self.outcomes), *self.notes],
                "figures": list(_draw_curves(rows, self.outcomes)),
                "by_decay": _draw_by_decay(rows),
                "bound": self._build_bound_section(contest),
                "clients": _tabulate_clients(rows, self.outcomes),
                "cost": _tabulate_cost(rows, prices, facts),
                "cost_notes": list(_explain_cost(prices, facts)),
            },
        )
        return page.render()

    def _build_bound_section(self, contest: Contest) -> BoundSection | None:
        """Builds the sensitivity to A of the method that the answer is about, from the steps of all its seeds."""
        variant = contest.row.variant
        records = [record for run in self.outcomes[variant] for record in run.history]
        of = f"{name_method(variant)}, λ = {variant.weight_decay:g}"
        return build_bound_section(records, variant.regularizer, of=of)


def _list_key_figures(
    contest: Contest, settings: CompareSettings, prices: Prices | None, facts: RunFacts
) -> Iterator[KeyFigure]:
    row, baseline = contest.row, contest.baseline
    measure, target = row.measure, settings.get_target(row.measure.name)

    def pair(name: str, one: str, other: str) -> KeyFigure:
        return KeyFigure(name, one, "" if baseline is row else f"{name_method(baseline.variant)}: {other}")

    yield pair(f"final test {measure.name.replace('_', ' ')}", *(_format_final(each) for each in (row, baseline)))
    if target is not None:
        goal = f"to {measure.name.replace('_', ' ')} {target:g}"
        yield pair(f"rounds {goal}", *(_format(each.rounds_to_target, "{:g}".format) for each in (row, baseline)))
        yield pair(f"bytes {goal}", *(_format(each.bytes_to_target, format_bytes) for each in (row, baseline)))
        yield pair(f"time {goal}", *(_format(each.seconds_to_target, format_seconds) for each in (row, baseline)))
    else:
        yield pair("sent and received", *(format_bytes(each.bytes_sent) for each in (row, baseline)))
        yield pair("time of all rounds", *(format_seconds(each.wall_seconds) for each in (row, baseline)))
    yield pair("training, all clients", *(format_seconds(each.client_seconds) for each in (row, baseline)))
    if prices is not None:
        yield pair("cost of a run", *(format_cost(_compute_cost(each, prices, facts)) for each in (row, baseline)))


def _format(value: float | None, write: Callable[[float], str]) -> str:
    return "not reached" if value is None else write(value)


def _format_final(row: Row) -> str:
    mean = float(row.final.mean())
    return format_metric_value(row.measure.name, mean) if np.isfinite(mean) else "not finite"


def _compute_cost(row: Row, prices: Prices, facts: RunFacts) -> float:
    effort = Effort(rounds=0, bytes_sent=row.bytes_sent, seconds=row.wall_seconds, client_seconds=row.client_seconds)
    return effort.compute_cost(prices, gpus=facts.gpus)


def _tabulate_results(rows: Sequence[Row], contest: Contest) -> Table:
    cells = [row.format_cells() for row in rows]
    kept = [name for name in cells[0] if name not in ("client-s", "wall s", "MB to target")]
    if all(row.rounds_to_target is None for row in rows):
        kept.remove("rounds to target")
    columns = [Column(DECAY_COLUMN if name == "weight decay" else name, number=name != "regularizer") for name in kept]
    marked = frozenset(i for i, row in enumerate(rows) if row is contest.row)
    return Table(columns, [[each[name] for name in kept] for each in cells], marked)


def _tabulate_clients(rows: Sequence[Row], outcomes: Mapping[Variant, Sequence[Outcome]]) -> Table | None:
    """Returns the last values on clients' own examples, averaged over seeds; None if they were not evaluated."""
    name = rows[0].measure.name
    cells = [
        [f"{row.variant.weight_decay:g}", row.variant.regularizer]
        + [_average_last(outcomes[row.variant], f"client_{name}_{key}", name) for key in CLIENT_FIGURES]
        for row in rows
    ]
    if all(cell == MISSING for row in cells for cell in row[2:]):
        return None
    columns = [Column(DECAY_COLUMN), Column("regularizer", number=False)]
    columns += [Column(f"{name.replace('_', ' ')} {of}") for of in CLIENT_FIGURES.values()]
    return Table(columns, cells, note="On the clients' own examples after the last round, the mean over seeds.")


def _average_last(runs: Sequence[Outcome], metric: str, name: str) -> str:
    values = [find_last(run.history, metric) for run in runs]
    known = [value for value in values if value is not None]
    return format_metric_value(name, float(np.mean(known))) if known else MISSING


def _explain_table(rows: Sequence[Row], settings: CompareSettings) -> Iterator[str]:
    yield explain_values(rows, settings)
    if any(row.alerts for row in rows):
        yield "Alerts: " + "; ".join(
            f"{name_method(row.variant)}, λ = {row.variant.weight_decay:g}: {', '.join(row.alerts).replace('_', ' ')}"
            for row in rows
            if row.alerts
        )


def _explain_stops(outcomes: Mapping[Variant, Sequence[Outcome]]) -> Iterator[str]:
    """Yields which runs a callback ended, since they trained fewer rounds than others."""
    for variant, runs in outcomes.items():
        stopped = [run for run in runs if run.stop]
        if stopped:
            which = f"{name_method(variant)}, λ = {variant.weight_decay:g}: {len(stopped)} of {len(runs)} runs"
            yield f"{which} {stopped[0].stop}."


def _tabulate_cost(rows: Sequence[Row], prices: Prices | None, facts: RunFacts) -> Table:
    columns = [DECAY_COLUMN, "regularizer", "sent and received", "training, all clients", "time of all rounds"]
    cells = [
        [
            f"{row.variant.weight_decay:g}",
            row.variant.regularizer,
            format_bytes(row.bytes_sent),
            format_seconds(row.client_seconds),
            format_seconds(row.wall_seconds),
            *([] if prices is None else [format_cost(_compute_cost(row, prices, facts))]),
        ]
        for row in rows
    ]
    names = [*columns, *([] if prices is None else ["cost"])]
    return Table([Column(name, number=name != "regularizer") for name in names], cells)


def _explain_cost(prices: Prices | None, facts: RunFacts) -> Iterator[str]:
    yield "Of one run, the mean over seeds. Bytes are those of a real federation: the model down to clients and back."
    if prices is not None:
        hour = f"{prices.gpu_hour:g} per GPU hour" if facts.gpus else f"{prices.cpu_hour:g} per CPU hour"
        yield f"Prices: {hour} of training, {prices.gb:g} per gigabyte sent or received."
    else:
        yield "Set report.prices to see the cost in money."


def _draw_curves(rows: Sequence[Row], outcomes: Mapping[Variant, Sequence[Outcome]]) -> Iterator[PageFigure]:
    measure = rows[0].measure
    name = measure.name.replace("_", " ")
    decays = list(dict.fromkeys(row.variant.weight_decay for row in rows))
    for decay in decays:
        variants = [row.variant for row in rows if row.variant.weight_decay == decay]
        suffix = f", λ = {decay:g}" if len(decays) > 1 else ""
        yield PageFigure(
            f"Test {name}{suffix}",
            draw(partial(_draw_bands, outcomes=outcomes, variants=variants, metric=measure.metric), f"test {name}"),
            "Lines are means over seeds, bands the range." if len(rows[0].final) > 1 else "One seed.",
        )
    for decay in decays:
        variants = [row.variant for row in rows if row.variant.weight_decay == decay]
        suffix = f", λ = {decay:g}" if len(decays) > 1 else ""
        yield PageFigure(
            f"Weight decay in effect{suffix}",
            draw(partial(_draw_bands, outcomes=outcomes, variants=variants, metric=DECAY), "weight decay in effect"),
            "What clipping left of the given weight decay.",
        )


def _draw_bands(
    axes: Axes, *, outcomes: Mapping[Variant, Sequence[Outcome]], variants: Sequence[Variant], metric: str
) -> None:
    for variant in variants:
        runs = stack_curves([get_curve(run.history, metric) for run in outcomes[variant]])
        draw_band(axes, variant.regularizer, runs, label=name_method(variant))
    axes.set_xlabel("round")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best")
    widen(axes)


def _draw_by_decay(rows: Sequence[Row]) -> PageFigure | None:
    decays = sorted({row.variant.weight_decay for row in rows})
    if len(decays) < 2:
        return None
    measure = rows[0].measure

    def build(axes: Axes) -> None:
        for regularizer in dict.fromkeys(row.variant.regularizer for row in rows):
            own = sorted(
                (r for r in rows if r.variant.regularizer == regularizer), key=lambda r: r.variant.weight_decay
            )
            means = [float(row.final.mean()) for row in own]
            spreads = [float(row.final.std(ddof=1)) if len(row.final) > 1 else 0.0 for row in own]
            axes.errorbar(
                [row.variant.weight_decay for row in own], means, yerr=spreads, marker="o", capsize=3,
                color=COLORS[regularizer], linestyle=STYLES[regularizer], label=name_method(own[0].variant),
            )  # fmt: skip
        format_decay_axis(axes, decays)
        axes.set_xlabel("weight decay λ")
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.legend(loc="best")
        if measure.name not in SHARES:
            widen(axes)

    name = measure.name.replace("_", " ")
    spread = "; bars are standard deviations over seeds" if len(rows[0].final) > 1 else ""
    caption = f"Final test {name}. A flat line forgives a badly chosen weight decay{spread}."
    return PageFigure(f"Final test {name} by weight decay", draw(build, f"final {name} by weight decay"), caption)
