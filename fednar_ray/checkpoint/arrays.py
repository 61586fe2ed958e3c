"""Named arrays as safetensors: bytes that hold numbers and run no code when read."""

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
    """Named arrays of any shape."""
    return save({name: np.asarray(array, order="C") for name, array in arrays.items()})


def decode(file: File, data: bytes) -> dict[str, Array]:
    """The arrays in ``data``, fresh and writable. Raises Damaged where they are not those written to ``file``."""
    try:
        arrays: dict[str, Array] = load(file.verify(data))
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a type that numpy lacks
        raise Damaged(f"{file.name} holds no arrays: {error}") from error
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64):
            raise Damaged(f"{file.name}: {name} is {array.dtype}, not float32 or float64")
    return arrays


def encode_row(row: RowVector) -> bytes:
    """One client's row [d]."""
    return encode({"row": row})


def decode_row(file: File, data: bytes) -> RowVector:
    """The row [d] in ``data``. Raises as ``decode``."""
    row = decode(file, data).get("row")
    if row is None or row.dtype != np.float32 or row.ndim != 1:
        raise Damaged(f"{file.name} holds no row of float32")
    return row
