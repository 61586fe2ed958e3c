"""Whether a model's outputs depend on values outside of the module that its forward pass changes.

A count of calls, a stopwatch or recorded activations change in every pass, and no client is the worse for it. What the
outputs depend on is state that no client could start with as given.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fednar_ray.federated.outside_state import Place

SHIFTS = (1, 2, 5, 30, 100, 1000, 10**6)
"""What is added to the values: schedules often begin or end at round numbers of steps."""


def outside_influence(places: Sequence[Place], outputs: Callable[[], Tensor]) -> bool:
    """Do the outputs change with the values at ``places``?

    Args:
        places: Where the values are. They are the same again afterwards.
        outputs: Runs a forward pass on a fresh copy of the model, with the same input and seeds each time.

    Returns:
        True where the outputs change, the pass fails, or a value is of a kind that cannot be shifted.
    """
    if not all(_can_be_shifted(place.get()) for place in places):
        return True
    with _put_back(places) as given:
        try:
            wanted = outputs()
            return not all(_equal(wanted, _with_shift(places, given, shift, outputs)) for shift in SHIFTS)
        except Exception:  # noqa: BLE001 - whatever a user's model raises on values that it does not expect
            return True


def _with_shift(places: Sequence[Place], given: Sequence[Any], shift: int, outputs: Callable[[], Tensor]) -> Tensor:
    for place, value in zip(places, given, strict=True):
        place.set(_shifted(value, shift))
    return outputs()


@contextmanager
def _put_back(places: Sequence[Place]) -> Iterator[list[Any]]:
    given = [place.get() for place in places]
    try:
        yield given
    finally:
        for place, value in zip(places, given, strict=True):
            place.set(value)


def _can_be_shifted(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.layout is torch.strided and not value.is_quantized
    return isinstance(value, bool | int | float) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")


def _shifted(value: Any, shift: int) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, Tensor):
        return ~value if value.dtype is torch.bool else value.detach() + shift
    if isinstance(value, np.ndarray):
        return ~value if value.dtype.kind == "b" else (value + shift).astype(value.dtype)
    return value + shift


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-7, equal_nan=True)
