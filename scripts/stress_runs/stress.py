"""Trains FedNAR and the baseline under four kinds of stress, on digits with several seeds.

Run by scripts/stress; writes its part of docs/reliability.md. Exit code 1 if a defense misses what it promises.
"""

import argparse
import sys
import time

import comparisons
import misbehavior
from pages import DOCS, describe_machine, write_part
from runs import SEEDS, train_all

PAGE = DOCS / "reliability.md"


def main() -> None:
    """Trains everything and reports."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    start = time.monotonic()
    outcomes = train_all([*comparisons.iter_configurations(), *misbehavior.iter_configurations()])
    minutes = (time.monotonic() - start) / 60
    tables = "\n\n".join((*comparisons.iter_tables(outcomes), misbehavior.build_the_table(outcomes)))
    runs = f"{len(outcomes) * len(SEEDS)} runs in {minutes:.0f} minutes"
    text = f"{time.strftime('%Y-%m-%d')}, {describe_machine()}; `scripts/stress`, {runs}\n\n{tables}"
    print(f"\n{text}")
    write_part(PAGE, "stress", "scripts/stress", text)
    missed = misbehavior.find_missed(outcomes)
    print(f"\nwritten: {PAGE}; {'; '.join(missed) or 'every defense holds'}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
