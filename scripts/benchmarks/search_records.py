"""Measures what MLflow costs the driver of a search: 200 trials of 50 rounds, recorded in SQLite.

The rounds are those of one real trial on digits. All trials report them as trials in packs do: many are open at a time,
and each reports several rounds at once. Prints one ROW.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fednar_ray.config import load_embedded
from fednar_ray.tracking.store import Store
from fednar_ray.tuning.creation import create_search
from fednar_ray.tuning.trial import FederatedTrial
from fednar_ray.tuning.trial_plan import TrialPlan
from fednar_ray.tuning.trial_runs import TrialRuns
from fednar_ray.tuning.trial_table import FINISHED, TrialEntry

REPORTS = 10  # of each trial


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the arguments."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--open", type=int, default=50, help="trials that train at a time")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long all trials train")
    return parser


def train_one(plan: TrialPlan, values: dict[str, Any]) -> tuple[str, ...]:
    """Trains one trial in this process, and returns the lines of its journal."""
    trial = FederatedTrial.__new__(FederatedTrial)  # Tune's own __init__ needs a trial's directory
    trial._trial_info = None
    trial.setup(values, plan=plan)
    lines: list[str] = []
    done = False
    while not done:
        report = trial.step()
        lines += report["lines"]
        done = report["done"]
    trial.cleanup()
    return tuple(lines)


def split(items: Sequence[str], size: int) -> list[Sequence[str]]:
    """Splits items into parts of this size; the last part may be smaller."""
    return [items[first : first + size] for first in range(0, len(items), size)]


def record(runs: TrialRuns, entries: dict[str, TrialEntry], lines: Sequence[str], width: int, seconds: float) -> None:
    """Opens trials, reports their rounds at an even pace, and ends them."""
    reports, packs = split(lines, max(1, len(lines) // REPORTS)), split(list(entries), width)
    pause = seconds / (len(packs) * len(reports))
    due = time.monotonic()
    for pack in packs:
        for trial_id in pack:
            runs.open(trial_id, entries[trial_id])
        for report in reports:
            due += pause
            time.sleep(max(0.0, due - time.monotonic()))
            for trial_id in pack:
                runs.log_rounds(trial_id, report)
        for trial_id in pack:
            entries[trial_id].status = FINISHED
            runs.close(trial_id)


def count_metrics(store: Store, run_ids: Sequence[str | None]) -> int:
    """Counts the points of all metrics of these runs."""
    client = store.client
    runs = [client.get_run(str(run_id)) for run_id in run_ids]
    return sum(len(client.get_metric_history(run.info.run_id, key)) for run in runs for key in run.data.metrics)


def main() -> None:
    """Measures, and prints the row."""
    arguments = build_parser().parse_args()
    overrides = (f"federation.rounds={arguments.rounds}", "execution.placement=serial", "search.scheduler=none")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        document = load_embedded("digits", overrides, to_search=True)
        assert document.search is not None
        search = document.search.resolve_metric("accuracy")
        document = replace(document, search=search)
        plan = TrialPlan(raw=document.raw, execution={"placement": "serial"}, search=search)
        values = {"regularizer.clip_bound": 3.0, "regularizer.weight_decay": 0.01,
                  "regularizer.weight_decay_anneal": 0.95, "algorithm.local_lr_anneal": 0.99}  # fmt: skip
        lines = train_one(plan, values)
        store = Store(f"sqlite:///{Path(folder) / 'mlflow.db'}")
        table = create_search(document, store, store.ensure_experiment("digits"))
        for index in range(arguments.trials):
            entry = TrialEntry(name=f"trial-{index:04d}", values={**values, "regularizer.clip_bound": 0.1 + index})
            table.trials[f"{index:08x}"] = entry
        cpu, start = time.process_time(), time.monotonic()
        with TrialRuns(table, store, plan) as runs:
            record(runs, table.trials, lines, arguments.open, arguments.seconds)
            reported = time.monotonic()
        row = {
            "cpu": time.process_time() - cpu,
            "seconds": time.monotonic() - start,
            "after": time.monotonic() - reported,  # from the last report to the end
            "points": count_metrics(store, [entry.run_id for entry in table.trials.values()]),
            "per_round": sum(value is not None for value in json.loads(lines[-1])["metrics"].values()),
        }
    print("ROW", json.dumps({name: round(value, 2) for name, value in row.items()}))


if __name__ == "__main__":
    main()
