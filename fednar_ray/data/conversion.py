"""Converts what callers pass as clients, inputs or labels to NumPy arrays of plain numbers.

Only this module deals with containers: NumPy arrays of any byte order, masked arrays, torch tensors of any type, data
frames, and lists of these. Everything else raises a DataError that says what was passed and what is needed.
"""

import reprlib
import sys
from collections.abc import Iterable, Mapping
from decimal import Decimal
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fednar_ray.core.client_names import number_clients
from fednar_ray.core.errors import DataError

Array = npt.NDArray[Any]

NUMBERS = "biuf"  # codes of NumPy's dtype kinds: bool, signed and unsigned integers, floats
SCALARS = frozenset({int, float, bool, complex, str, type(None)})  # NumPy converts lists of these without loss
NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)
PAIR = "a pair (x, y) of inputs and labels is needed"
MAP_CODES = "map them to 0..classes-1, e.g. with np.unique(labels, return_inverse=True)[1]"
FROM_DATASET = (
    "read it into arrays, e.g. x = np.stack([x for x, _ in dataset]) and y = np.array([y for _, y in dataset])"
)
UNREADABLE = (ValueError, TypeError, RuntimeError, OverflowError, AttributeError)


# ——— clients ———


def parse_clients(clients: Any) -> tuple[tuple[str, ...], list[Any]]:
    """Returns the clients' names and their pairs (x, y).

    Args:
        clients: A mapping from names to pairs, or any iterable of pairs, a generator included.

    Returns:
        The names and the pairs, in the order given. Clients without names are called "0", "1", ….

    Raises:
        DataError: There is no client, ``clients`` is not a collection, a name is empty, or two names are equal as text.
    """
    if isinstance(clients, Dataset | DataLoader | str | bytes) or _is_frame(clients):
        raise DataError(f"clients: is {_name_type(clients)}; a list of pairs (x, y), one per client, is needed")
    if not isinstance(clients, Iterable):
        raise DataError(
            f"clients: is {_name_type(clients)}; a list of pairs (x, y), or a dict from names to pairs, is needed"
        )
    if isinstance(clients, Mapping):
        names, pairs = tuple(map(str, clients)), list(clients.values())
        _check_names(names)
    else:
        pairs = list(clients)
        names = number_clients(len(pairs))
    if not pairs:
        raise DataError("clients: a federation needs at least one client")
    return names, pairs


def _check_names(names: tuple[str, ...]) -> None:
    seen: set[str] = set()
    for name in names:
        if not name.strip():
            raise DataError("clients: a client's name is empty; every client needs a name")
        if name in seen:
            raise DataError(f"clients: two names are {name!r} as text; every client needs a different name")
        seen.add(name)


def to_pair(given: Any, place: str) -> tuple[Any, Any]:
    """Returns the inputs and the labels of one client or of a held-out set.

    Args:
        given: A tuple or list of two parts, or a TensorDataset of two tensors.
        place: The client or set, for messages: "client 3".

    Raises:
        DataError: ``given`` is something else; the message says what it is.
    """
    if isinstance(given, tuple | list | TensorDataset):
        parts = given.tensors if isinstance(given, TensorDataset) else given
        if len(parts) != 2:
            raise DataError(f"{place}: is {_name_type(given)} of {len(parts)} parts; {PAIR}")
        return parts[0], parts[1]
    if isinstance(given, Dataset | DataLoader):
        raise DataError(f"{place}: is {_name_type(given)}; {FROM_DATASET}")
    shape = f" of shape {list(given.shape)}" if isinstance(given, np.ndarray | torch.Tensor) else ""
    raise DataError(f"{place}: is {_name_type(given)}{shape}; {PAIR}")


# ——— inputs and labels ———


def to_array(part: Any, place: str, what: str) -> Array:
    """Converts inputs or labels to a NumPy array of bool, integers or floats in this machine's byte order.

    Args:
        part: An array, a tensor, a data frame, a series, or a list of numbers or of these.
        place: The client or set that they belong to, for messages: "client 3".
        what: What they are, for messages: "inputs" or "labels".

    Returns:
        The same numbers. Types that NumPy does not have, such as bfloat16, become float32 without loss.

    Raises:
        DataError: A value is missing (masked or None) or is not a number, or the container is one that the caller must
            convert, such as a sparse or quantized tensor.
    """
    array = _to_any_array(part, place, what)
    if array.dtype.kind == "O":
        array = _from_objects(array, place, what)
    if array.dtype.kind not in NUMBERS:
        raise DataError(f"{place}: {what} are {array.dtype}; {_advice(array.dtype.kind, what)}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _to_any_array(part: Any, place: str, what: str) -> Array:
    """Converts a container to an array of any type, which may still hold Python objects."""
    if type(part) is np.ndarray:
        return part
    if isinstance(part, torch.Tensor):
        return _from_tensor(part, place, what)
    if isinstance(part, np.ma.MaskedArray):
        return _from_masked(part, place, what)
    if isinstance(part, list | tuple):
        part = _prepare_rows(part, place, what)
    elif _is_frame(part):
        return _from_frame(part, place, what)
    elif hasattr(part, "nnz"):
        dense = "toarray" if hasattr(part, "toarray") else "todense"
        raise DataError(f"{place}: {what} are {_name_type(part)}, which is sparse; pass its dense form, .{dense}()")
    try:
        array = np.asarray(part)
    except UNREADABLE as error:
        raise DataError(f"{place}: {what} cannot be converted to an array: {error}") from None
    if array.ndim == 0 and array.dtype.kind not in NUMBERS:
        raise DataError(f"{place}: {what} are {_name_type(part)}; an array, a tensor or a list of numbers is needed")
    return array


def _prepare_rows(rows: list[Any] | tuple[Any, ...], place: str, what: str) -> Any:
    """Converts the tensors and masked arrays in a list to arrays, because NumPy would lose masks and types."""
    if SCALARS.issuperset(map(type, rows)):
        return rows
    return [_prepare_row(row, i, place, what) for i, row in enumerate(rows)]


def _prepare_row(row: Any, index: int, place: str, what: str) -> Any:
    if isinstance(row, list | tuple):
        return _prepare_rows(row, place, what)
    if isinstance(row, torch.Tensor | np.ma.MaskedArray):
        return _to_any_array(row, place, f"{what} in row {index}")
    return row


def _from_tensor(tensor: torch.Tensor, place: str, what: str) -> Array:
    if tensor.is_quantized:
        raise DataError(f"{place}: {what} are a quantized tensor; pass its numbers, .dequantize()")
    if tensor.is_nested:
        raise DataError(f"{place}: {what} are a nested tensor of unequal rows; pad them, .to_padded_tensor(0.0)")
    if tensor.layout is not torch.strided:
        raise DataError(f"{place}: {what} are a tensor of layout {tensor.layout}; pass its dense form, .to_dense()")
    if tensor.is_complex():
        raise DataError(f"{place}: {what} are {tensor.dtype}; {_advice('c', what)}")
    try:
        if tensor.is_floating_point() and tensor.dtype not in NUMPY_FLOATS:
            tensor = tensor.to(torch.float32)
        array: Array = tensor.numpy(force=True)
    except UNREADABLE as error:
        raise DataError(f"{place}: {what} are {tensor.dtype} on {tensor.device}, and cannot be read: {error}") from None
    return array


def _from_masked(array: Any, place: str, what: str) -> Array:
    """Returns the data of a masked array, none of whose values may be masked."""
    mask = np.ma.getmaskarray(array)
    if mask.any():
        first = f", the first at {_format_index(np.argwhere(mask)[0])}" if mask.ndim else ""
        filled = "fill them, e.g. x.filled(0), or leave these examples out"
        raise DataError(f"{place}: {int(mask.sum())} {what} are masked (missing){first}; {filled}")
    return np.asarray(array.data)


def _from_frame(frame: Any, place: str, what: str) -> Array:
    """Converts each column of a data frame separately, so that a message can name the wrong column."""
    names = list(frame.columns)
    if not names:
        raise DataError(f"{place}: {what} are a data frame without columns")
    columns = (to_array(frame.iloc[:, i], place, f"{what} of column {name!r}") for i, name in enumerate(names))
    return np.stack(list(columns), axis=1)


def _from_objects(array: Array, place: str, what: str) -> Array:
    """Converts an array of Python's numbers: to int64 if all are whole and fit into it, else to float64."""
    for index, value in np.ndenumerate(array):
        if not isinstance(value, Real | Decimal | np.bool_):
            found = f"{reprlib.repr(value)} ({type(value).__name__}) at {_format_index(index)}"
            rows = hasattr(value, "__len__") and not isinstance(value, str | bytes)
            needed = "stack rows into one array, e.g. np.stack(x)" if rows else _advice("O", what)
            raise DataError(f"{place}: {what} hold {found}; {needed}")
    whole = all(isinstance(value, Integral | np.bool_) for value in array.flat)
    try:
        small = whole and all(-(2**63) <= int(value) < 2**63 for value in array.flat)
        return array.astype(np.int64 if small else np.float64)
    except (OverflowError, ValueError) as error:
        raise DataError(f"{place}: {what} hold a number that float64 cannot represent: {error}") from None


def _advice(kind: str, what: str) -> str:
    """Says what to pass instead of values of this NumPy dtype kind."""
    if kind in "USTO" and what.startswith("labels"):
        return f"numbers are needed; if they name classes, {MAP_CODES}"
    if kind in "mM":
        return "numbers are needed; convert times to numbers first, e.g. days since a date"
    if kind == "c":
        return "real numbers are needed; pass real and imaginary parts as separate inputs"
    return "numbers are needed"


def _format_index(index: Any) -> str:
    places = [int(i) for i in index]
    return f"index {places[0]}" if len(places) == 1 else f"index {places}"


def _is_frame(part: Any) -> bool:
    """Returns whether this is a data frame of pandas. It does not import pandas."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(part, pandas.DataFrame)


def _name_type(part: Any) -> str:
    """Returns the name of an object's type with its article: "a dict"."""
    if part is None:
        return "None"
    name = type(part).__name__.replace("ndarray", "array")
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
