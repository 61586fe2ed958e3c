"""Studies accuracy against ε for each way to bound updates. ``scripts/privacy_study --help`` says how to use it."""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from scipy import stats

import fednar_ray as fr

EPSILONS = (1.0, 2.0, 4.0, 8.0)
RATES = (1.0, 0.99)
STEPS, LOCAL_LR, CLIP_BOUND = 5, 0.1, 3.0
LONGEST = STEPS * LOCAL_LR * CLIP_BOUND
"""K·η_0·A_0: all bounds begin here, so that their noise is the same in round 0."""
BOUNDS: dict[str, dict[str, Any]] = {
    "fixed": {"name": "fixed", "norm": LONGEST},
    "adaptive": {"name": "adaptive", "norm": LONGEST},
    "fednar": {"name": "fednar"},
}
SERIES = [(bound, "fednar") for bound in BOUNDS] + [(bound, "decoupled") for bound in BOUNDS if bound != "fednar"]
WITHOUT_NOISE = 1e-9
ACCURACY = "validation_accuracy"
SETTING = ["bound", "regularizer", "gamma_A", "gamma_eta"]

BASE: dict[str, Any] = {
    "seed": 0,
    "data": {"source": "digits", "seed": 0, "validation": 0.2, "partition": {"kind": "iid", "clients": 1000}},
    "model": {"name": "mlp", "hidden": 32},
    "federation": {
        "rounds": 60,
        "clients_per_round": 100,
        "sampling": "poisson",
        "local_steps": STEPS,
        "batch_size": 4,
    },
    "algorithm": {"name": "fedavg", "local_lr": LOCAL_LR},
    "regularizer": {"clip_bound": CLIP_BOUND, "weight_decay": 0.01},
    "evaluation": {"every": 20},
    "checkpoint": {"every": 60},
}


def build_experiment(bound: str, regularizer: str, *, noised: bool, overrides: list[str]) -> fr.Experiment:
    """Builds the experiment of a series; ε is searched, unless there is no noise."""
    spent = {"epsilon": EPSILONS[-1]} if noised else {"noise_multiplier": WITHOUT_NOISE}
    sections = {
        **BASE,
        "name": f"{bound}-{regularizer}-{'noised' if noised else 'exact'}",
        "regularizer": {**BASE["regularizer"], "name": regularizer},
        "privacy": {"bound": BOUNDS[bound], "delta": 1e-4, **spent},
    }
    file = Path(f"{sections['name']}.yaml")
    file.write_text(yaml.safe_dump({"experiment": sections}), encoding="utf-8")
    return fr.load(file, overrides=overrides)


def search(bound: str, regularizer: str, *, noised: bool, seeds: int, overrides: list[str]) -> pd.DataFrame:
    """Trains all settings of a series, and returns one row per run."""
    experiment = build_experiment(bound, regularizer, noised=noised, overrides=overrides)
    space: dict[str, Any] = {
        "regularizer.clip_bound_anneal": {"grid": list(RATES)},
        "algorithm.local_lr_anneal": {"grid": list(RATES)},
        "seed": {"grid": list(range(seeds))},
    }
    if noised:
        space["privacy.epsilon"] = {"grid": list(EPSILONS)}
    result = fr.tune(
        experiment,
        space=space,
        trials=1,
        algorithm="grid",
        scheduler="none",
        name=experiment.name,
        baseline={"regularizer.clip_bound_anneal": 1.0},
        progress=True,
    )
    frame = result.to_frame()
    frame = frame.rename(columns={name: name.rpartition(".")[2] for name in frame.columns})
    return pd.DataFrame(
        {
            "bound": bound,
            "regularizer": regularizer,
            "gamma_A": frame["clip_bound_anneal"],
            "gamma_eta": frame["local_lr_anneal"],
            "epsilon": frame["epsilon"] if noised else np.inf,
            "seed": frame["seed"],
            "accuracy": frame[ACCURACY],
        }
    )


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the mean over seeds with half of its 95 % interval (Student's t), per setting and ε."""
    grouped = rows.groupby([*SETTING, "epsilon"])["accuracy"]
    summary = grouped.agg(["mean", "std", "count"]).reset_index()
    quantile = stats.t.ppf(0.975, summary["count"] - 1)
    summary["half"] = quantile * summary["std"] / np.sqrt(summary["count"])
    return summary


def build_table(summary: pd.DataFrame) -> str:
    """Builds a Markdown table: one row per setting, one column per ε."""
    columns = sorted(summary["epsilon"].unique())
    lines = ["| bound | regularizer | γ_A | γ_η | " + " | ".join(map(_name_epsilon, columns)) + " |"]
    lines.append("|---" * (4 + len(columns)) + "|")
    for setting, part in summary.groupby(SETTING, sort=False):
        found = part.set_index("epsilon")
        cells = [f"{found.at[each, 'mean']:.3f} ± {found.at[each, 'half']:.3f}" for each in columns]
        lines.append("| " + " | ".join([*map(str, setting), *cells]) + " |")
    return "\n".join(lines)


DIFFERENCES = {
    "bound fednar: annealed − not annealed": (("fednar", "fednar", 0.99), ("fednar", "fednar", 1.0)),
    "bound fednar, annealed − bound fixed": (("fednar", "fednar", 0.99), ("fixed", "fednar", 1.0)),
    "bound fednar, annealed − bound adaptive": (("fednar", "fednar", 0.99), ("adaptive", "fednar", 1.0)),
    "bound fixed: regularizer fednar − decoupled": (("fixed", "fednar", 1.0), ("fixed", "decoupled", 1.0)),
    "bound adaptive: regularizer fednar − decoupled": (("adaptive", "fednar", 1.0), ("adaptive", "decoupled", 1.0)),
}
"""What is compared seed by seed: bound, regularizer, and γ_A = γ_η of two settings."""


def build_differences(rows: pd.DataFrame) -> str:
    """Builds a Markdown table: the mean difference over seeds with half of its 95 % interval, one column per ε."""
    columns = sorted(rows["epsilon"].unique())
    lines = ["| difference of accuracies | " + " | ".join(map(_name_epsilon, columns)) + " |"]
    lines.append("|---" * (1 + len(columns)) + "|")
    for label, (first, second) in DIFFERENCES.items():
        cells = []
        for epsilon in columns:
            found = _select(rows, first, epsilon) - _select(rows, second, epsilon)
            half = stats.t.ppf(0.975, len(found) - 1) * found.std() / np.sqrt(len(found))
            cells.append(f"{found.mean():+.3f} ± {half:.3f}")
        lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(lines)


def _select(rows: pd.DataFrame, setting: tuple[str, str, float], epsilon: float) -> pd.Series:
    """Returns the accuracies of a setting by seed."""
    bound, regularizer, rate = setting
    chosen = (rows["bound"] == bound) & (rows["regularizer"] == regularizer) & (rows["epsilon"] == epsilon)
    chosen &= (rows["gamma_A"] == rate) & (rows["gamma_eta"] == rate)
    return rows[chosen].set_index("seed")["accuracy"]


def _name_epsilon(epsilon: float) -> str:
    return "no noise" if np.isinf(epsilon) else f"ε = {epsilon:g}"


def draw(summary: pd.DataFrame, path: Path) -> None:
    """Draws accuracy against ε: without annealing, and with the annealing that is best at each ε."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    plain = summary[(summary["gamma_A"] == 1) & (summary["gamma_eta"] == 1)]
    best = summary.loc[summary.groupby(["bound", "regularizer", "epsilon"])["mean"].idxmax()]
    labels = list(map(_name_epsilon, sorted(summary["epsilon"].unique())))
    for panel, part, title in zip(panels, (plain, best), ("γ_A = γ_η = 1", "best of the annealing rates"), strict=True):
        for number, ((bound, regularizer), line) in enumerate(part.groupby(["bound", "regularizer"], sort=False)):
            line = line.sort_values("epsilon")
            places = np.arange(len(line)) + 0.06 * (number - 2)
            style = "-" if regularizer == "fednar" else "--"
            panel.errorbar(places, line["mean"], line["half"], fmt=f"o{style}", ms=3, capsize=2,
                           label=f"{bound}, {regularizer}")  # fmt: skip
        panel.set_xticks(range(len(labels)), labels)
        panel.set_title(title, fontsize=10)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("validation accuracy")
    panels[0].legend(fontsize=8, title="bound, regularizer", title_fontsize=8)
    figure.savefig(path, dpi=120)


def run_searches(seeds: int, overrides: list[str]) -> Iterator[pd.DataFrame]:
    """Yields the rows of each search."""
    for bound, regularizer in SERIES:
        for noised in (True, False):
            yield search(bound, regularizer, noised=noised, seeds=seeds, overrides=overrides)


def main() -> int:
    """Runs the study, and prints its table."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--directory", type=Path, default=Path("privacy_study"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    directory: Path = (Path(os.environ.get("STUDY_HOME", ".")) / arguments.directory).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    os.chdir(directory)
    rows = pd.concat(run_searches(arguments.seeds, arguments.overrides), ignore_index=True)
    rows.to_csv("study.csv", index=False)
    summary = summarize(rows)
    table = build_table(summary) + "\n\n" + build_differences(rows)
    Path("study.md").write_text(table + "\n", encoding="utf-8")
    draw(summary, Path("study.png"))
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
