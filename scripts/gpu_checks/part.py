"""Runs one part of the check in a process of its own, and prints its rows as they are found."""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_checks.packs import measure_packs
from gpu_checks.speed import TABLES, measure_costs, measure_peaks, measure_table, run_jax, shrink
from gpu_checks.tests import check_results, check_resumed

Row = dict[str, Any]


def iter_rows(part: str, device: torch.device, seconds: float, directory: Path) -> Iterator[Row]:
    """Yields the rows of a part.

    Args:
        part: Its name.
        device: The GPU; a CPU takes tiny sizes.
        seconds: How long the part may take.
        directory: Where the part ``tests`` leaves runs for the part ``resume``.
    """
    until, tiny = time.monotonic() + seconds, device.type != "cuda"

    def left() -> float:
        return until - time.monotonic()

    if part == "tests":
        yield from check_results(device, directory)
    elif part == "resume":
        yield from check_resumed(device, directory)
    elif part == "peak":
        yield from measure_peaks(device, tiny=tiny)
    elif part == "costs":
        yield from measure_costs(device, left, tiny=tiny)
    elif part == "packs":
        yield from measure_packs(device, left, tiny=tiny)
    elif part == "jax":
        yield from run_jax(left, tiny=tiny)
    else:
        yield from measure_table(shrink(TABLES[part]) if tiny else TABLES[part], device, left)


def main() -> None:
    """Prints one JSON object per row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part")
    parser.add_argument("--device", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--directory", type=Path, required=True)
    options = parser.parse_args()
    device = torch.device("cuda:0" if options.device == "cuda" else "cpu")
    for row in iter_rows(options.part, device, options.seconds, options.directory):
        print("ROW " + json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
