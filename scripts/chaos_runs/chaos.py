"""Disturbs real runs at random instants and compares their results with undisturbed runs.

Run by scripts/chaos. Exit codes: 0 all equal, 1 some are not, 2 it cannot be done here.
"""

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import fill_disk
import kill_actors
import kill_driver
import kill_mlflow
import kill_node
from pages import DOCS, build_table, describe_machine, write_part
from processes import end_all_in
from stage import PRESETS, Outcome, Stage

PAGE = DOCS / "reliability.md"


@dataclass(frozen=True)
class Kind:
    """One kind of disturbance."""

    text: str
    times: int
    disturb: Callable[[Stage, int], Iterator[Outcome]]


KINDS = {
    "driver": Kind("the driver is killed", 20, kill_driver.disturb),
    "actor": Kind("an actor is killed", 20, kill_actors.disturb),
    "node": Kind("a node of two is killed", 5, kill_node.disturb),
    "mlflow": Kind("the MLflow server is killed", 5, kill_mlflow.disturb),
    "disk": Kind("the disk is full", 1, fill_disk.disturb),
}
"""In the order of the table."""

Outcomes = Mapping[str, Sequence[Outcome]]


def main() -> None:
    """Disturbs runs and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="each kind once, in short runs of one preset")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="these kinds alone")
    parser.add_argument(
        "--seed", type=int, default=time.time_ns() % 100_000, help="decides the instants; default: from the time"
    )
    options = parser.parse_args()
    if "disk" in options.only and os.geteuid() != 0:
        parser.error("only root can mount the small file system; leave it out with --only driver actor node mlflow")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    start = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    print(f"seed {options.seed}, in {folder}", flush=True)
    try:
        outcomes = disturb_all(Stage(folder, options.seed, quick=options.quick), options.only, quick=options.quick)
    finally:
        end_all_in(folder)
        shutil.rmtree(folder, ignore_errors=True)
    minutes, equal = (time.monotonic() - start) / 60, not any(o.problems for kind in outcomes.values() for o in kind)
    tables = f"{build_outcome_table(outcomes)}\n\n{build_presets_table(outcomes)}"
    print(f"\n{tables}\n\n{minutes:.1f} minutes; {'all equal' if equal else 'NOT ALL EQUAL'}")
    if not options.quick and options.only == list(KINDS):
        command = f"`scripts/chaos --seed {options.seed}`, {minutes:.0f} minutes"
        note = f"{time.strftime('%Y-%m-%d')}, {describe_machine()}; {command}"
        write_part(PAGE, "chaos", "scripts/chaos", f"{note}\n\n{tables}")
        print(f"written: {PAGE}")
    sys.exit(0 if equal else 1)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Exits, and ignores further signals while the started processes are ended."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def disturb_all(stage: Stage, kinds: Sequence[str], *, quick: bool) -> Outcomes:
    """Disturbs runs of each kind, prints each result when it is available, and returns all."""
    outcomes: dict[str, list[Outcome]] = {}
    for name in kinds:
        outcomes[name] = []
        for outcome in KINDS[name].disturb(stage, 1 if quick else KINDS[name].times):
            outcomes[name].append(outcome)
            verdict = "; ".join(outcome.problems) or "equal"
            figures = f"{outcome.rounds_redone} rounds redone, {outcome.seconds_lost:+.1f} s"
            print(f"{name:12}{outcome.preset:16}{verdict}; {figures}; {', '.join(outcome.hits)}", flush=True)
    return outcomes


def build_outcome_table(outcomes: Outcomes) -> str:
    """Builds the table with one row per kind."""
    head = (
        "what happens",
        "times",
        "runs",
        "of them equal",
        "rounds redone",
        "seconds lost each time",
        "what it was doing",
    )
    rows = [_build_row(KINDS[name], found) for name, found in outcomes.items()]
    return build_table(head, rows)


def _build_row(kind: Kind, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    hits = Counter(hit for outcome in outcomes for hit in outcome.hits)
    lost = [outcome.seconds_lost / len(outcome.hits) for outcome in outcomes if outcome.hits]
    seconds = f"{statistics.median(lost):.1f} ({min(lost):.1f} to {max(lost):.1f})" if lost else "–"
    return (
        kind.text,
        str(hits.total()),
        str(len(outcomes)),
        str(sum(not outcome.problems for outcome in outcomes)),
        str(sum(outcome.rounds_redone for outcome in outcomes)),
        seconds,
        "; ".join(f"{count} × {hit}" if hits.total() > 1 else hit for hit, count in hits.most_common()),
    )


def build_presets_table(outcomes: Outcomes) -> str:
    """Builds the table of how often each preset was disturbed and whether its result was the same."""
    rows = []
    for preset in PRESETS:
        found = {name: [o for o in kind if o.preset == preset] for name, kind in outcomes.items()}
        if any(found.values()):
            times = (str(sum(len(o.hits) for o in kind)) for kind in found.values())
            equal = all(not o.problems for kind in found.values() for o in kind)
            rows.append((preset, *times, "yes" if equal else "NO"))
    return build_table(("preset", *outcomes, "all equal"), rows)


if __name__ == "__main__":
    main()
