"""Arrays from whatever a caller passes as inputs or as labels.

This is the one place that knows containers: NumPy arrays of any byte order, masked arrays, torch tensors of any type,
data frames, and lists of these. What it returns holds plain numbers; everything else is refused by name.
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

from fednar_ray.core.errors import DataError

Array = npt.NDArray[Any]

NUMBERS = "biuf"  # the kinds of NumPy's types: bool, integers, unsigned integers, floats
SCALARS = frozenset({int, float, bool, complex, str, type(None)})  # of Python itself: NumPy reads lists of them
NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)
PAIR = "a pair (x, y) of inputs and labels is needed"
CODES = "map them to 0..classes-1, e.g. with np.unique(labels, return_inverse=True)[1]"
FROM_DATASET = (
    "read it into arrays, e.g. x = np.stack([x for x, _ in dataset]) and y = np.array([y for _, y in dataset])"
)
UNREADABLE = (ValueError, TypeError, RuntimeError, OverflowError, AttributeError)


# ——— clients ———


def named_clients(clients: Any) -> tuple[tuple[str, ...], list[Any]]:
    """Splits what is passed as ``clients`` into names and pairs.

    Args:
        clients: A mapping from names to pairs, or any iterable of pairs, a generator included.

    Returns:
        The names and the pairs, in the order given. Clients without names are called "0", "1", ….

    Raises:
        DataError: There is no client, ``clients`` is no collection of pairs, or two names are the same as text.
    """
    if isinstance(clients, Dataset | DataLoader | str | bytes) or _is_frame(clients):
        raise DataError(f"clients: is {_a(clients)}; a list of pairs (x, y), one per client, is needed")
    if not isinstance(clients, Iterable):
        raise DataError(f"clients: is {_a(clients)}; a list of pairs (x, y), or a dict of them by name, is needed")
    if isinstance(clients, Mapping):
        names, pairs = tuple(map(str, clients)), list(clients.values())
        _check_names(names)
    else:
        pairs = list(clients)
        names = numbered(len(pairs))
    if not pairs:
        raise DataError("clients: a federation needs at least one client")
    return names, pairs


def numbered(clients: int) -> tuple[str, ...]:
    """The names of clients that have none of their own: "0", "1", …."""
    return tuple(map(str, range(clients)))


def _check_names(names: tuple[str, ...]) -> None:
    seen: set[str] = set()
    for name in names:
        if not name.strip():
            raise DataError("clients: a client's name is empty; every client needs a name")
        if name in seen:
            raise DataError(f"clients: two names read {name!r} as text; every client needs a name of its own")
        seen.add(name)


def as_pair(given: Any, place: str) -> tuple[Any, Any]:
    """Inputs and labels of one client, or of a held-out set: a pair, or a TensorDataset of two tensors.

    Raises:
        DataError: It is neither; the message says what it is.
    """
    if isinstance(given, tuple | list | TensorDataset):
        parts = given.tensors if isinstance(given, TensorDataset) else given
        if len(parts) != 2:
            raise DataError(f"{place}: is {_a(given)} of {len(parts)} parts; {PAIR}")
        return parts[0], parts[1]
    if isinstance(given, Dataset | DataLoader):
        raise DataError(f"{place}: is {_a(given)}; {FROM_DATASET}")
    shape = f" of shape {list(given.shape)}" if isinstance(given, np.ndarray | torch.Tensor) else ""
    raise DataError(f"{place}: is {_a(given)}{shape}; {PAIR}")


# ——— inputs and labels ———


def to_array(part: Any, place: str, what: str) -> Array:
    """Converts inputs or labels to a NumPy array of bool, integers or floats in this machine's byte order.

    Args:
        part: An array, a tensor, a data frame, a series, or a list of numbers or of these.
        place: Whose they are, for the message: "client 3".
        what: What they are, for the message, in the plural: "inputs" or "labels".

    Returns:
        The numbers, unchanged. Types that NumPy does not have, as bfloat16, become float32, which holds them exactly.

    Raises:
        DataError: Something is missing (masked, None), or is no number, or must be converted by its owner first
            (sparse and quantized tensors).
    """
    array = _converted(part, place, what)
    if array.dtype.kind == "O":
        array = _from_objects(array, place, what)
    if array.dtype.kind not in NUMBERS:
        raise DataError(f"{place}: {what} are {array.dtype}; {_advice(array.dtype.kind, what)}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _converted(part: Any, place: str, what: str) -> Array:
    if type(part) is np.ndarray:
        return part
    if isinstance(part, torch.Tensor):
        return _from_tensor(part, place, what)
    if isinstance(part, np.ma.MaskedArray):
        return _unmasked(part, place, what)
    if isinstance(part, list | tuple):
        part = _readable(part, place, what)
    elif _is_frame(part):
        return _from_frame(part, place, what)
    elif hasattr(part, "nnz"):
        dense = "toarray" if hasattr(part, "toarray") else "todense"
        raise DataError(f"{place}: {what} are {_a(part)}, which is sparse; pass its dense form, .{dense}()")
    try:
        array = np.asarray(part)
    except UNREADABLE as error:
        raise DataError(f"{place}: {what} are no array: {error}") from None
    if array.ndim == 0 and array.dtype.kind not in NUMBERS:
        raise DataError(f"{place}: {what} are {_a(part)}; an array, a tensor or a list of numbers is needed")
    return array


def _readable(rows: list[Any] | tuple[Any, ...], place: str, what: str) -> Any:
    """A list in which tensors and masked arrays are arrays, so that NumPy reads it without loss."""
    if SCALARS.issuperset(map(type, rows)):
        return rows
    return [_row(row, i, place, what) for i, row in enumerate(rows)]


def _row(row: Any, index: int, place: str, what: str) -> Any:
    if isinstance(row, list | tuple):
        return _readable(row, place, what)
    if isinstance(row, torch.Tensor | np.ma.MaskedArray):
        return _converted(row, place, f"{what} in row {index}")
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


def _unmasked(array: Any, place: str, what: str) -> Array:
    """The data of a masked array in which nothing is masked."""
    mask = np.ma.getmaskarray(array)
    if mask.any():
        first = f", the first at {_index(np.argwhere(mask)[0])}" if mask.ndim else ""
        filled = "fill them, e.g. x.filled(0), or leave these examples out"
        raise DataError(f"{place}: {int(mask.sum())} {what} are masked (missing){first}; {filled}")
    return np.asarray(array.data)


def _from_frame(frame: Any, place: str, what: str) -> Array:
    """The columns of a data frame, each converted by itself, so that the column at fault is named."""
    names = list(frame.columns)
    if not names:
        raise DataError(f"{place}: {what} are a data frame without columns")
    columns = (to_array(frame.iloc[:, i], place, f"{what} of column {name!r}") for i, name in enumerate(names))
    return np.stack(list(columns), axis=1)


def _from_objects(array: Array, place: str, what: str) -> Array:
    """Python's own numbers as NumPy's: whole ones as int64 where it holds them, all others as float64."""
    for index, value in np.ndenumerate(array):
        if not isinstance(value, Real | Decimal | np.bool_):
            found = f"{reprlib.repr(value)} ({type(value).__name__}) at {_index(index)}"
            rows = hasattr(value, "__len__") and not isinstance(value, str | bytes)
            needed = "stack rows into one array, e.g. np.stack(x)" if rows else _advice("O", what)
            raise DataError(f"{place}: {what} hold {found}; {needed}")
    whole = all(isinstance(value, Integral | np.bool_) for value in array.flat)
    try:
        small = whole and all(-(2**63) <= int(value) < 2**63 for value in array.flat)
        return array.astype(np.int64 if small else np.float64)
    except (OverflowError, ValueError) as error:
        raise DataError(f"{place}: {what} hold a number that float64 does not: {error}") from None


def _advice(kind: str, what: str) -> str:
    """What would be right, where values of NumPy's ``kind`` were given."""
    if kind in "USTO" and what.startswith("labels"):
        return f"numbers are needed; if they name classes, {CODES}"
    if kind in "mM":
        return "numbers are needed; turn times into numbers first, e.g. days since a date"
    if kind == "c":
        return "real numbers are needed; give real and imaginary parts as inputs of their own"
    return "numbers are needed"


def _index(index: Any) -> str:
    places = [int(i) for i in index]
    return f"index {places[0]}" if len(places) == 1 else f"index {places}"


def _is_frame(part: Any) -> bool:
    """Is it a data frame of pandas? Where pandas was never imported, there is none."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(part, pandas.DataFrame)


def _a(part: Any) -> str:
    """What it is, with its article: "a dict"."""
    if part is None:
        return "None"
    name = type(part).__name__.replace("ndarray", "array")
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
