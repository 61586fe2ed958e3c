"""Every container of examples is converted with the right values, or refused with the name of its type."""

import logging
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
import torch
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import fednar_ray as fr
from fednar_ray.core.errors import DataError
from fednar_ray.data.examples import MAX_CLASSES, Examples

X = np.array([[0.5, -1.25], [2.0, 3.5], [-8.0, 0.125], [7.0, 1.0]], dtype=np.float32)  # exact in bfloat16 too
COUNTS = np.array([[1, 2], [3, 4], [5, 6], [7, 0]])
Y = np.array([0, 1, 2, 1])
PAIR = (X, Y)

INPUTS: dict[str, Any] = {
    "float16": X.astype(np.float16),
    "longdouble": X.astype(np.longdouble),
    "big-endian": X.astype(">f4"),
    "column-major": np.asfortranarray(X),
    "reversed twice": np.ascontiguousarray(X[::-1])[::-1],
    "every second": np.repeat(X, 2, axis=0)[::2],
    "masked, nothing of it": np.ma.masked_less(X, -100),
    "bfloat16": torch.from_numpy(X).to(torch.bfloat16),
    "with a gradient": torch.from_numpy(X).requires_grad_(),
    "a parameter": torch.nn.Parameter(torch.from_numpy(X)),
    "transposed tensor": torch.from_numpy(X.T.copy()).T,
    "a list of tensors": [torch.from_numpy(row) for row in X],
    "a list of bfloat16 tensors": [torch.from_numpy(row).to(torch.bfloat16).requires_grad_() for row in X],
    "nested tuples": tuple(map(tuple, X.tolist())),
    "data frame": pd.DataFrame(X),
    "nullable data frame": pd.DataFrame(X).astype("Float32"),
    "data frame of many types": pd.DataFrame(
        {"a": pd.array(X[:, 0], dtype="Float64"), "b": X[:, 1]}, index=list("dcba")
    ),
    "arrow table": pa.table({"a": X[:, 0], "b": X[:, 1]}),
    "objects": X.astype(object),
    "decimals": np.array([[Decimal(str(value)) for value in row] for row in X.tolist()]),
    "fractions": [[Fraction(value) for value in row] for row in X.tolist()],
    "matrix": np.asmatrix(X),
}


@pytest.mark.parametrize("kind", INPUTS)
def test_inputs_keep_their_values_in_every_container(kind: str) -> None:
    taken = Examples.of((INPUTS[kind], Y), "client 0")
    np.testing.assert_array_equal(taken.x, X, strict=True)
    assert taken.x.flags.c_contiguous
    torch.from_numpy(taken.x)


WHOLE: dict[str, Any] = {
    "big-endian": COUNTS.astype(">i8"),
    "column-major": np.asfortranarray(COUNTS),
    "backwards": COUNTS[::-1].copy()[::-1],
    "data frame": pd.DataFrame(COUNTS),
    "nullable data frame": pd.DataFrame(COUNTS).astype("Int64"),
    "lists": COUNTS.tolist(),
    "objects": COUNTS.astype(object),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_integers_stay_integers_in_native_byte_order(kind: str) -> None:
    taken = Examples.of((WHOLE[kind], Y), "client 0")
    np.testing.assert_array_equal(taken.x, COUNTS, strict=True)
    assert torch.from_numpy(taken.x).dtype == torch.int64


@pytest.mark.parametrize("kind", [">i4", ">u2", ">i2", "<i4"])
def test_integers_of_either_byte_order_train_an_embedding(kind: str) -> None:
    tokens = COUNTS.astype(kind)
    federation = fr.Federation([(tokens, Y), (tokens[::-1], Y)], test=(tokens, Y))
    assert federation.shards.examples.x.dtype == np.dtype(kind).newbyteorder("=")
    assert federation.shards.examples.x.tolist() == [*COUNTS.tolist(), *COUNTS[::-1].tolist()]


LABELS: dict[str, Any] = {
    "big-endian": Y.astype(">i4"),
    "uint64": Y.astype(np.uint64),
    "whole floats": Y.astype(np.float64),
    "float16": Y.astype(np.float16),
    "bfloat16": torch.from_numpy(Y).to(torch.bfloat16),
    "backwards": Y[::-1].copy()[::-1],
    "a column": Y[:, None],
    "a frame of one column": pd.DataFrame({"y": Y}),
    "series": pd.Series(Y, index=list("dcba")),
    "nullable series": pd.Series(Y, dtype="Int64"),
    "arrow series": pd.Series(Y, dtype="int64[pyarrow]"),
    "categories that are classes": pd.Series(Y).astype("category"),
    "arrow array": pa.array(Y),
    "objects": Y.astype(object),
    "tensors": list(torch.from_numpy(Y)),
    "masked, nothing of it": np.ma.masked_less(Y, 0),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_keep_their_values_in_every_container(kind: str) -> None:
    np.testing.assert_array_equal(Examples.of((X, LABELS[kind]), "client 0").y, Y, strict=True)


@pytest.mark.parametrize("task", ["classification", "binary", "regression"])
@pytest.mark.parametrize("convert", [np.array, torch.tensor, pd.Series, lambda y: pd.Series(y, dtype="boolean"), list])
def test_bool_labels_become_zeros_and_ones(task: str, convert: Any) -> None:
    y = Examples.of((X, convert([True, False, True, True])), "client 0", task).y
    assert y.tolist() == [1, 0, 1, 1]
    assert y.dtype == (np.float32 if task == "regression" else np.int64)


class Mine(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return X[index], Y[index]

    def __len__(self) -> int:
        return len(X)


def mask(x: np.ndarray) -> Any:
    return np.ma.masked_where(np.arange(x.size).reshape(x.shape) == 3, x)


TENSORS = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
REFUSED: dict[str, tuple[Any, str]] = {
    "nothing": (None, r"is None; a pair \(x, y\)"),
    "three parts": ((X, Y, Y), "is a tuple of 3 parts"),
    "three tensors": (TensorDataset(*TENSORS.tensors, TENSORS.tensors[1]), "is a TensorDataset of 3 parts"),
    "an array": (X[:2], r"is an array of shape \[2, 2\]; a pair"),
    "a tensor": (torch.from_numpy(X[:2]), r"is a Tensor of shape \[2, 2\]; a pair"),
    "a data frame": (pd.DataFrame(X), "is a DataFrame; a pair"),
    "a user of LEAF": ({"x": X, "y": Y}, "is a dict; a pair"),
    "a path": ("data.npz", "is a str; a pair"),
    "a loader": (DataLoader(TENSORS), r"is a DataLoader; read it into arrays, e\.g\. x = np\.stack"),
    "a subset": (Subset(TENSORS, [0]), "is a Subset; read it into arrays"),
    "a dataset": (Mine(), "is a Mine; read it into arrays"),
    "no inputs": ((None, Y), "inputs are None; an array"),
    "no labels": ((X, None), "labels are None"),
    "a generator of inputs": (((row for row in X), Y), "inputs are a generator; an array"),
    "inputs by name": (({"a": X}, Y), "inputs are a dict; an array"),
    "masked inputs": ((mask(X), Y), r"1 inputs are masked \(missing\), the first at index \[1, 1\]; fill them"),
    "masked labels": ((X, mask(Y)), r"1 labels are masked \(missing\), the first at index 3"),
    "a list with a masked row": (([*X[:2], mask(X)[1], X[3]], Y), r"1 inputs in row 2 are masked.* index 1"),
    "masked numbers": (([[1.0, np.ma.masked], [1.0, 2.0]], [0, 1]), "masked"),
    "csr": ((scipy.sparse.csr_matrix(X), Y), r"inputs are a csr_matrix, which is sparse; .*\.toarray\(\)"),
    "coo array": ((scipy.sparse.coo_array(X), Y), r"inputs are a coo_array, which is sparse; .*\.toarray\(\)"),
    "sparse tensor": ((torch.from_numpy(X).to_sparse(), Y), r"layout torch\.sparse_coo; .*\.to_dense\(\)"),
    "sparse labels": ((X, torch.from_numpy(Y).to_sparse()), r"labels are a tensor of layout .*\.to_dense\(\)"),
    "no device": ((torch.empty(4, 2, device="meta"), Y), "inputs are torch.float32 on meta, and cannot be read"),
    "bool inputs": ((X > 0, Y), r"inputs are bool; numbers are needed: x\.astype\(np\.float32\)"),
    "complex": ((X + 0j, Y), "inputs are complex64; real numbers are needed"),
    "complex tensor": ((torch.from_numpy(X) + 0j, Y), "inputs are torch.complex64; real numbers are needed"),
    "text": ((X.astype(str), Y), "inputs are <U.*; numbers are needed"),
    "records": ((np.zeros(4, dtype=[("a", "f4")]), Y), "inputs are .*; numbers are needed"),
    "dates": ((X.astype("datetime64[D]"), Y), r"inputs are datetime64\[D\]; .* days since"),
    "dates in a frame": (
        (pd.DataFrame({"age": X[:, 0], "born": pd.to_datetime(["2020-01-01"] * 4)}), Y),
        r"inputs of column 'born' are datetime64.*; numbers are needed",
    ),
    "text in a frame": (
        (pd.DataFrame({"age": X[:, 0], "ward": ["a", None, "b", "c"]}), Y),
        r"inputs of column 'ward' hold 'a' \(str\) at index 0; numbers are needed",
    ),
    "missing in a frame": ((pd.DataFrame({"a": pd.array([1, None, 2, 3], dtype="Int64")}), Y), "the first at index 1"),
    "missing bool": ((X, pd.array([True, None, False, True], dtype="boolean")), r"labels hold <NA> .* at index 1"),
    "missing label": ((X, pd.array([1, None, 2, 0], dtype="Int64")), "label nan at index 1"),
    "no label": ((X, [0, 1, None, 1]), r"labels hold None \(NoneType\) at index 2"),
    "no columns": ((pd.DataFrame(index=range(4)), Y), "a data frame without columns"),
    "empty inputs": ((X[:, :0], Y), r"x \(4, 0\): the inputs hold no numbers"),
    "rows as objects": ((pd.Series(list(X)), Y), r"inputs hold array\(.* at index 0; stack rows"),
    "ragged rows": (([[1.0], [1.0, 2.0]], [0, 1]), "inputs cannot be converted to an array"),
    "ragged tensors": (([torch.ones(1), torch.ones(2)], [0, 1]), "inputs cannot be converted to an array"),
    "text labels": ((X, list("abca")), r"labels are <U1; .* np\.unique\(labels, return_inverse=True\)\[1\]"),
    "text categories": ((X, pd.Series(list("abca"), dtype="category")), r"labels hold 'a' .* np\.unique\(labels"),
    "one-hot labels": ((X, np.eye(3)[Y]), r"labels \(4, 3\) are one-hot; .* y\.argmax\(axis=1\)"),
    "soft labels": ((X, np.full((4, 3), 1 / 3)), r"x \(4, 2\) and y \(4, 3\) are not"),
    "one label": ((X, np.int64(1)), "are not N inputs and N labels"),
    "a half": ((X, [0, 1.5, 1, 2]), r"label 1\.5 at index 1 \(float64\); labels are whole numbers"),
    "negative": ((X, [1, -1, 1, 1]), "label -1 at index 1"),
    "negative and large": ((X, [2**63, -1, 1, 1]), "label -1.* at index 1"),
    "code": ((X, [10115, 80331, 10**9, 1]), "label 1000000000 at index 2; .* codes, map them to 0"),
    "just too many": ((X, [0, MAX_CLASSES, 1, 1]), f"label {MAX_CLASSES} at index 1"),
    "beyond int64": ((X, np.array([0, 2**63, 1, 1], dtype=np.uint64)), f"label {2**63} at index 1"),
    "beyond uint64": ((X, [0, 1, 2**64, 1]), r"label 1\.8446744073709552e\+19 at index 2"),
    "beyond floats": ((X, [0, 1, 10**400, 1]), "labels hold a number that float64 cannot represent"),
    "whole float beyond int64": ((X, [0, 1, 1e300, 1]), r"label 1e\+300 at index 2"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_anything_but_an_array_of_numbers_is_refused_by_name(kind: str) -> None:
    given, message = REFUSED[kind]
    for place, federation in {
        "client 1": {"clients": [PAIR, given], "test": PAIR},
        "client ann": {"clients": {"bob": PAIR, "ann": given}, "test": PAIR},
        "test": {"clients": [PAIR], "test": given},
    }.items():
        with pytest.raises(DataError, match=f"^{place}: .*({message})"):
            fr.Federation(**federation)


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation")
def test_quantized_and_nested_tensors_are_refused_by_name() -> None:
    quantized = torch.quantize_per_tensor(torch.from_numpy(X), 0.1, 0, torch.quint8)
    with pytest.raises(DataError, match=r"client 0: inputs are a quantized tensor; .*\.dequantize\(\)"):
        fr.Federation([(quantized, Y)], test=PAIR)
    nested = torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged)
    with pytest.raises(DataError, match=r"client 0: inputs are a nested tensor of unequal rows"):
        fr.Federation([(nested, [0, 1])], test=PAIR)


# ——— clients ———


def test_clients_by_name_keep_their_names_in_the_order_given() -> None:
    federation = fr.Federation({"zoe": (X[:1], Y[:1]), "ann": (X[1:], Y[1:]), 7: PAIR}, test=PAIR)
    assert federation.client_names == ("zoe", "ann", "7")
    assert federation.shards.sizes.tolist() == [1, 3, 4]
    np.testing.assert_array_equal(federation.shards.examples.x[:4], X)


def test_client_names_change_nothing_else() -> None:
    named, listed = (fr.Federation(clients, test=PAIR) for clients in ({"a": PAIR, "b": PAIR}, [PAIR, PAIR]))
    assert named.digest() == listed.digest()


@pytest.mark.parametrize(
    "clients",
    [[PAIR, PAIR], (PAIR, PAIR), (PAIR for _ in range(2)), {"a": PAIR, "b": PAIR}.values(), [list(PAIR), TENSORS]],
    ids=["list", "tuple", "generator", "values", "a list and a TensorDataset"],
)
def test_clients_without_names_are_numbered(clients: Any) -> None:
    federation = fr.Federation(clients, test=TENSORS, validation=TENSORS)
    assert (federation.client_names, federation.num_clients) == (("0", "1"), 2)
    np.testing.assert_array_equal(federation.shards.examples.x, np.concatenate([X, X]))
    np.testing.assert_array_equal(federation.test.x, X)


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        (None, "clients: is None; a list of pairs"),
        (3, "clients: is an int; a list of pairs"),
        ("data.npz", "clients: is a str; a list of pairs"),
        (TENSORS, "clients: is a TensorDataset; a list of pairs"),
        (DataLoader(TENSORS), "clients: is a DataLoader; a list of pairs"),
        (pd.DataFrame(X), "clients: is a DataFrame; a list of pairs"),
        (PAIR, "client 0: is an array of shape"),
        (X, "client 0: is an array of shape"),
        ({}, "clients: a federation needs at least one client"),
        ((pair for pair in ()), "clients: a federation needs at least one client"),
        ({1: PAIR, "1": PAIR}, "clients: two names are '1' as text"),
        ({" ": PAIR}, "clients: a client's name is empty"),
        ({"a": PAIR, "b": (X[:, :1], Y)}, r"client b: inputs are \(1,\) float32, but those of client a are \(2,\)"),
    ],
)
def test_anything_but_a_collection_of_clients_is_refused(clients: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"^{message}"):
        fr.Federation(clients, test=PAIR)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(DataError, match=r"^task: 'clasification' should be one of classification, binary, regression"):
        fr.Federation([PAIR], test=PAIR, task="clasification")


# ——— label codes ———


def test_the_largest_possible_class_is_accepted() -> None:
    assert fr.Federation([(X, [0, 1, 2, MAX_CLASSES - 1])], test=PAIR).classes == MAX_CLASSES


@pytest.mark.parametrize(("highest", "warned"), [(80331, True), (1001, True), (999, False)])
def test_a_few_distinct_labels_with_large_values_cause_a_warning(
    highest: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="fednar_ray"):
        fr.Federation([(X, [0, 1, 2, highest])], test=PAIR)
    warning = f"the highest label is {highest}, but only 4 classes occur, and a model gets {highest + 1} outputs"
    assert (warning in caplog.text) is warned


def test_many_classes_that_occur_cause_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    y = np.arange(5000)
    with caplog.at_level(logging.WARNING, logger="fednar_ray"):
        fr.Federation([(y[:, None], y)], test=(y[:, None], y))
    assert not caplog.text
