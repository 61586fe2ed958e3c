"""Runs a table of FedNAR's paper and writes measured next to published values. Cells are runs that can be resumed."""

import argparse
import json
import logging
import os
import re
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from pages import DOCS, write_part
from tables import DATA_KEYS, NAMES, REGULARIZERS, TABLES, Cell, Table, build_data_overrides, load_cell

import fednar_ray as fr
from fednar_ray.core.errors import FednarError
from fednar_ray.report.plots import COLORS, STYLES, draw_by_decay
from fednar_ray.report.run_plots import compute_final_value
from fednar_ray.tracking.file_writes import replace_file

FINAL_ROUNDS = 10


@dataclass(frozen=True, slots=True)
class Measured:
    """The runs of a cell, one per seed."""

    cell: Cell
    final: tuple[float, ...]  # mean test accuracy (%) of the evaluated rounds among the last 10
    best: float  # the highest test accuracy (%), mean over the seeds
    clipped: float  # share of clipped steps
    decay: float  # effective weight decay, mean over the rounds
    curves: tuple[tuple[tuple[int, float], ...], ...]  # (round, test accuracy in %) by seed

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.final)

    def format(self) -> str:
        """Formats mean and standard deviation."""
        spread = f" ± {statistics.stdev(self.final):.2f}" if len(self.final) > 1 else ""
        return f"{self.mean:.2f}{spread}"


def main() -> None:
    """Runs or resume a table."""
    arguments = _parse_arguments()
    logging.basicConfig(format="%(message)s")
    scale = arguments.scale or ("full" if torch.cuda.is_available() or arguments.address else None)
    if scale is None:
        sys.exit(
            f"{arguments.table} at full scale needs GPUs, and there are none here. --scale small runs a reduced form; "
            "--address joins a cluster; --scale full runs it on this machine anyway"
        )
    table = TABLES[arguments.table, scale]
    own = tuple(part for part in arguments.overrides if "=" in part)
    overrides = {}
    for text in arguments.data:
        kind, _, path = text.partition("=")
        overrides |= build_data_overrides(kind, str(Path(path).absolute()))
    output = Path(arguments.output or f"reproduction/{arguments.table}-{scale}").absolute()
    output.mkdir(parents=True, exist_ok=True)
    os.chdir(output)  # runs/ and mlflow.db are stored here, so that the table can be resumed
    try:
        cells = list(table.cells(partial(load_cell, overrides, own)))
        _run(table, cells, arguments.seeds, fr.RaySession(arguments.address), output, _format_command(arguments))
        if arguments.document:
            _write_documentation(f"{arguments.table}-{scale}", output)
    except FednarError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; resume with the same command")


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/reproduce", description=__doc__)
    parser.add_argument("table", choices=NAMES)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for every experiment of the table")
    parser.add_argument("--scale", choices=("full", "small"), help="small: reduced for a machine without GPUs")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="KIND=PATH",
        help=f"where data are; KIND is one of {', '.join(DATA_KEYS)}",
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs per cell, counted up from the file's seed")
    parser.add_argument("--address", default=os.environ.get("RAY_ADDRESS"), help="address of a Ray cluster")
    parser.add_argument(
        "--document", action="store_true", help="also write the table and its pictures into docs/reproduction.md"
    )
    parser.add_argument("--output", help="where runs, table and curves are kept; default: reproduction/TABLE-SCALE")
    arguments = parser.parse_intermixed_args()
    wrong = [text for text in arguments.data if text.partition("=")[0] not in DATA_KEYS or "=" not in text]
    wrong += [text for text in arguments.overrides if "=" not in text]
    if wrong or arguments.seeds < 1:
        parser.error(f"invalid arguments: {', '.join(wrong) or '--seeds below 1'}")
    return arguments


def _format_command(arguments: argparse.Namespace) -> str:
    parts = ["scripts/reproduce", arguments.table]
    parts += ["--scale", arguments.scale] if arguments.scale else []
    for text in arguments.data:
        kind, _, path = text.partition("=")
        parts += ["--data", f"{kind}={Path(path).name}"]
    parts += ["--seeds", str(arguments.seeds)] if arguments.seeds > 1 else []
    return " ".join([*parts, *arguments.overrides])


def _run(table: Table, cells: Sequence[Cell], seeds: int, session: fr.RaySession, output: Path, command: str) -> None:
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    measured: list[Measured] = []
    with session:
        for index, cell in enumerate(cells):
            start = time.monotonic()
            runs = [
                fr.run(_name_experiment(cell, offset), session=session, resume_newest=True) for offset in range(seeds)
            ]
            measured.append(_measure(cell, runs))
            _write(table, measured, output, command)
            print(
                f"{index + 1}/{len(cells)}  {cell.row}, {cell.column}, {cell.regularizer}: {measured[-1].format()} %"
                f"{f' (published {cell.published:.2f})' if cell.published else ''}, "
                f"{time.monotonic() - start:.0f} s",
                flush=True,
            )
    print((output / "table.md").read_text())
    print(f"kept in {output}")


def _name_experiment(cell: Cell, offset: int) -> fr.Experiment:
    """Gives the cell's experiment a unique name, by which it is found when the table is resumed."""
    place = re.sub(r"[^A-Za-z0-9.]+", "", f"{cell.row}.{cell.column}")
    seed = cell.experiment.seed + offset
    name = f"{cell.experiment.name}-{place}-{cell.regularizer}-{seed}"
    return cell.experiment.model_copy(update={"name": name, "seed": seed})


def _measure(cell: Cell, runs: Sequence[fr.Result]) -> Measured:
    final, best, curves = [], [], []
    for run in runs:
        curve = [(r.round_index, 100 * r.metrics["test_accuracy"]) for r in run.history if "test_accuracy" in r.metrics]
        final.append(100 * compute_final_value(run.history, FINAL_ROUNDS))
        best.append(max(accuracy for _, accuracy in curve))
        curves.append(tuple(curve))

    def mean(metric: str) -> float:
        return float(np.mean([r.metrics[metric] for run in runs for r in run.history]))

    return Measured(
        cell, tuple(final), statistics.fmean(best), mean("clip_fraction"), mean("effective_weight_decay"), tuple(curves)
    )


def _write(table: Table, measured: Sequence[Measured], output: Path, command: str) -> None:
    _draw_curves(measured, output / "curves.png", "λ = " if table.by_decay else "")
    if table.by_decay:
        for row in dict.fromkeys(each.cell.row for each in measured):
            accuracies: dict[str, dict[float, list[float]]] = {}
            for each in measured:
                if each.cell.row == row:
                    by_decay = accuracies.setdefault(each.cell.regularizer, {})
                    by_decay[float(each.cell.column)] = [value / 100 for value in each.final]
            draw_by_decay(accuracies, output / f"decay_{row}.png")
    replace_file(output / "table.md", _format_markdown(table, measured, command))
    rows = [
        {
            "row": m.cell.row, "column": m.cell.column, "regularizer": m.cell.regularizer, "final": m.final,
            "best": m.best, "published": m.cell.published, "clipped": m.clipped, "effective_weight_decay": m.decay,
            "curves": m.curves,
        }
        for m in measured
    ]  # fmt: skip
    replace_file(output / "results.json", json.dumps({"title": table.title, "reduced": table.reduced, "cells": rows}))


def _format_markdown(table: Table, measured: Sequence[Measured], command: str) -> str:
    seeds = len(measured[0].final)
    label = f"**Reduced form**: {table.reduced}." if table.reduced else "In the authors' settings."
    lines = [
        f"{table.title}. {label} Test accuracy (%), mean of the last {FINAL_ROUNDS} rounds"
        f"{f', of {seeds} seeds' if seeds > 1 else ', one run each'}; `{command}`, {time.strftime('%Y-%m-%d')}.",
        "",
        f"| preset | {'weight decay' if table.by_decay else ''} | {' | '.join(REGULARIZERS)} "
        "| difference | clipped | effective decay |",
        "|---|---|" + "---:|" * (len(REGULARIZERS) + 3),
    ]
    by_place = {(m.cell.row, m.cell.column, m.cell.regularizer): m for m in measured}
    for row, column in dict.fromkeys((m.cell.row, m.cell.column) for m in measured):
        pair = [by_place.get((row, column, name)) for name in REGULARIZERS]
        cells = ["–" if m is None else m.format() + _format_published(m.cell) for m in pair]
        baseline, fednar = pair
        gain = f"{fednar.mean - baseline.mean:+.2f}" if baseline and fednar else "–"
        clipped = " / ".join("–" if m is None else f"{100 * m.clipped:.0f} %" for m in pair)
        decay = " / ".join("–" if m is None else f"{m.decay:.2g}" for m in pair)
        lines.append(f"| {row} | {column} | {' | '.join(cells)} | {gain} | {clipped} | {decay} |")
    return "\n".join(lines) + "\n"


def _write_documentation(name: str, output: Path) -> None:
    """Writes the table and the pictures into docs/reproduction.md."""
    pictures = []
    for picture in sorted(output.glob("*.png")):
        kept = f"reproduction-{name}-{picture.stem}.png".replace("_", "-")
        shutil.copy(picture, DOCS / "images" / kept)
        pictures += ["", f"![{picture.stem.replace('_', ' ')}](images/{kept})"]
    text = "\n".join([(output / "table.md").read_text().rstrip(), *pictures])
    write_part(DOCS / "reproduction.md", name, "scripts/reproduce", text)


def _format_published(cell: Cell) -> str:
    return f" (published {cell.published:.2f})" if cell.published is not None else ""


def _draw_curves(measured: Sequence[Measured], path: Path, column: str) -> None:
    """Draws test accuracy over rounds, one panel per cell of the table."""
    rows = list(dict.fromkeys(m.cell.row for m in measured))
    columns = list(dict.fromkeys(m.cell.column for m in measured))
    figure = Figure(figsize=(max(5.0, 3.4 * len(columns)), 0.6 + 2.8 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    for m in measured:
        axes = panels[rows.index(m.cell.row), columns.index(m.cell.column)]
        for index, curve in enumerate(m.curves):
            name = m.cell.regularizer
            style = {"color": COLORS[name], "linestyle": STYLES[name], "label": name if index == 0 else None}
            axes.plot([r + 1 for r, _ in curve], [accuracy for _, accuracy in curve], **style)
        axes.set_title(f"{m.cell.row}, {column}{m.cell.column}", fontsize=10)
        axes.grid(alpha=0.3)
    panels[0, 0].legend(frameon=False)
    figure.supxlabel("round")
    figure.supylabel("test accuracy, %")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
