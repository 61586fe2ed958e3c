"""Measures the gain of a search on digits: 40 trials of Optuna against as many rounds with the default settings.

Run by scripts/tuning_example; writes the examples of docs/tuning.md and their pictures. Exit code 1: the defaults won.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pages import DOCS, ROOT, write_part
from scipy.stats import spearmanr

import fednar_ray as fr
from fednar_ray.report.axes import CLIP_BOUND, WEIGHT_DECAY
from fednar_ray.report.comparison_table import compute_paired_difference
from fednar_ray.report.heat_maps import draw_heat_map
from fednar_ray.report.importance import compute_importances
from fednar_ray.report.search_plots import draw_best_and_baseline, draw_importances, draw_parallel
from fednar_ray.tracking.searches import SearchRecord, read_search

PAGE, IMAGES = DOCS / "tuning.md", DOCS / "images"
FILE = ROOT / "tune_configs" / "digits.yaml"
FEDNAR = Path(sys.executable).with_name("fednar")
TRIALS, SEEDS, ROUNDS = 40, 3, 30
FRESH_SEEDS = range(100, 110)  # neither side was trained or tuned on them
COMMAND = (
    *("search.name=digits-40", f"search.trials={TRIALS}", f"search.seeds={SEEDS}", "search.scheduler=none"),
    *(f"federation.rounds={ROUNDS}", "data.seed=0"),
)
COMMON = ("data.validation=0.2",)  # larger than in the file, so that differences of a point show
REPETITIONS = 5
CHOICE_COMMAND = (
    *(f"search.trials={TRIALS}", "search.scheduler=none"),
    *(f"federation.rounds={ROUNDS}", "data.seed=0"),
)
CHOICES = {"optuna": "Optuna (TPE)", "random": "random search", "default": "the best of as many default runs"}
PICTURES: dict[str, Callable[[SearchRecord], Figure]] = {
    "parallel_coordinates": draw_parallel,
    "best_and_baseline": draw_best_and_baseline,
    "importance": lambda record: draw_importances(compute_importances(record)),
    "clip_bound_and_weight_decay": lambda record: draw_heat_map(record, CLIP_BOUND, WEIGHT_DECAY),
}


@dataclass(frozen=True)
class Outcome:
    """The accuracies after the last round of a run."""

    validation: float
    test: float


def train(overrides: Sequence[str]) -> Outcome:
    """Trains the experiment of the file with overrides."""
    settings = (*COMMON, f"federation.rounds={ROUNDS}", "execution.placement=serial", f"evaluation.every={ROUNDS}")
    *_, last = fr.iter_rounds(fr.load(FILE, overrides=[*settings, *overrides]))
    return Outcome(last.metrics["validation_accuracy"], last.metrics["test_accuracy"])


def choose_best(outcomes: Sequence[Outcome]) -> Outcome:
    """Returns the outcome with the best validation accuracy."""
    return max(outcomes, key=lambda each: each.validation)


def average_outcomes(outcomes: Sequence[Outcome]) -> Outcome:
    """Averages outcomes over seeds."""
    each = [statistics.fmean(values) for values in zip(*((o.validation, o.test) for o in outcomes), strict=True)]
    return Outcome(*each)


def main() -> None:
    """Writes all parts, or the chosen one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("example", "choices", "sensitivity"))
    only = parser.parse_args().only
    won = only in ("choices", "sensitivity") or run_example()
    if only in (None, "choices"):
        compare_choices()
    if only in (None, "sensitivity"):
        measure_sensitivity()
    sys.exit(0 if won else 1)


def run_example() -> bool:
    """Searches, spends as many rounds on the default settings, compares them, and returns whether the search won."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(os.cpu_count()) as pool:
        search = run_search(Path(folder), str(FILE), *COMMAND, *COMMON)
        draw_pictures(search, "tuning", [*PICTURES])
        tuned = [f"{key}={value}" for key, value in search["best_values"].items()]
        singles = list(pool.map(train, [[f"seed={seed}", "data.seed=0"] for seed in range(TRIALS * SEEDS)]))
        defaults = [average_outcomes(singles[first : first + SEEDS]) for first in range(0, len(singles), SEEDS)]
        fresh = [[f"seed={seed}"] for seed in FRESH_SEEDS]
        fresh_tuned = list(pool.map(train, [[*tuned, *seed] for seed in fresh]))
        fresh_default = list(pool.map(train, fresh))
    write("example", describe(search, defaults, fresh_tuned, fresh_default, (time.monotonic() - start) / 60))
    return bool(search["test_accuracy"] > choose_best(defaults).test)


def compare_choices() -> None:
    """Repeats what Optuna, random search and the defaults choose from as many rounds, and judges it by new seeds."""
    start = time.monotonic()
    chosen: dict[str, list[tuple[float, float]]] = {name: [] for name in CHOICES}
    defaults: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(os.cpu_count()) as pool:
        fresh = [[f"seed={seed}"] for seed in FRESH_SEEDS]
        default = statistics.fmean(each.test for each in pool.map(train, fresh))
        for repetition in range(REPETITIONS):
            for algorithm in ("optuna", "random"):
                own = (f"search.name={algorithm}-{repetition}", f"search.algorithm={algorithm}", f"seed={repetition}")
                search = run_search(
                    Path(folder), str(FILE), *CHOICE_COMMAND, *COMMON, *own, f"search.seed={repetition}"
                )
                tuned = [f"{key}={value}" for key, value in search["best_values"].items()]
                again = statistics.fmean(each.test for each in pool.map(train, [[*tuned, *seed] for seed in fresh]))
                chosen[algorithm].append((search["best_value"], again))
            seeds = range(repetition * TRIALS, (repetition + 1) * TRIALS)
            outcomes = list(pool.map(train, [[f"seed={seed}", "data.seed=0"] for seed in seeds]))
            chosen["default"].append((choose_best(outcomes).validation, default))
            defaults += outcomes
    write("choices", describe_choices(chosen, defaults, (time.monotonic() - start) / 60))


def describe_choices(chosen: dict[str, list[tuple[float, float]]], defaults: Sequence[Outcome], minutes: float) -> str:
    """Returns the comparison of choices in words and a table."""
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {minutes:.0f} minutes on {os.cpu_count()} cores; "
        f"`scripts/tuning_example --only choices`. {REPETITIONS} times, {TRIALS} trials of {ROUNDS} rounds with one "
        f"seed each; the same for the file's own settings with {TRIALS} other seeds. Each choice is judged by the test "
        f"accuracy of {len(FRESH_SEEDS)} runs with new seeds: the mean of the {REPETITIONS} repetitions, and ± half of "
        "the 95 % interval of its difference.",
        "",
        "| chosen by | validation accuracy of the choice | test accuracy with new seeds | more than the default |",
        "|---|---:|---:|---:|",
    ]
    base = np.array([again for _, again in chosen["default"]])
    for name, label in CHOICES.items():
        values, again = (np.array(column) for column in zip(*chosen[name], strict=True))
        cells = [f"{values.mean():.3f}", f"{again.mean():.3f}", "–"]
        if name != "default":
            difference, interval = compute_paired_difference(again, base)
            cells[2] = f"{difference:+.3f} ± {interval:.3f}"
        lines.append(f"| {label} | {' | '.join(cells)} |")
    optuna, random = (np.array([again for _, again in chosen[name]]) for name in ("optuna", "random"))
    difference, interval = compute_paired_difference(optuna, random)
    validation, test = (np.array([getattr(each, name) for each in defaults]) for name in ("validation", "test"))
    correlation = spearmanr(validation, test).statistic
    lines += [
        "",
        f"Optuna's choice is {difference:+.3f} ± {interval:.3f} from that of random search. How noisy the guide is: "
        f"over the {len(defaults)} runs of the default settings, which differ in their seed alone, validation accuracy "
        f"has a standard deviation of {validation.std(ddof=1):.3f} and test accuracy of {test.std(ddof=1):.3f}; their "
        f"rank correlation is {correlation:.2f}.",
    ]
    return "\n".join(lines)


def measure_sensitivity() -> None:
    """Measures how far accuracy falls with FedNAR and with the baseline over a grid."""
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        search = run_search(Path(folder), str(ROOT / "tune_configs" / "sensitivity.yaml"))
        draw_pictures(search, "sensitivity", ("clip_bound_and_weight_decay",))
        found = json.loads((Path(search["report"]).parent / "sensitivity.json").read_text())
    minutes = (time.monotonic() - start) / 60
    names = list(found["mean_falls"])
    rows = [(fall["key"], fall["factor"]) for fall in found["falls"] if fall["regularizer"] == names[0]]
    falls = {(fall["regularizer"], fall["key"], fall["factor"]): fall["fall"] for fall in found["falls"]}
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {search['trials']} trials in {minutes:.0f} min, {os.cpu_count()} cores; "
        "`scripts/tuning_example --only sensitivity`, which runs `fednar tune tune_configs/sensitivity.yaml`. Points "
        "of validation accuracy that each regularizer's best trial loses if one setting is off, in the worse "
        "direction that the grid has:",
        "",
        "| off | by | " + " | ".join(f"`{name}`" for name in names) + " |",
        "|---|---:|" + "---:|" * len(names),
    ]
    for key, factor in rows:
        cells = " | ".join(format_points(falls[name, key, factor]) for name in names)
        lines.append(f"| `{key}` | {factor} times | {cells} |")
    for factor in ("3", "10"):
        cells = " | ".join(f"**{format_points(found['mean_falls'][name][factor])}**" for name in names)
        lines.append(f"| mean | {factor} times | {cells} |")
    lines += ["", "![Validation accuracy over A and weight decay](images/sensitivity-clip-bound-and-weight-decay.png)"]
    write("sensitivity", "\n".join(lines))


def format_points(fall: float | None) -> str:
    """Formats a fall in points of accuracy."""
    return "–" if fall is None else f"{100 * fall:.1f}"


def write(part: str, text: str) -> None:
    """Prints a part and writes it to docs/tuning.md."""
    print(text)
    write_part(PAGE, part, "scripts/tuning_example", text)


def run_search(folder: Path, *arguments: str) -> dict[str, Any]:
    """Runs a search and returns its summary."""
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [str(FEDNAR), "tune", *arguments, "--json"]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def draw_pictures(search: dict[str, Any], prefix: str, names: Sequence[str]) -> None:
    """Draws figures of a search's page as docs/images/PREFIX-NAME.png."""
    record = read_search(search["tracking_uri"], search["name"])
    for name in names:
        picture = IMAGES / f"{prefix}-{name.replace('_', '-')}.png"
        PICTURES[name](record).savefig(picture, dpi=110)


def describe(
    search: dict[str, Any],
    defaults: Sequence[Outcome],
    fresh_tuned: Sequence[Outcome],
    fresh_default: Sequence[Outcome],
    minutes: float,
) -> str:
    """Returns the example in words and tables."""
    best_default = choose_best(defaults)
    median = statistics.median(each.validation for each in defaults)
    tuned, default = (np.array([each.test for each in runs]) for runs in (fresh_tuned, fresh_default))
    difference, interval = compute_paired_difference(tuned, default)
    values = ", ".join(f"`{key}` {value:.3g}" for key, value in search["best_values"].items())
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {minutes:.0f} minutes on {os.cpu_count()} cores; `scripts/tuning_example` runs",
        "",
        f"    fednar tune tune_configs/digits.yaml {' '.join((*COMMAND, *COMMON))}",
        "",
        f"and then trains the file's own settings {TRIALS} times, each time with {SEEDS} other seeds: "
        f"{TRIALS * SEEDS * ROUNDS:,} rounds on either side, all on the same clients and the same validation "
        f"examples (`data.seed=0`). A number is the mean over {SEEDS} seeds. The best of either side is chosen by "
        "validation accuracy and judged by test accuracy.",
        "",
        "| | validation accuracy | test accuracy |",
        "|---|---:|---:|",
        f"| best of {TRIALS} trials | {search['best_value']:.3f} | {search['test_accuracy']:.3f} |",
        f"| best of {TRIALS} times the default settings | {best_default.validation:.3f} | {best_default.test:.3f} |",
        f"| their median | {median:.3f} | {statistics.median(each.test for each in defaults):.3f} |",
        "",
        f"The best values: {values}.",
        "",
        "The best of many is partly luck, on both sides. So both were trained again with ten new seeds "
        f"(partition and start differ): tuned {tuned.mean():.3f}, default {default.mean():.3f}; the difference is "
        f"{difference:+.3f} ± {interval:.3f} (95 % interval of the pairs).",
        "",
        "![All trials](images/tuning-parallel-coordinates.png)",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
