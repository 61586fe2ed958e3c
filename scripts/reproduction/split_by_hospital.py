"""Splits one .npz with x [n, features], y [n] and hospital [n] into one file per hospital.

The label, UCI's degree of narrowing from 0 to 4, becomes 0 or 1: whether there is a heart disease.

python scripts/reproduction/split_by_hospital.py heart_disease_by_hospital.npz data/heart_disease
"""

import sys
from pathlib import Path

import numpy as np


def main() -> None:
    """Splits the file."""
    source, directory = sys.argv[1], Path(sys.argv[2])
    directory.mkdir(parents=True, exist_ok=True)
    with np.load(source) as arrays:
        for hospital in np.unique(arrays["hospital"]):
            own = arrays["hospital"] == hospital
            np.savez(directory / f"{hospital}.npz", x=arrays["x"][own], y=(arrays["y"][own] > 0).astype(np.int8))
            print(f"{hospital}: {own.sum()} patients")


if __name__ == "__main__":
    main()
