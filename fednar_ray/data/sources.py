"""Data sources by name: arrays, already scaled, with their official or a fixed test split."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A data set: x [N, …] float32, y [N] int64 labels, and a natural group a training example where it has one."""

    name: str
    train_x: npt.NDArray[Any]
    train_y: npt.NDArray[np.int64]
    test_x: npt.NDArray[Any]
    test_y: npt.NDArray[np.int64]
    groups: npt.NDArray[Any] | None = None  # [N]


def digits() -> Source:
    """Handwritten digits: 1,797 grey images [1, 8, 8] in 0..1, ten classes; ships with scikit-learn.

    A fixed, stratified fifth (360 examples) is the test set. Source: E. Alpaydin and C. Kaynak, *Optical
    Recognition of Handwritten Digits*, UCI Machine Learning Repository, 1998 (CC BY 4.0; its test part).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    images = (x / 16.0).astype(np.float32).reshape(-1, 1, 8, 8)
    split = train_test_split(images, y.astype(np.int64), test_size=0.2, stratify=y, random_state=0)
    return Source(name="digits", train_x=split[0], train_y=split[2], test_x=split[1], test_y=split[3])


SOURCES: Mapping[str, Callable[[], Source]] = {"digits": digits}
