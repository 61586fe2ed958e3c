"""Writes the report of a search: plots, tables, and a page that contains everything."""

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from fednar_ray.report.axes import build_html_label, name_metric
from fednar_ray.report.heat_maps import draw_heat_map, list_pairs
from fednar_ray.report.importance import compute_importances, explain_missing_importances
from fednar_ray.report.search_page import Plot, build_page
from fednar_ray.report.search_plots import draw_best_and_baseline, draw_importances, draw_parallel
from fednar_ray.report.search_results import COLUMNS, SearchFacts, summarize_search, tabulate_trials
from fednar_ray.report.sensitivity import FACTORS, Sensitivity, compute_sensitivity
from fednar_ray.tracking.searches import SearchRecord

NONE_FINISHED = "No trial ran all rounds."


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchReport:
    """The files of a report, and the numbers in it."""

    page: Path
    files: tuple[Path, ...]  # all files, including the page
    facts: SearchFacts
    sensitivity: Sensitivity


def write_report(record: SearchRecord, directory: Path) -> SearchReport:
    """Writes the plots of a search, ``results.csv``, ``sensitivity.json`` and ``index.html`` into a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    facts, falls = summarize_search(record), compute_sensitivity(record)
    plots = list(_draw_plots(record, directory))
    index = directory / "index.html"
    index.write_text(build_page(record, facts, falls, plots), encoding="utf-8")
    drawn = [plot.path for plot in plots if plot.path is not None]
    tables = [_write_results(record, directory / "results.csv"), _write_falls(falls, directory / "sensitivity.json")]
    return SearchReport(page=index, files=(index, *drawn, *tables), facts=facts, sensitivity=falls)


def _draw_plots(record: SearchRecord, directory: Path) -> Iterator[Plot]:
    """Draws the plots in the order of the page."""
    started = record.best or record.baseline or any(trial.history for trial in record.trials)
    what = f"{name_metric(record).capitalize()} over rounds; behind it all trials, those that were stopped early too."
    yield Plot(
        title="Best against baseline",
        caption=what if started else "No round was evaluated.",
        path=draw_best_and_baseline(record, directory / "best_and_baseline.png") if started else None,
    )
    yield from _draw_heat_maps(record, directory)
    finished = bool(record.finished)
    yield Plot(
        title="Settings and results",
        caption="One line per trial, through its values to its result." if finished else NONE_FINISHED,
        path=draw_parallel(record, directory / "parallel_coordinates.png") if finished else None,
    )
    why_not = explain_missing_importances(record)
    yield Plot(
        title="What mattered",
        caption=why_not or "Parameter importance by fANOVA (Optuna's), over the trials that ran all rounds.",
        path=None if why_not else draw_importances(compute_importances(record), directory / "importance.png"),
    )


def _draw_heat_maps(record: SearchRecord, directory: Path) -> Iterator[Plot]:
    for x, y in list_pairs(record):
        title = f"{escape(name_metric(record).capitalize())} over {build_html_label(x)} and {build_html_label(y)}"
        if not record.finished:
            yield Plot(title=title, caption=NONE_FINISHED, path=None)
            continue
        path = directory / f"{_build_stem(x)}_and_{_build_stem(y)}.png"
        caption = (
            "Means over the trials that ran all rounds, regardless of their other settings; "
            "where trials are points, the star is the best."
        )
        yield Plot(title=title, caption=caption, path=draw_heat_map(record, x, y, path))


def _build_stem(key: str) -> str:
    return key.rpartition(".")[2]


def _write_results(record: SearchRecord, path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*COLUMNS, record.metric, *record.space])
        writer.writeheader()
        writer.writerows(tabulate_trials(record))
    return path


def _write_falls(falls: Sensitivity, path: Path) -> Path:
    means = {name: {str(factor): falls.average(name, factor) for factor in FACTORS} for name in falls.regularizers}
    content = {"mean_falls": means, "falls": [asdict(fall) for fall in falls.falls]}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    return path
