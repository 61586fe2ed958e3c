"""Checks whether a model's outputs depend on values outside of the module that its forward pass changes.

A count of calls, a stopwatch or recorded activations change in every pass and do no harm. But state that the outputs
depend on cannot be reset for each client.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fednar_ray.federated.outside_state import Place

SHIFTS = (1, 2, 5, 30, 100, 1000, 10**6)
"""What is added to the values. Schedules often start or end at round numbers of steps."""


def has_outside_influence(places: Sequence[Place], outputs: Callable[[], Tensor]) -> bool:
    """Returns whether the outputs change with the values at ``places``.

    Args:
        places: Where the values are. The values are restored afterwards.
        outputs: Runs a forward pass on a fresh copy of the model, with the same input and seeds each time.

    Returns:
        True if the outputs change, the pass fails, or a value is of a kind that cannot be shifted.
    """
    if not all(_can_shift(place.get()) for place in places):
        return True
    with _restore_afterwards(places) as given:
        try:
            wanted = outputs()
            return not all(_is_close(wanted, _run_shifted(places, given, shift, outputs)) for shift in SHIFTS)
        except Exception:  # noqa: BLE001 - a user's model may raise anything on unexpected values
            return True


def _run_shifted(places: Sequence[Place], given: Sequence[Any], shift: int, outputs: Callable[[], Tensor]) -> Tensor:
    for place, value in zip(places, given, strict=True):
        place.set(_shift(value, shift))
    return outputs()


@contextmanager
def _restore_afterwards(places: Sequence[Place]) -> Iterator[list[Any]]:
    given = [place.get() for place in places]
    try:
        yield given
    finally:
        for place, value in zip(places, given, strict=True):
            place.set(value)


def _can_shift(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.layout is torch.strided and not value.is_quantized
    return isinstance(value, bool | int | float) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")


def _shift(value: Any, shift: int) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, Tensor):
        return ~value if value.dtype is torch.bool else value.detach() + shift
    if isinstance(value, np.ndarray):
        return ~value if value.dtype.kind == "b" else (value + shift).astype(value.dtype)
    return value + shift


def _is_close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-5, atol=1e-7, equal_nan=True)
