"""Writes the report of a search: plots, tables, and a page that contains everything."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from fednar_ray.report.axes import build_plain_label, name_metric
from fednar_ray.report.facts import RunFacts
from fednar_ray.report.heat_maps import LEAST_TRIALS, draw_heat_map, has_enough_trials, list_pairs
from fednar_ray.report.importance import compute_importances, explain_missing_importances
from fednar_ray.report.page import PageFigure
from fednar_ray.report.search_page import build_search_page
from fednar_ray.report.search_plots import draw_best_and_baseline, draw_importances, draw_parallel
from fednar_ray.report.search_results import SearchFacts, compute_search_facts, list_columns, tabulate_trials
from fednar_ray.report.sensitivity import FACTORS, Sensitivity, compute_sensitivity
from fednar_ray.report.svg import render
from fednar_ray.tracking.searches import SearchRecord

SEARCH_PICTURE = "best_and_baseline.png"
NOT_KNOWN = RunFacts()
HEAT_MAP_CAPTION = (
    "Means over the trials that ran all rounds, regardless of their other settings; where trials are points, the star "
    "is the best."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchReport:
    """The files of a report, and the numbers in it."""

    page: Path
    files: tuple[Path, ...]  # all files, including the page
    facts: SearchFacts
    sensitivity: Sensitivity


def write_report(
    record: SearchRecord, directory: Path, made: RunFacts = NOT_KNOWN, url: str | None = None
) -> SearchReport:
    """Writes the page of a search, a picture, ``results.csv`` and ``sensitivity.json`` into a directory.

    Args:
        record: The search.
        directory: Where to write.
        made: How the best experiment was trained again, which is how the search was made.
        url: The page of the search in MLflow; None if MLflow is a file.
    """
    directory.mkdir(parents=True, exist_ok=True)
    facts, falls = compute_search_facts(record), compute_sensitivity(record)
    importances = {} if explain_missing_importances(record) else compute_importances(record)
    figures, missing = list(_draw_figures(record, importances)), list(_explain_missing_figures(record))
    index = directory / "index.html"
    started = bool(record.best or record.baseline or any(trial.history for trial in record.trials))
    curves = _draw_curves(record) if started else None
    page = build_search_page(record, facts, falls, made, url, curves=curves, figures=figures, missing=missing)
    index.write_text(page, encoding="utf-8")
    drawn = []
    if started:
        drawn.append(directory / SEARCH_PICTURE)
        draw_best_and_baseline(record).savefig(drawn[0], dpi=110)
    results = _write_results(record, importances, directory / "results.csv")
    files = (index, *drawn, results, _write_falls(falls, directory / "sensitivity.json"))
    return SearchReport(page=index, files=files, facts=facts, sensitivity=falls)


def _draw_curves(record: SearchRecord) -> PageFigure:
    metric = name_metric(record)
    return PageFigure(
        title=f"{metric.capitalize()} over rounds",
        svg=render(lambda: draw_best_and_baseline(record), f"{metric} of the best trial and the baseline over rounds"),
        caption="Behind them all trials, those that were stopped early too.",
    )


def _draw_figures(record: SearchRecord, importances: Mapping[str, float]) -> Iterator[PageFigure]:
    """Draws the wide figures in the order of the page, if there are enough trials for each."""
    metric = name_metric(record)
    for x, y in list_pairs(record) if has_enough_trials(record) else ():
        yield PageFigure(
            title=f"{metric.capitalize()} over {build_plain_label(x)} and {build_plain_label(y)}",
            svg=render(partial(draw_heat_map, record, x, y), f"{metric} over {x} and {y}"),
            caption=HEAT_MAP_CAPTION,
        )
    if len(record.finished) > 1:
        yield PageFigure(
            title="Settings and results",
            svg=render(lambda: draw_parallel(record), "all trials: their settings and results"),
            caption="One line per trial, through its values to its result.",
        )
    if importances:
        yield PageFigure(
            title="What mattered",
            svg=render(lambda: draw_importances(importances), "importance of the searched settings"),
            caption="How much of the difference between trials each setting explains (fANOVA, over finished trials).",
        )


def _explain_missing_figures(record: SearchRecord) -> Iterator[str]:
    if list_pairs(record) and not has_enough_trials(record):
        finished = len(record.finished)
        yield f"A map over two settings needs {LEAST_TRIALS} trials that ran all rounds; there are {finished}."
    why_not = explain_missing_importances(record)
    if why_not is not None:
        yield why_not


def _write_results(record: SearchRecord, importances: Iterable[str], path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list_columns(record, importances))
        writer.writeheader()
        writer.writerows(tabulate_trials(record))
    return path


def _write_falls(falls: Sensitivity, path: Path) -> Path:
    means = {name: {str(factor): falls.average(name, factor) for factor in FACTORS} for name in falls.regularizers}
    content = {"mean_falls": means, "falls": [asdict(fall) for fall in falls.falls]}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    return path
