"""Federations from arrays and from a data section: what is accepted, and what is refused with which error."""

import logging
import re
from collections import Counter

import numpy as np
import pytest
import torch

import fednar_ray as fr
from fednar_ray.config import read_data
from fednar_ray.core.errors import DataError
from fednar_ray.core.flat_params import flatten
from fednar_ray.data.files import load_file_federation
from fednar_ray.data.loading import load_federation
from fednar_ray.data.sources import load_digits
from fednar_ray.experiments.prepare import prepare
from fednar_ray.experiments.prepared import Prepared
from tests.conftest import build_small_federation

X = np.arange(12, dtype=np.float32).reshape(6, 2)
Y = np.array([0, 1, 2, 0, 1, 3])
GOOD = (X, Y)


@pytest.mark.parametrize(
    "convert",
    [
        lambda a: a,
        lambda a: a.astype(np.float64),
        lambda a: a.tolist(),
        torch.from_numpy,
        lambda a: torch.from_numpy(a.astype(np.float32)).requires_grad_(),
        lambda a: np.asfortranarray(a),
    ],
    ids=["arrays", "float64", "lists", "tensors", "tensors that need gradients", "column-major"],
)
def test_clients_may_be_passed_in_any_container(convert):
    pair = (convert(X[:4]), convert(Y[:4]))
    federation = fr.Federation([pair, (X[4:], Y[4:])], test=pair, validation=pair)
    block = federation.shards.examples
    np.testing.assert_array_equal(block.x[:4], X[:4])
    np.testing.assert_array_equal(block.y, Y)
    assert (block.x.dtype, block.y.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(federation.test.x, X[:4])
    np.testing.assert_array_equal(federation.validation.y, Y[:4])
    assert (federation.num_clients, federation.classes, federation.left_out) == (2, 4, 0)


def test_integer_inputs_stay_integers():
    tokens = np.array([[1, 2], [3, 4]])
    assert fr.Federation([(tokens, [0, 1])], test=(tokens, [0, 1])).shards.examples.x.dtype == np.int64


def build_with_value(value: float) -> np.ndarray:
    x = X.copy()
    x[4, 1] = value
    return x


BAD_PAIRS = {
    "no examples": ((X[:0], Y[:0]), "has no examples"),
    "no examples, lists": (([], []), "has no examples"),
    "lengths that differ": ((X, Y[:5]), r"x \(6, 2\) and y \(5,\)"),
    "labels of two dimensions": ((X, np.eye(6)), "one class per example"),
    "inputs without a dimension": ((np.float32(1), Y), "N inputs"),
    "negative label": ((X, [0, 1, 2, -1, 0, 0]), "label -1 at index 3"),
    "labels that are not whole": ((X, Y + 0.5), "float64"),
    "labels that are NaN": ((X, np.full(6, np.nan)), "labels"),
    "labels that are infinite": ((X, [0, 1, np.inf, 0, 1, 2]), "labels"),
    "labels that are text": ((X, list("abcabc")), "labels"),
    "inputs that are text": ((np.full((6, 2), "a"), Y), "numbers are needed"),
    "ragged inputs": (([[1.0, 2.0], [1.0]], [0, 1]), ""),
    "NaN": ((build_with_value(np.nan), Y), "1 examples hold NaN or infinity, the first at index 4"),
    "infinity": ((build_with_value(-np.inf), Y), "1 examples hold NaN or infinity, the first at index 4"),
    "too large for float32": ((build_with_value(1).astype(np.float64) * 1e300, Y), "infinity"),
    "another shape": ((X[:, :1], Y), r"\(1,\)"),
}


@pytest.mark.parametrize("bad", BAD_PAIRS)
@pytest.mark.parametrize("place", ["client 1", "test", "validation"])
def test_bad_examples_are_refused_with_their_place(place, bad):
    pair, message = BAD_PAIRS[bad]
    given = {"client 1": GOOD, "test": GOOD, "validation": GOOD, place: pair}
    with pytest.raises(DataError, match=f"^{place}: .*{message}"):
        fr.Federation([GOOD, given["client 1"]], test=given["test"], validation=given["validation"])


def test_an_empty_federation_is_refused():
    with pytest.raises(DataError, match="at least one client"):
        fr.Federation([], test=GOOD)


@pytest.mark.parametrize("place", ["client 1", "test"])
def test_floats_among_integer_inputs_are_refused(place):
    tokens = (X.astype(np.int64), Y)
    given = {"client 1": tokens, "test": tokens, place: GOOD}
    with pytest.raises(DataError, match=f"^{place}: .*float32"):
        fr.Federation([tokens, given["client 1"]], test=given["test"])


def test_float_labels_with_integer_values_are_accepted():
    assert fr.Federation([(X, Y.astype(float))], test=GOOD).shards.examples.y.dtype == np.int64


def test_label_counts_match_numbers_by_hand():
    federation = fr.Federation([(X[:3], [0, 2, 2]), (X[:1], [1])], test=(X[:1], [3]))
    assert federation.label_counts().tolist() == [[1, 0, 2, 0], [0, 1, 0, 0]]


def test_label_counts_have_a_row_for_an_empty_last_client():
    settings = {"partition": {"kind": "dirichlet", "clients": 200, "alpha": 0.05, "min_examples": 0}}
    federation = load_federation(read_data(settings), seed=0)
    counts = federation.label_counts()
    assert counts.shape == (200, 10)
    np.testing.assert_array_equal(counts.sum(axis=1), federation.shards.sizes)


def test_rows_and_only_select_the_same_examples(federation):
    shards = federation.shards
    assert shards.sizes.tolist() == [7, 30, 12, 1, 21]
    starts, counts = shards.rows([4, 0, 3])
    assert (starts.tolist(), counts.tolist()) == ([50, 0, 49], [21, 7, 1])
    for client in range(5):
        alone = shards.only(client)
        (start,), (count,) = shards.rows([client])
        np.testing.assert_array_equal(alone.examples.x, shards.examples.x[start : start + count])
        np.testing.assert_array_equal(alone.examples.y, shards.examples.y[start : start + count])
        assert [part.tolist() for part in alone.rows([client])] == [[0], [count]]
        assert not np.shares_memory(alone.examples.x, shards.examples.x)


PARTITIONS = [
    {"kind": "iid", "clients": 7},
    {"kind": "dirichlet", "clients": 20, "alpha": 0.1},
    {"kind": "dirichlet_equal", "clients": 11},
    {"kind": "shards", "clients": 13},
]


def count_images(*blocks: np.ndarray) -> Counter[bytes]:
    return Counter(image.tobytes() for block in blocks for image in block)


@pytest.mark.parametrize("partition", PARTITIONS, ids=lambda p: p["kind"])
def test_validation_examples_are_held_out_before_partitioning(partition):
    source = load_digits()
    settings = read_data({"validation": 0.1, "partition": partition})
    federation = load_federation(settings, seed=3)
    examples = len(source.train_y)
    remainder = (examples - 144) % 11 if partition["kind"] == "dirichlet_equal" else 0
    assert (len(federation.validation), federation.left_out) == (round(0.1 * examples), remainder)
    assert federation.shards.sizes.sum() == examples - 144 - remainder
    assert (federation.num_clients, len(federation.test)) == (partition["clients"], 360)
    taken = count_images(federation.shards.examples.x, federation.validation.x)
    assert taken <= count_images(source.train_x)  # as multisets, the two have nothing in common
    assert not taken & count_images(federation.test.x)
    iid = load_federation(read_data({"validation": 0.1, "partition": PARTITIONS[0]}), seed=3)
    np.testing.assert_array_equal(federation.validation.x, iid.validation.x)


def test_labels_stay_with_their_images():
    source = load_digits()
    known = {image.tobytes(): label for image, label in zip(source.train_x, source.train_y, strict=True)}
    federation = load_federation(read_data({"validation": 0.2, "partition": PARTITIONS[1]}), seed=0)
    for part in (federation.shards.examples, federation.validation):
        assert [known[image.tobytes()] for image in part.x] == part.y.tolist()


def test_without_a_validation_share_no_validation_set_exists():
    assert load_federation(read_data({}), seed=0).validation is None


def build_tiny(tmp_path, examples, validation, clients=2, **arrays):
    x = np.arange(2 * examples, dtype=np.float32).reshape(examples, 2)
    given = {"train_x": x, "train_y": np.arange(examples) % 2, "test_x": x[:1], "test_y": [0], **arrays}
    np.savez(tmp_path / "t.npz", **given)
    partition = {"kind": "natural"} if "who" in arrays else {"clients": clients, "min_examples": 0}
    names = {"groups": "who"} if "who" in arrays else {}
    data = {"source": "npz", "path": str(tmp_path / "t.npz"), "arrays": names, "partition": partition}
    return read_data({**data, "validation": validation})


SHARES = [
    (4, 0.1, "0.1 of 4 examples is none; use at least 0.25, or 0$"),
    (10, 0.05, "0.05 of 10 examples is none; use at least 0.1, or 0$"),  # half an example is rounded to an even number
    (4, 0.9, "0.9 of 4 examples is all of them; use at most 0.75$"),
    (2, 0.75, "0.75 of 2 examples is all of them; use at most 0.5$"),
    (3, 0.999, "0.999 of 3 examples is all of them; use at most 0.666667$"),
    (1, 0.1, "0.1 of 1 examples cannot be held out; use 0, or provide more examples$"),
    (1, 0.9, "0.9 of 1 examples cannot be held out"),
]


@pytest.mark.parametrize(("examples", "share", "message"), SHARES)
def test_a_validation_share_that_holds_out_no_or_all_examples_is_refused(tmp_path, examples, share, message):
    with pytest.raises(DataError, match=rf"^data\.validation: {message}"):
        load_federation(build_tiny(tmp_path, examples, share, clients=1), seed=0)


@pytest.mark.parametrize(("examples", "share"), [(examples, share) for examples, share, _ in SHARES if examples > 1])
def test_the_share_in_the_message_holds_out_some_examples(tmp_path, examples, share):
    with pytest.raises(DataError) as caught:
        load_federation(build_tiny(tmp_path, examples, share), seed=0)
    named = float(re.search(r"use at \w+ ([\d.]+)", str(caught.value))[1])
    found = load_federation(build_tiny(tmp_path, examples, named), seed=0)
    assert (len(found.validation), len(found.shards.examples)) == (
        (1, examples - 1) if share < 0.5 else (examples - 1, 1)
    )


def write_silo(directory, name, rows):
    lines = [f"{i},{i % 2}" for i in range(rows)]
    (directory / f"{name}.csv").write_text("\n".join(["x,y", *lines]) + "\n")


@pytest.mark.parametrize(
    ("share", "problem"), [(0.01, "0.01 of 6 examples is none"), (0.95, "0.95 of 6 examples is all")]
)
@pytest.mark.parametrize("silos", [False, True])
def test_a_share_of_no_or_all_examples_of_files_is_refused_too(tmp_path, share, problem, silos):
    write_silo(tmp_path, "north", 4)
    write_silo(tmp_path, "south", 4)  # a fifth of each file, one row, is its test set
    data = {"source": "folder", "validation": share, "partition": {"kind": "natural"}, "test_share": 0.2}
    silos = {name: {"data": str(tmp_path / f"{name}.csv")} for name in ("north", "south")}
    raw = {
        "data": data if silos else {**data, "directory": str(tmp_path)},
        "model": {"name": "logistic"},
        "federation": {"rounds": 1, "local_steps": 1},
        "execution": {"placement": "serial", **({"silos": silos} if silos else {})},
    }
    with pytest.raises(DataError, match=rf"^data\.validation: {problem}"):
        prepare(fr.Experiment.model_validate(raw))


def test_natural_clients_are_named_after_their_groups(tmp_path):
    who = np.array(["ann", "bob", "ann", "zoe", "bob", "ann"])
    found = load_federation(build_tiny(tmp_path, 6, 0, who=who), seed=0)
    assert found.client_names == ("ann", "bob", "zoe")
    for name, client in zip(found.client_names, range(3), strict=True):
        mine = 2 * np.flatnonzero(who == name)  # the first column counts rows by twos
        assert sorted(found.shards.only(client).examples.x[:, 0]) == mine.tolist()
    assert load_federation(build_tiny(tmp_path, 6, 0), seed=0).client_names == ("0", "1")


def test_a_natural_client_with_only_validation_examples_is_reported(tmp_path, caplog):
    settings = build_tiny(tmp_path, 6, 0.5, who=np.array(list("abcdef")))
    with caplog.at_level(logging.WARNING, logger="fednar_ray"):
        found = load_federation(settings, seed=0)
    lost = [chr(ord("a") + int(x) // 2) for x in sorted(found.validation.x[:, 0])]
    assert f"0.5 holds out every example of 3 clients, which do not take part: {', '.join(lost)}" in caplog.text


def test_a_file_with_only_validation_examples_is_reported(tmp_path, caplog):
    for name in ("north", "east", "south", "west"):
        write_silo(tmp_path, name, 1 if name != "west" else 12)
    settings = {"source": "folder", "directory": str(tmp_path), "validation": 0.75}
    with caplog.at_level(logging.WARNING, logger="fednar_ray"):
        found = load_file_federation(read_data(settings), seed=0)
    lost = sorted({"north", "east", "south", "west"} - set(found.client_names))
    assert lost
    assert f"holds out every example of {len(lost)} clients, which do not take part: {', '.join(lost)}" in caplog.text


def test_the_seed_decides_the_partition():
    settings = read_data({"partition": PARTITIONS[1]})
    first, again, other = (load_federation(settings, seed).shards for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.examples.x, again.examples.x)
    np.testing.assert_array_equal(first.offsets, again.offsets)
    assert not np.array_equal(first.offsets, other.offsets)


def test_min_examples_are_guaranteed_or_refused():
    few = {"kind": "dirichlet", "clients": 100, "alpha": 0.01, "min_examples": 10}
    assert load_federation(read_data({"partition": few}), seed=0).shards.sizes.min() == 10
    with pytest.raises(DataError, match="1437 examples cannot give each of 100 clients 15"):
        load_federation(read_data({"partition": {**few, "min_examples": 15}}), seed=0)


def test_empty_clients_are_reported_and_never_sampled(caplog):
    experiment = fr.Experiment.model_validate(
        {
            "data": {"partition": {"kind": "dirichlet", "clients": 60, "alpha": 0.01, "min_examples": 0}},
            "model": {"hidden": 4},
            "federation": {"rounds": 3, "local_steps": 1},
            "execution": {"placement": "serial"},
        }
    )
    with caplog.at_level(logging.WARNING, logger="fednar_ray"):
        reports = list(fr.iter_rounds(experiment))
    sizes = load_federation(experiment.data, experiment.seed).shards.sizes
    assert (sizes == 0).any()
    assert f"{(sizes == 0).sum()} clients have no examples and are never sampled" in caplog.text
    assert all(report.client_ids == tuple(np.flatnonzero(sizes)) for report in reports)


def test_sampling_more_than_the_clients_with_examples_is_refused():
    experiment = fr.Experiment.model_validate(
        {"federation": {"rounds": 1, "local_steps": 1, "clients_per_round": 3}, "execution": {"placement": "serial"}}
    )
    with pytest.raises(fr.ConfigError, match=r"clients_per_round: 3 is more than the clients with examples \(2\)"):
        next(fr.iter_rounds(experiment, federation=build_small_federation((4, 5)), model=torch.nn.Linear(2, 3)))


def test_the_data_may_have_their_own_seed() -> None:
    def made(seed: int, own: int | None) -> Prepared:
        data = {"validation": 0.2, "partition": {"kind": "dirichlet", "clients": 4}, "seed": own}
        return prepare(fr.Experiment.model_validate({"seed": seed, "data": data, "model": {"hidden": 4}}))

    here, there, free = made(0, 7), made(1, 7), made(1, None)
    assert here.federation.digest() == there.federation.digest() == made(7, None).federation.digest()
    assert here.federation.digest() != free.federation.digest()
    assert not np.array_equal(flatten(here.model), flatten(there.model))
    assert np.array_equal(flatten(there.model), flatten(free.model))
