"""What FedNAR does under stress, beside the baseline: digits, several seeds, four kinds of stress.

Run by scripts/stress; writes its part of docs/reliability.md.  Exit code 1 where a defense misses what it promises.
"""

import argparse
import os
import platform
import sys
import time
from pathlib import Path

import comparisons
import misbehavior
import psutil
from runs import SEEDS, train_all

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- stress: written by scripts/stress -->", "<!-- end of stress -->"


def main() -> None:
    """Train, and report."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    start = time.monotonic()
    outcomes = train_all([*comparisons.configurations(), *misbehavior.configurations()])
    minutes = (time.monotonic() - start) / 60
    tables = "\n\n".join((*comparisons.tables(outcomes), misbehavior.the_table(outcomes)))
    runs = f"{len(outcomes) * len(SEEDS)} runs in {minutes:.0f} minutes"
    text = f"{time.strftime('%Y-%m-%d')}, {machine()}; `scripts/stress`, {runs}\n\n{tables}"
    print(f"\n{text}")
    page = PAGE.read_text()
    PAGE.write_text(f"{page.split(BEGIN)[0]}{BEGIN}\n\n{text}\n\n{END}{page.split(END)[1]}")
    missed = misbehavior.missed(outcomes)
    print(f"\nwritten: {PAGE}; {'; '.join(missed) or 'every defense holds'}")
    sys.exit(1 if missed else 0)


def machine() -> str:
    """What it ran on."""
    cpu = next(li.split(":")[1].strip() for li in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in li)
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores ({cpu}), {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
