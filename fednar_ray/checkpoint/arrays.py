"""Encodes named arrays as safetensors, a format that runs no code when it is read."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fednar_ray.checkpoint.manifest import Damaged, File

Array = npt.NDArray[Any]  # float32 or float64
RowVector = npt.NDArray[np.float32]  # [d]


def encode(arrays: Mapping[str, Array]) -> bytes:
    """Encodes named arrays of any shape."""
    return save({name: np.asarray(array, order="C") for name, array in arrays.items()})


def decode(file: File, data: bytes) -> dict[str, Array]:
    """Returns the arrays in ``data`` as new, writable arrays.

    Raises:
        Damaged: ``data`` is not what was written to ``file``, or holds an array that is not of floats.
    """
    try:
        arrays: dict[str, Array] = load(file.verify(data))
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a dtype that numpy does not have
        raise Damaged(f"{file.name} holds no arrays: {error}") from error
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64):
            raise Damaged(f"{file.name}: {name} is {array.dtype}, not float32 or float64")
    return arrays


def encode_row(row: RowVector) -> bytes:
    """Encodes the row of one client, [d]."""
    return encode({"row": row})


def decode_row(file: File, data: bytes) -> RowVector:
    """Returns the row [d] in ``data``. Raises Damaged as ``decode`` does."""
    row = decode(file, data).get("row")
    if row is None or row.dtype != np.float32 or row.ndim != 1:
        raise Damaged(f"{file.name} holds no row of float32")
    return row
