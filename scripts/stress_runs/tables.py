"""Figures and tables as Markdown."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def mean_and_deviation(values: npt.NDArray[np.float64]) -> str:
    """Over seeds; the deviation is the sample's."""
    return f"{values.mean():.3f} ± {values.std(ddof=1):.3f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A row a line."""
    lines = ["| " + " | ".join(row) + " |" for row in (head, *rows)]
    return "\n".join((lines[0], "|---" * len(head) + "|", *lines[1:]))
