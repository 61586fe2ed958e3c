"""Builds the HTML page of a search. Its plots are embedded, so it needs no network."""

from base64 import b64encode
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from fednar_ray.report.axes import build_html_label, format_metric, format_searched_value, name_metric
from fednar_ray.report.search_results import SearchFacts, rank_trials
from fednar_ray.report.sensitivity import FACTORS, Degradation, Sensitivity
from fednar_ray.tracking.searches import SearchRecord

STYLE = """
:root { color: #1d2329; background: #fff; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem 1rem 4rem; }
h1 { margin: .5rem 0; font-size: 1.7rem; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .5rem; font-size: 1.25rem; }
.lead { font-size: 1.1rem; padding: .7rem 1rem; background: #f3f6f9; border-left: 4px solid #d1495b; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.facts div { border: 1px solid #d8dee4; border-radius: 6px; padding: .5rem .8rem; }
.facts dt { font-size: .85rem; color: #57606a; }
.facts dd { margin: 0; font-size: 1.1rem; overflow-wrap: anywhere; }
.scroll { overflow: auto; max-height: 90vh; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e3e8ed; text-align: left; white-space: nowrap; }
th { background: #f3f6f9; position: sticky; top: 0; }
td.number { text-align: right; }
figure { margin: 1rem 0; overflow-x: auto; }
img { max-width: 100%; min-width: 34rem; height: auto; }
figcaption, .note { color: #57606a; font-size: .92rem; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """A plot of the page with its heading; without a path, the caption says why there is no plot."""

    title: str  # HTML
    caption: str
    path: Path | None


@dataclass(frozen=True, slots=True)
class Number:
    """An HTML cell that is aligned to the right."""

    html: str


Cell = str | Number
"""HTML that is aligned to the left, or a Number."""


def build_page(record: SearchRecord, facts: SearchFacts, falls: Sensitivity, plots: Sequence[Plot]) -> str:
    """Returns the HTML of the whole page."""
    title = f"Search {escape(record.name)}"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}</style></head><body>",
            f"<h1>{title}</h1>",
            *(f'<p class="lead">{escape(sentence)}</p>' for sentence in describe_sensitivity(record, falls)),
            _render_facts(record, facts),
            "<h2>Best values</h2>",
            _render_best_values(record, facts),
            *map(_render_plot, plots[:1]),
            "<h2>Sensitivity</h2>",
            *_render_sensitivity(record, falls),
            *map(_render_plot, plots[1:]),
            "<h2>All trials</h2>",
            _render_results(record),
            "</body></html>\n",
        ]
    )


def describe_sensitivity(record: SearchRecord, falls: Sensitivity) -> list[str]:
    """Returns the sensitivity as sentences, one per factor."""
    sentences = []
    for factor in FACTORS:
        losses = [(name, falls.average(name, factor)) for name in falls.regularizers]
        known = [f"{name} {format_degradation(record, loss)}" for name, loss in losses if loss is not None]
        if known:
            what = f"{'points of ' if _is_in_points(record) else ''}{name_metric(record)}"
            sentences.append(f"With one setting off by {factor} times, the loss in {what}: {', '.join(known)}.")
    return sentences


def format_degradation(record: SearchRecord, fall: float | None) -> str:
    """Formats a degradation of the metric; that of an accuracy is given in points (hundredths)."""
    if fall is None:
        return "–"
    return f"{100 * fall:.1f}" if _is_in_points(record) else format_metric(fall)


def _is_in_points(record: SearchRecord) -> bool:
    return "accuracy" in record.metric


def _render_facts(record: SearchRecord, facts: SearchFacts) -> str:
    trials = ", ".join(f"{count} {status}" for status, count in facts.statuses.items() if count) or "none"
    seeds = f", {record.seeds} seeds each" if record.seeds > 1 else ""
    test = None if record.test_metric is None else record.test_metric.replace("_", " ")
    measured_once = {f"{test} of the best": facts.best_test_value, f"{test} of the baseline": facts.baseline_test_value}
    shown = {
        "metric": f"{name_metric(record)}, {'highest' if record.mode == 'max' else 'lowest'} is best",
        "algorithm, scheduler": f"{record.algorithm}, {record.scheduler}",
        "trials": trials + seeds,
        "best trial": facts.best_trial or "–",
        f"best {name_metric(record)}": format_metric(facts.best_value),
        f"baseline {name_metric(record)}": format_metric(facts.baseline_value),
        **({} if test is None else {name: format_metric(value) for name, value in measured_once.items()}),
        "rounds trained": f"{facts.rounds_trained:,}",
        "rounds saved by early stopping": f"{facts.rounds_saved:,}",
    }
    boxes = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in shown.items())
    return f'<dl class="facts">{"".join(boxes)}</dl>'


def _render_best_values(record: SearchRecord, facts: SearchFacts) -> str:
    if facts.best_trial is None:
        return '<p class="note">No trial ran all rounds, so none is the best.</p>'
    baseline = record.baseline.settings if record.baseline else {}
    rows: list[list[Cell]] = [
        [
            build_html_label(key),
            f"<code>{escape(key)}</code>",
            Number(escape(format_searched_value(value))),
            Number(escape(format_searched_value(baseline[key])) if key in baseline else "–"),
        ]
        for key, value in facts.best_values.items()
    ]
    return _render_table(["setting", "key", "best", "baseline"], rows)


def _render_sensitivity(record: SearchRecord, falls: Sensitivity) -> Iterable[str]:
    if not falls.known:
        yield (
            '<p class="note">No two trials that ran all rounds differ in one setting alone, and by 3 or 10 times: '
            "a grid over A, λ and η has such trials.</p>"
        )
        return
    unit = "points" if _is_in_points(record) else name_metric(record)
    yield (
        f'<p class="note">How much worse ({unit}) a regularizer does when one setting of its best trial is off, '
        "in the worse direction, or in the only one that the trials reach; of an annealing rate γ it is 1 − γ that is "
        "off.</p>"
    )
    rows: list[list[Cell]] = [
        [
            escape(fall.regularizer),
            build_html_label(fall.key),
            Number(f"{fall.factor} times"),
            Number(_format_change(fall)),
            Number(_format_loss(record, fall)),
        ]
        for fall in falls.falls
    ]
    means: list[list[Cell]] = [
        [
            f"<b>{escape(name)}</b>",
            "<b>mean of the settings</b>",
            Number(f"{factor} times"),
            "",
            Number(f"<b>{format_degradation(record, falls.average(name, factor))}</b>"),
        ]
        for name in falls.regularizers
        for factor in FACTORS
    ]
    yield _render_table(["regularizer", "setting", "off by", "from → to", f"loss ({escape(unit)})"], [*means, *rows])


def _format_change(fall: Degradation) -> str:
    return escape(
        f"{format_searched_value(fall.right)} → {'–' if fall.wrong is None else format_searched_value(fall.wrong)}"
    )


def _format_loss(record: SearchRecord, fall: Degradation) -> str:
    return format_degradation(record, fall.fall) + (f" ({fall.failed} failed)" if fall.failed else "")


def _render_results(record: SearchRecord) -> str:
    if not record.trials:
        return '<p class="note">No trial has started.</p>'
    rows: list[list[Cell]] = [
        [
            escape(trial.name),
            escape(trial.status),
            Number(str(trial.rounds)),
            Number(format_metric(trial.value)),
            *(Number(escape(format_searched_value(trial.values[key]))) for key in record.space),
        ]
        for trial in rank_trials(record)
    ]
    header = ["trial", "status", "rounds", escape(name_metric(record)), *map(build_html_label, record.space)]
    return _render_table(header, rows)


def _render_table(header: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Returns an HTML table; the cells are HTML."""
    head = "".join(f"<th>{name}</th>" for name in header)
    body = "".join(f"<tr>{''.join(map(_render_cell, row))}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _render_cell(cell: Cell) -> str:
    return f'<td class="number">{cell.html}</td>' if isinstance(cell, Number) else f"<td>{cell}</td>"


def _render_plot(plot: Plot) -> str:
    heading = f"<h2>{plot.title}</h2>"
    if plot.path is None:
        return f'{heading}<p class="note">{escape(plot.caption)}</p>'
    data = b64encode(plot.path.read_bytes()).decode("ascii")
    image = f'<img alt="{escape(plot.caption)}" src="data:image/png;base64,{data}">'
    return f"{heading}<figure>{image}<figcaption>{escape(plot.caption)}</figcaption></figure>"
