"""Every source reads small files in its real format, and names files that are missing, damaged, cut short or empty."""

import gzip
import hashlib
import json
import pickle
import struct
import sys
import zipfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from pyarrow import csv, parquet
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

import fednar_ray as fr
from fednar_ray.config import read_data
from fednar_ray.config.loading import parse_document
from fednar_ray.core.errors import DataError
from fednar_ray.data.federation import Federation
from fednar_ray.data.files import load_file_federation
from fednar_ray.data.loading import load_federation
from fednar_ray.data.sources import SOURCES, Source, images
from fednar_ray.data.sources.huggingface import _build_examples
from fednar_ray.data.sources.images import read_cifar, read_idx_files
from fednar_ray.data.sources.moments import Moments
from fednar_ray.data.sources.shakespeare import ALPHABET, parse_plays
from fednar_ray.experiments.placement import open_pool, plan_execution
from fednar_ray.experiments.prepare import prepare

RNG = np.random.default_rng(0)


def load_source(**settings: Any) -> Source:
    found = read_data(settings)
    return SOURCES[found.source](found)


def build_federation(**settings: Any) -> Federation:
    return load_federation(read_data(settings), seed=0)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# ——— the digits that ship with the package ———


def test_digits_equal_those_of_scikit_learn():
    x, y = load_digits(return_X_y=True)
    expected = train_test_split(x / 16, y, test_size=0.2, stratify=y, random_state=0)
    found = load_source(source="digits")
    for ours, theirs in zip((found.train_x, found.test_x), expected[:2], strict=True):
        np.testing.assert_array_equal(ours, theirs.reshape(-1, 1, 8, 8).astype(np.float32), strict=True)
    for ours, theirs in zip((found.train_y, found.test_y), expected[2:], strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)


# ——— settings ———


def find_problem(text: str, *overrides: str) -> str:
    document = f"experiment:\n  data: {text}\n  model: {{name: mlp}}\n  federation: {{local_steps: 1}}\n"
    with pytest.raises(fr.ConfigError) as caught:
        parse_document(document, "f.yaml", overrides)
    (only,) = caught.value.problems
    return only


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("{source: cifar10}", "data: cifar10 needs directory"),
        ("{source: npz}", "data: npz needs path"),
        ("{source: huggingface}", "data: huggingface needs dataset; huggingface needs features"),
        ("{source: digits, path: a}", "data: digits does not read path: it belongs to npz, shakespeare"),
        ("{source: npz, path: a, crop: true}", "data: npz does not read crop: it belongs to shakespeare"),
        ("{source: folder, directory: a, partition: {kind: iid, clients: 3}}", "data: the clients of folder are its"),
        ("{source: npz, path: a, partition: {kind: natural}}", "data.partition.kind: 'natural': npz has no groups"),
        ("{source: npz, path: a, augmentation: {kind: always}}", "data.augmentation.kind: 'always' should be"),
        ("{entry_point: module.function}", "data.entry_point: 'module.function'"),
        ("{source: npz, path: a, arrays: {train: x}}", "data.arrays.train: 'x': unknown key; did you mean train_y?"),
    ],
)
def test_a_source_reads_its_own_settings_and_names_missing_ones(section: str, expected: str) -> None:
    assert find_problem(section).startswith(expected)


def test_clients_of_natural_sources_are_their_groups_by_default(tmp_path: Path) -> None:
    settings = read_data({"source": "shakespeare", "path": "a", "partition": {"clients": 50}})
    assert (settings.partition.kind, settings.partition.clients) == ("natural", 50)
    settings = read_data({"source": "shakespeare", "path": "a", "partition": {"kind": "iid"}})
    assert settings.partition.kind == "iid"


def test_paths_become_absolute_when_they_are_read() -> None:
    text = "experiment:\n  data: {source: cifar10, directory: here}\n  model: {name: mlp}\n"
    experiment = parse_document(text, "f.yaml").experiment
    assert experiment.data is not None
    assert experiment.data.directory == str(Path("here").absolute())


# ——— CIFAR ———


def write_cifar(directory: Path, base: type[CIFAR10]) -> tuple[type[CIFAR10], np.ndarray, np.ndarray]:
    """Writes files in torchvision's layout; returns its class with their checksums, images [N, 3, 32, 32], labels."""
    folder = directory / base.base_folder
    folder.mkdir(parents=True)
    names = [name for name, _ in (*base.train_list, *base.test_list)]
    images = RNG.integers(256, size=(4 * len(names), 3, 32, 32), dtype=np.uint8)
    labels = np.arange(len(images)) % 10
    kind = "fine_labels" if base is CIFAR100 else "labels"

    def written(name: str, content: dict[str, Any]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]  # noqa: S324 - CIFAR's own check

    digests = []
    for i, name in enumerate(names):
        rows = slice(4 * i, 4 * i + 4)
        digests.append(written(name, {"data": images[rows].reshape(4, -1), kind: labels[rows].tolist()}))
    _, meta_digest = written(base.meta["filename"], {base.meta["key"]: list("abcdefghij")})

    class Small(base):  # type: ignore[misc, valid-type]
        train_list, test_list = digests[:-1], digests[-1:]
        meta = base.meta | {"md5": meta_digest}

    return Small, images, labels


@pytest.mark.parametrize(("name", "base"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_cifar_is_loaded_as_uint8_with_channels_first(name: str, base: type[CIFAR10], tmp_path: Path) -> None:
    small, images, labels = write_cifar(tmp_path, base)
    found = read_cifar(name, small, tmp_path, download=False)
    assert (found.name, found.train_x.dtype) == (name, np.uint8)
    np.testing.assert_array_equal(found.train_x, images[:-4])
    np.testing.assert_array_equal(found.train_y, labels[:-4])
    np.testing.assert_array_equal(found.test_x, images[-4:])
    np.testing.assert_array_equal(found.test_y, labels[-4:])
    assert found.train_x.flags.c_contiguous


@pytest.mark.parametrize("file", ["data_batch_2", "test_batch", "batches.meta"])
def test_missing_and_damaged_cifar_files_are_named(file: str, tmp_path: Path) -> None:
    small, *_ = write_cifar(tmp_path, CIFAR10)
    path = tmp_path / "cifar-10-batches-py" / file
    truncate(path)
    with pytest.raises(DataError, match=f"{file}: is damaged"):
        read_cifar("cifar10", small, tmp_path, download=False)
    path.unlink()
    with pytest.raises(DataError, match=f"{file}: is missing"):
        read_cifar("cifar10", small, tmp_path, download=False)


def test_files_are_checked_with_torchvisions_checksums(tmp_path: Path) -> None:
    write_cifar(tmp_path, CIFAR10)
    with pytest.raises(DataError, match="data_batch_1: is damaged: its MD5"):
        load_source(source="cifar10", directory=str(tmp_path))


# ——— the MNIST family ———

IDX_IMAGES = RNG.integers(256, size=(9, 28, 28), dtype=np.uint8)
IDX_LABELS = np.arange(9, dtype=np.uint8)


def build_idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def write_idx(directory: Path, *, packed: bool, labels: np.ndarray = IDX_LABELS[:6]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    contents = {
        "train-images-idx3-ubyte": IDX_IMAGES[:6],
        "train-labels-idx1-ubyte": labels,
        "t10k-images-idx3-ubyte": IDX_IMAGES[6:],
        "t10k-labels-idx1-ubyte": IDX_LABELS[6:],
    }
    for name, array in contents.items():
        if packed:
            (directory / f"{name}.gz").write_bytes(gzip.compress(build_idx(array)))
        else:
            (directory / name).write_bytes(build_idx(array))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("name", "layout"), [("mnist", "MNIST/raw"), ("fashion_mnist", "FashionMNIST/raw"), ("mnist", "")]
)
def test_idx_files_are_read_with_or_without_compression_and_torchvisions_layout(
    name: str, layout: str, packed: bool, tmp_path: Path
) -> None:
    write_idx(tmp_path / layout, packed=packed)
    found = load_source(source=name, directory=str(tmp_path))
    np.testing.assert_array_equal(found.train_x, IDX_IMAGES[:6, None])
    np.testing.assert_array_equal(found.train_y, IDX_LABELS[:6])
    np.testing.assert_array_equal(found.test_x, IDX_IMAGES[6:, None])
    np.testing.assert_array_equal(found.test_y, IDX_LABELS[6:])


def test_fashion_mnist_is_found_where_debian_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "DEBIAN_FASHION_MNIST", tmp_path / "fashion-mnist")
    with pytest.raises(DataError, match=r"data\.directory: missing.*dataset-fashion-mnist"):
        load_source(source="fashion_mnist")
    write_idx(tmp_path / "fashion-mnist", packed=True)
    np.testing.assert_array_equal(load_source(source="fashion_mnist").test_y, IDX_LABELS[6:])


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("content", [truncate, lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_an_idx_file_that_is_cut_short_empty_or_missing_is_named(packed: bool, content: Any, tmp_path: Path) -> None:
    write_idx(tmp_path, packed=packed)
    content(tmp_path / ("t10k-images-idx3-ubyte" + (".gz" if packed else "")))
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte"):
        load_source(source="mnist", directory=str(tmp_path))


@pytest.mark.parametrize("count", [7, 2**31 - 1, 2**32 - 1])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_an_idx_file_that_claims_more_than_it_holds_is_named(name: str, count: int, tmp_path: Path) -> None:
    write_idx(tmp_path, packed=False)
    data = bytearray((tmp_path / name).read_bytes())
    data[4:8] = struct.pack(">I", count)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=f"{name}: is damaged, or is not an IDX file"):
        load_source(source="mnist", directory=str(tmp_path))


def test_different_numbers_of_images_and_labels_are_refused(tmp_path: Path) -> None:
    write_idx(tmp_path, packed=False, labels=IDX_LABELS[:5])
    with pytest.raises(DataError, match=rf"{tmp_path} \(train files\): x \(6, 1, 28, 28\) and y \(5,\)"):
        load_source(source="mnist", directory=str(tmp_path))


def test_a_failed_download_is_reported(tmp_path: Path) -> None:
    class Nowhere(FashionMNIST):
        mirrors = [(tmp_path / "nothing").as_uri() + "/"]  # noqa: RUF012

    with pytest.raises(DataError, match=r"data\.download: Nowhere cannot be downloaded"):
        read_idx_files("mnist", Nowhere, tmp_path, images.MNIST, download=True)


# ——— .npz ———

COLOR_IMAGES = RNG.integers(256, size=(8, 5, 4, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0, 1])
TWO = {"clients": 2}


def write_npz(path: Path, **arrays: np.ndarray) -> Path:
    given = {
        "train_x": COLOR_IMAGES[:6],
        "train_y": LABELS[:6],
        "test_x": COLOR_IMAGES[6:],
        "test_y": LABELS[6:],
    } | arrays
    np.savez(path, **given)  # type: ignore[arg-type]
    return path


def test_npz_images_are_transposed_and_normalized_by_their_own_statistics(tmp_path: Path) -> None:
    found = build_federation(source="npz", path=str(write_npz(tmp_path / "a.npz")), partition=TWO)
    held = np.concatenate([found.shards.examples.x, found.test.x])
    assert {image.tobytes() for image in held} == {image.transpose(2, 0, 1).tobytes() for image in COLOR_IMAGES}
    assert held.dtype == np.uint8
    scaled = COLOR_IMAGES[:6].astype(np.float64) / 255
    assert found.transform is not None
    np.testing.assert_allclose(found.transform.mean, scaled.mean(axis=(0, 1, 2)))
    np.testing.assert_allclose(found.transform.std, scaled.std(axis=(0, 1, 2)))


def test_npz_arrays_are_read_by_the_names_and_groups_in_the_settings(tmp_path: Path) -> None:
    gray, ward = COLOR_IMAGES[:6, :, :, 0], np.array(["b", "a", "b", "c", "a", "a"])
    path = write_npz(tmp_path / "a.npz", pixels=gray, ward=ward, test_x=COLOR_IMAGES[6:, :, :, 0])
    arrays = {"train_x": "pixels", "groups": "ward"}
    found = build_federation(source="npz", path=str(path), arrays=arrays, partition={"kind": "natural"})
    assert found.shards.sizes.tolist() == [3, 2, 1]
    assert found.shards.examples.x.shape == (6, 1, 5, 4)
    assert sorted(LABELS[:6][ward == "a"]) == sorted(found.shards.only(0).examples.y)


def test_arrays_that_are_not_images_are_unchanged(tmp_path: Path) -> None:
    points = RNG.normal(size=(6, 3))
    path = write_npz(tmp_path / "a.npz", train_x=points, test_x=points[:2], train_y=np.arange(6) - 2.5)
    found = load_source(source="npz", path=str(path), task="regression")
    np.testing.assert_array_equal(found.train_x, points.astype(np.float32))
    assert (found.train_y.dtype, found.task, found.transform) == (np.float32, "regression", None)
    with pytest.raises(DataError, match="normalization and augmentation need uint8 images"):
        build_federation(
            source="npz", path=str(path), task="regression", augmentation={"kind": "per_batch"}, partition=TWO
        )


def test_a_given_normalization_has_one_number_per_channel(tmp_path: Path) -> None:
    path = str(write_npz(tmp_path / "a.npz"))
    own = {"mean": [0.1, 0.2, 0.3], "std": [1, 2, 3]}
    found = build_federation(source="npz", path=path, partition=TWO, normalization=own)
    assert found.transform is not None
    assert (found.transform.mean, found.transform.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    with pytest.raises(DataError, match=r"data\.normalization: the images have 3 channels"):
        build_federation(source="npz", path=path, partition=TWO, normalization={"mean": [0], "std": [1]})


def write_only_one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, LABELS)


def write_damaged_inside(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[300] ^= 255  # among the pixels of the first array
    path.write_bytes(data)


def write_with_header(path: Path, header: bytes, data: bytes = b"\0" * 64) -> None:
    """Writes the file with another header for ``train_x``, as a malicious file may have it."""
    arrays = dict(np.load(path))
    arrays.pop("train_x")
    np.savez(path, **arrays)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train_x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data)


def build_header(shape: str, kind: str = "<f8") -> bytes:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}\n".encode()


HEADERS = {
    "rows": (build_header("(1000000000000, 4)"), r"claims \[1000000000000, 4\] of float64, 32,000,000,000,000 bytes"),
    "rows that overflow": (build_header(f"({2**62}, 8)"), "its header claims"),
    "fewer rows than there are": (build_header("(2, 2)"), "but the file holds 64"),
    "one row too many": (build_header("(9, 1)"), "claims .*72 bytes, but the file holds 64"),
    "rows below none": (build_header("(-8, -1)"), "its header claims"),
    "objects": (build_header("(8,)", "|O"), "train_x: holds Python objects, which are never read"),
    "no type": (build_header("(8,)", "<q9"), "train_x: is damaged"),
    "no dictionary": (b"[1, 2]\n", "train_x: is damaged"),
    "no Python": (b"{'descr': (((\n", "train_x: is damaged"),
    "nothing": (b"", "train_x: is damaged"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_an_npz_header_that_claims_more_than_the_file_holds_is_refused(kind: str, tmp_path: Path) -> None:
    header, message = HEADERS[kind]
    path = write_npz(tmp_path / "a.npz")
    write_with_header(path, header)
    with pytest.raises(DataError, match=rf"a\.npz: .*({message})"):
        build_federation(source="npz", path=str(path), partition=TWO)
    (tmp_path / "wards").mkdir()
    np.savez(tmp_path / "wards" / "b.npz", x=np.zeros((4, 2)), y=np.arange(4) % 2)
    path.rename(tmp_path / "wards" / "a.npz")
    with pytest.raises(DataError, match=rf"a\.npz: .*({message}|has no array)"):
        build_federation(source="folder", directory=str(tmp_path / "wards"), features=["train_x"], label="train_y")


def test_an_array_larger_than_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_npz(tmp_path / "a.npz", train_x=np.zeros((6, 1000)), test_x=np.zeros((2, 1000)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=40_000))
    with pytest.raises(DataError, match=r"a\.npz: train_x: needs 48,000 bytes of memory, but only 40,000 are free"):
        load_source(source="npz", path=str(path))


@pytest.mark.parametrize(("local", "central", "value"), [(6, 8, 1), (8, 10, 97)], ids=["encrypted", "unknown packing"])
def test_an_archive_that_cannot_be_decompressed_is_named(local: int, central: int, value: int, tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz")
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\3\4", local), (b"PK\1\2", central)):
        data[data.find(mark) + offset] = value  # inside the first array, train_x
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.npz: train_x: is damaged, or is not an \.npz"):
        load_source(source="npz", path=str(path))


def test_a_damaged_header_never_causes_a_traceback(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good = write_npz(tmp_path / "good.npz").read_bytes()
    path = tmp_path / "a.npz"
    for _ in range(300):
        data = bytearray(good)
        data[rng.integers(160)] = rng.integers(256)  # the archive's header and the first array's
        path.write_bytes(data)
        with suppress(DataError):
            load_source(source="npz", path=str(path))


# ——— the position of the channels of uint8 images ———


def build_images(*shape: int) -> np.ndarray:
    return RNG.integers(256, size=shape, dtype=np.uint8)


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((3, 8, 8), "first"),
        ((1, 28, 28), "first"), ((4, 6, 5), "first"), ((3, 3, 8), "first"), ((5, 32, 32), "first"),
        ((2, 64, 64), "first"), ((8, 8, 3), "last"), ((28, 28, 1), "last"), ((8, 3, 4), "last"),
        ((3, 3, 3), None), ((3, 8, 3), None), ((1, 28, 3), None), ((3, 5, 4), None), ((1, 1, 1), None),
        ((28, 28, 2), None), ((8, 8, 8), None), ((8, 8, 5), None), ((5, 5, 5), None),
    ],
)  # fmt: skip
def test_channels_are_located_by_the_shape_or_the_settings(
    shape: tuple[int, ...], axis: str | None, tmp_path: Path
) -> None:
    x = build_images(8, *shape)
    settings = {"source": "npz", "path": str(write_npz(tmp_path / "a.npz", train_x=x[:6], test_x=x[6:]))}
    if axis is None:
        with pytest.raises(DataError, match=r"a\.npz: train_x: \[6, .*\] may be .*; set data\.arrays\.channels to"):
            load_source(**settings)
    else:
        expected = x if axis == "first" else x.transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(load_source(**settings).train_x, expected[:6])
    for given, expected in (("first", x), ("last", x.transpose(0, 3, 1, 2))):
        found = load_source(**settings, arrays={"channels": given})
        np.testing.assert_array_equal(found.train_x, expected[:6])
        np.testing.assert_array_equal(found.test_x, expected[6:])
        assert found.transform is not None
        assert len(found.transform.mean) == expected.shape[1]


def test_test_images_have_the_channel_position_of_training_images(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", train_x=build_images(6, 8, 8, 3), test_x=build_images(2, 3, 8, 3))
    expected = r"test: inputs are \(3, 3, 8\) uint8, but those of the clients are \(3, 8, 8\)"
    with pytest.raises(DataError, match=expected):
        build_federation(source="npz", path=str(path), partition=TWO)


def test_other_arrays_of_such_shapes_are_not_treated_as_images(tmp_path: Path) -> None:
    x = RNG.normal(size=(8, 3, 3, 3)).astype(np.float32)
    path = write_npz(tmp_path / "a.npz", train_x=x[:6], test_x=x[6:])
    np.testing.assert_array_equal(load_source(source="npz", path=str(path)).train_x, x[:6])


# ——— groups ———


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([1, 2, 3], r"groups \(3,\): one group for each of 4 examples"),
        (["a", None, "b", "a"], "groups: 1 are missing, the first at index 1"),
        ([1.0, float("nan"), 2.0, 1.0], "groups: 1 are missing, the first at index 1"),
        ([None, 1, 2, float("nan")], "groups: 2 are missing, the first at index 0"),
        (np.ma.masked_less([1, 2, -9, 1], 0), r"groups: 1 are masked \(missing\)"),
        (np.array(["a", 1, "b", 2], dtype=object), "groups: hold texts and numbers"),
    ],
)
def test_groups_without_a_client_for_an_example_are_refused(
    groups: Any, message: str, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    x, y = np.zeros((4, 2)), np.arange(4) % 2
    mine = import_module(module)
    made = Source(name="mine", train_x=x, train_y=y, test_x=x, test_y=y, groups=groups)
    monkeypatch.setattr(mine, "made", lambda: made, raising=False)
    with pytest.raises(DataError, match=rf"data\.entry_point: {module}:made: {message}"):
        load_source(entry_point=f"{module}:made")


def test_groups_may_be_a_list(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    x, y = np.zeros((4, 2)), np.arange(4) % 2
    made = Source(name="mine", train_x=x, train_y=y, test_x=x, test_y=y, groups=["a", "b", "a", "a"])  # type: ignore[arg-type]
    monkeypatch.setattr(import_module(module), "made", lambda: made, raising=False)
    found = build_federation(entry_point=f"{module}:made", partition={"kind": "natural"})
    assert found.shards.sizes.tolist() == [3, 1]


BAD_NPZ = {
    "missing": (lambda path: path.unlink(), "a.npz: is missing"),
    "empty": (lambda path: path.write_bytes(b""), "a.npz: is damaged"),
    "cut short": (truncate, "a.npz: is damaged"),
    "damaged": (write_damaged_inside, "a.npz: train_x: is damaged"),
    "no .npz": (lambda path: path.write_text("x,y\n1,2\n"), "a.npz: is damaged, or is not an .npz"),
    "a single array": (write_only_one_array, "a.npz: is damaged, or is not an .npz"),
    "pickles": (
        lambda path: write_npz(path, train_x=np.array([{}], dtype=object)),
        "a.npz: train_x: holds Python objects",
    ),
    "fewer labels": (lambda path: write_npz(path, train_y=LABELS[:5]), r"a.npz: train_x, train_y: x \(6, 3, 5, 4\)"),
    "another shape in the test set": (
        lambda path: write_npz(path, test_x=COLOR_IMAGES[6:].repeat(2, 1)[:, :6]),
        r"test: inputs are \(3, 6, 4\)",
    ),
    "no examples": (
        lambda path: write_npz(path, test_x=COLOR_IMAGES[:0], test_y=LABELS[:0]),
        "test_x, test_y: has no ex",
    ),
    "text": (lambda path: write_npz(path, train_y=np.array(list("abcabc"))), "train_x, train_y: labels are"),
}


@pytest.mark.parametrize("bad", BAD_NPZ)
def test_a_bad_npz_file_is_named_with_the_problem(bad: str, tmp_path: Path) -> None:
    spoil, message = BAD_NPZ[bad]
    path = write_npz(tmp_path / "a.npz")
    spoil(path)
    with pytest.raises(DataError, match=message):
        build_federation(source="npz", path=str(path), partition=TWO)


def test_a_missing_array_of_an_npz_file_is_reported_with_the_existing_ones(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", train_x=COLOR_IMAGES, labels=LABELS)
    with pytest.raises(DataError, match=r"a\.npz: has no array train_y, test_x, test_y; it holds train_x, labels"):
        load_source(source="npz", path=str(tmp_path / "a.npz"))


# ——— Shakespeare ———

SPEECHES = {"P/A": ["To be,  or", "not"], "P/B": ["", "Ay! €3"], "P/C": []}


def decode(tokens: np.ndarray) -> str:
    return "".join(ALPHABET[token] for token in tokens)


def write_roles(path: Path, content: Any = SPEECHES) -> Path:
    data = json.dumps(content).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_leafs_alphabet_has_eighty_distinct_characters() -> None:
    assert len(set(ALPHABET)) == len(ALPHABET) == 80


@pytest.mark.parametrize("name", ["r.json", "r.json.gz"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_every_character_of_a_speech_is_predicted_from_the_eighty_before_it(
    name: str, wrapped: bool, tmp_path: Path
) -> None:
    path = write_roles(tmp_path / name, {"source": "me", "roles": SPEECHES} if wrapped else SPEECHES)
    found = load_source(source="shakespeare", path=str(path), min_characters=0, test_share=0.25)
    # two spaces become one; a newline follows each speech; € and other characters outside the alphabet become spaces
    lines = {0: ["To be, or\n", "not\n"], 1: ["Ay!  3\n"]}
    for role, own in lines.items():
        expected = [(line[:i].rjust(80), line[i]) for line in own for i in range(len(line))]
        train, test = found.groups == role, found.test_groups == role
        x = np.concatenate([found.train_x[train], found.test_x[test]])
        y = np.concatenate([found.train_y[train], found.test_y[test]])
        assert [(decode(a), ALPHABET[b]) for a, b in zip(x, y, strict=True)] == expected
        assert test.sum() == round(0.25 * len(expected))
    assert (found.train_x.dtype, found.train_x.shape[1], set(found.groups)) == (np.uint8, 80, {0, 1})


def test_roles_with_too_little_text_are_omitted(tmp_path: Path) -> None:
    path = str(write_roles(tmp_path / "r.json"))
    found = load_source(source="shakespeare", path=path, min_characters=8)
    assert len(found.train_y) + len(found.test_y) == len("To be, or\nnot\n")
    with pytest.raises(DataError, match=r"r\.json: none of 2 roles is long enough; the longest has 14 characters"):
        load_source(source="shakespeare", path=path)


def test_the_authors_cropping_takes_segments_of_long_roles(tmp_path: Path) -> None:
    numbered = "".join(f"{i:04d} " for i in range(600))  # 3,001 examples with the end of the speech
    path = write_roles(tmp_path / "r.json", {"long": [numbered], "short": [numbered[:2499]], "longer": [numbered * 2]})
    found = load_source(source="shakespeare", path=str(path), crop=True)
    assert np.bincount(found.groups).tolist() == [2000, 2000]  # 2,500 examples are not more than 2,000 and 400
    assert np.bincount(found.test_groups).tolist() == [400, 400]
    for x, y in ((found.train_x[:2000], found.train_y[:2000]), (found.test_x[:400], found.test_y[:400])):
        assert decode(y) in numbered + "\n"  # consecutive
        assert decode(x[-1]) + decode(y[-1:]) in numbered
    assert not np.array_equal(found.train_y[:2000], found.train_y[2000:])


def test_clients_can_be_a_subset_of_the_roles_with_their_own_test_examples(tmp_path: Path) -> None:
    roles = {f"role {i}": [chr(97 + i) * 40] for i in range(10)}  # each consists of one letter
    path = write_roles(tmp_path / "r.json", roles)
    settings = {"source": "shakespeare", "path": str(path), "min_characters": 0, "test_share": 0.5}
    found = build_federation(**settings, partition={"clients": 4})
    train, test = (set(decode(split.x[:, -1])) - {" "} for split in (found.shards.examples, found.test))
    assert found.num_clients == 4
    assert train == test
    assert len(train) == 4
    assert (found.left_out, len(found.test)) == (6 * 21, 4 * 20)
    with pytest.raises(DataError, match=r"data\.partition\.clients: 11 is more than the number of groups \(10\)"):
        build_federation(**settings, partition={"clients": 11})


HEADED = """THE TEMPEST

by William Shakespeare

First Citizen:
Before we proceed
any further.

ALL.
Speak: speak!

First Citizen:
Resolved?

HAMLET

by William Shakespeare

ALL.
Long live
"""
INDENTED = (
    "AS YOU LIKE IT\nby William Shakespeare\n\nSCENE I\n  ORLANDO. As I remember, Adam,\n    it was\n  Ad. Yonder.\n\n"
)


def test_roles_are_parsed_from_the_text_of_plays() -> None:
    assert parse_plays(HEADED, Path("p.txt")) == {
        "THE TEMPEST/FIRST CITIZEN": ["Before we proceed any further.", "Resolved?"],
        "THE TEMPEST/ALL": ["Speak: speak!"],
        "HAMLET/ALL": ["Long live"],
    }
    assert parse_plays(INDENTED, Path("p.txt")) == {
        "AS YOU LIKE IT/ORLANDO": ["As I remember, Adam, it was"],
        "AS YOU LIKE IT/AD": ["Yonder."],
    }
    assert parse_plays("A:\nhere\n", Path("p.txt")) == {"A": ["here"]}


def build_leaf_user(text: str) -> dict[str, list[str]]:
    return {"x": [text[:i].rjust(80) for i in range(len(text))], "y": list(text)}


def write_leaf(directory: Path, train: Any, test: Any) -> None:
    for part, users in (("train", train), ("test", test)):
        (directory / part).mkdir(parents=True)
        for i, (name, content) in enumerate(users.items()):
            data = {"users": [name], "num_samples": [1], "user_data": {name: content}}
            (directory / part / f"all_data_{i}.json").write_text(json.dumps(data))


def test_leaf_files_keep_their_split(tmp_path: Path) -> None:
    write_leaf(tmp_path, {"B": build_leaf_user("good"), "A": build_leaf_user("night")}, {"B": build_leaf_user("my")})
    found = load_source(source="shakespeare", path=str(tmp_path), min_characters=0)
    assert decode(found.train_y) == "nightgood"
    assert found.groups.tolist() == [0] * 5 + [1] * 4
    assert decode(found.train_x[3]) == "nig".rjust(80)
    assert (decode(found.test_y), found.test_groups.tolist()) == ("my", [1, 1])


LONG = build_leaf_user("x" * 30)
BAD_LEAF = {
    "no test": ({"A": LONG}, {}, "test: holds no .json file"),
    "no user_data": ({"A": None}, {"A": LONG}, "all_data_0.json: A: x and y"),
    "more x than y": (
        {"A": {**LONG, "y": ["x"]}},
        {"A": LONG},
        "all_data_0.json: A: x and y are not lists",
    ),
    "79 characters": ({"A": {"x": ["a" * 79], "y": ["b"]}}, {"A": LONG}, "A: an example needs 80 characters"),
    "two to predict": ({"A": {"x": ["a" * 80], "y": ["bc"]}}, {"A": LONG}, "A: an example needs 80 characters"),
}


@pytest.mark.parametrize("bad", BAD_LEAF)
def test_invalid_leaf_files_are_named(bad: str, tmp_path: Path) -> None:
    train, test, message = BAD_LEAF[bad]
    write_leaf(tmp_path, train, test)
    with pytest.raises(DataError, match=message):
        load_source(source="shakespeare", path=str(tmp_path), min_characters=0)


BAD_PLAYS = {
    "missing": ("r.json", lambda path: path.unlink(), "r.json: is missing"),
    "cut short": ("r.json", truncate, "r.json: is damaged, or is not JSON"),
    "cut short, packed": ("r.json.gz", truncate, "r.json.gz: cannot be read"),
    "not packed": ("r.json.gz", lambda path: path.write_text("{}"), "r.json.gz: cannot be read"),
    "empty": ("r.json", lambda path: path.write_text(""), "r.json: is damaged, or is not JSON"),
    "no roles": ("r.json", lambda path: path.write_text("{}"), "r.json: is not an object"),
    "numbers": ("r.json", lambda path: path.write_text('{"A": [1]}'), "r.json: A: a list of speeches is needed"),
    "no text": ("r.txt", lambda path: path.write_bytes(b"\xff\xfe\xfa"), "r.txt: is not UTF-8 text"),
    "no speeches": ("r.txt", lambda path: path.write_text("once upon a time\n"), "r.txt: holds no speech"),
}


@pytest.mark.parametrize("bad", BAD_PLAYS)
def test_a_bad_file_of_plays_is_named_with_the_problem(bad: str, tmp_path: Path) -> None:
    name, spoil, message = BAD_PLAYS[bad]
    path = write_roles(tmp_path / name)
    spoil(path)
    with pytest.raises(DataError, match=message):
        load_source(source="shakespeare", path=str(path), min_characters=0)


# ——— one file per client ———

WARDS = {
    "a.csv": {"age": [30.0, 50.0, 40.0, 20.0, 60.0], "dose": [1.0, 2.0, 3.0, 4.0, 5.0], "ill": [0, 1, 0, 1, 1]},
    "b.parquet": {"age": [70.0, 90.0], "dose": [5.0, 7.0], "ill": [1, 0]},
    "c.npz": {"age": [10.0, 20.0, 30.0], "dose": [0.0, 1.0, 5.0], "ill": [0, 0, 1]},
}


def write_ward(path: Path, columns: dict[str, Any]) -> None:
    if path.suffix == ".npz":
        np.savez(path, **{name: np.array(values, dtype=np.float64) for name, values in columns.items()})
    else:
        table = pa.table(columns)
        csv.write_csv(table, path) if path.suffix == ".csv" else parquet.write_table(table, path)


def write_wards(directory: Path, **changed: dict[str, Any]) -> dict[str, Any]:
    for name, columns in WARDS.items():
        write_ward(directory / name, {**columns, **changed.get(name[0], {})})
    return {"source": "folder", "directory": str(directory), "features": ["dose", "age"], "label": "ill"}


def test_each_file_is_one_client_in_every_format(tmp_path: Path) -> None:
    settings = write_wards(tmp_path)
    found = build_federation(**settings, standardize=False, task="binary", test_share=0.4)
    assert found.shards.sizes.tolist() == [3, 1, 2]
    assert (len(found.test), found.task, found.name) == (4, "binary", tmp_path.name)
    rows = {
        (x[0], x[1], y) for split in (found.shards.examples, found.test) for x, y in zip(split.x, split.y, strict=True)
    }
    assert rows == {row for w in WARDS.values() for row in zip(w["dose"], w["age"], w["ill"], strict=True)}
    first = found.shards.only(0).examples.x
    assert {tuple(row) for row in first} <= set(zip(WARDS["a.csv"]["dose"], WARDS["a.csv"]["age"], strict=True))


def test_inputs_are_standardized_by_all_clients_training_examples(tmp_path: Path) -> None:
    settings = write_wards(tmp_path)
    raw, scaled = (build_federation(**settings, standardize=on, test_share=0.4) for on in (False, True))
    x = raw.shards.examples.x.astype(np.float64)
    np.testing.assert_allclose(scaled.shards.examples.x, (x - x.mean(axis=0)) / x.std(axis=0), atol=1e-6)
    np.testing.assert_allclose(scaled.test.x, (raw.test.x - x.mean(axis=0)) / x.std(axis=0), atol=1e-6)


def test_merged_moments_of_parts_equal_those_of_the_whole_without_missing_values() -> None:
    x = RNG.normal(1e4, 1, size=(30, 3))
    x[RNG.random(x.shape) < 0.3] = np.nan
    x[:, 2] = np.nan
    together = Moments.of(x[:11]) + Moments.of(x[11:12]) + Moments.of(x[12:])
    np.testing.assert_allclose(together.mean[:2], np.nanmean(x[:, :2], axis=0))
    np.testing.assert_allclose(together.deviation[:2], np.nanstd(x[:, :2], axis=0))
    assert (together.count.tolist(), together.deviation[2]) == ([*(~np.isnan(x[:, :2])).sum(axis=0), 0], 1)


GAPS = {"a": {"dose": [1.0, None, 3.0, 4.0, None]}}


def test_missing_values_are_refused_or_dropped_or_replaced_by_the_mean(tmp_path: Path) -> None:
    settings = write_wards(tmp_path, **GAPS) | {"standardize": False, "test_share": 0.2}
    with pytest.raises(DataError, match=r"a\.csv: 2 values are missing, of dose; set data\.missing"):
        build_federation(**settings)
    dropped = build_federation(**settings, missing="drop")
    assert dropped.shards.sizes.sum() + len(dropped.test) == 3 + 2 + 3
    filled, scaled = (build_federation(**settings | {"missing": "mean", "standardize": on}) for on in (False, True))
    block = filled.shards.examples
    there = {(d, a) for w in WARDS.values() for d, a in zip(w["dose"], w["age"], strict=True)} - {(2, 50), (5, 60)}
    seen = [row for row in block.x.tolist() if tuple(row) in there]
    assert len(seen) < len(block)
    for row, standard in zip(block.x, scaled.shards.examples.x, strict=True):
        if tuple(row.tolist()) not in there:
            assert row[0] == pytest.approx(np.mean(seen, axis=0)[0])
            assert standard[0] == pytest.approx(0, abs=1e-6)


def test_a_question_mark_in_a_csv_file_counts_as_a_missing_value(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,y\n1,0\n?,1\n3,0\nNA,1\n5,1\n")
    found = build_federation(source="folder", directory=str(tmp_path), missing="drop", standardize=False)
    assert sorted([*found.shards.examples.x.flatten(), *found.test.x.flatten()]) == [1, 3, 5]


def test_columns_default_to_all_but_the_label_and_to_x_for_npz_files(tmp_path: Path) -> None:
    for name in ("a.csv", "b.parquet"):
        write_ward(tmp_path / name, {"y": [0, 1], "age": [1.0, 2.0], "dose": [3.0, 4.0]})
    found = build_federation(source="folder", directory=str(tmp_path), standardize=False, test_share=0.5)
    assert {tuple(row) for row in found.shards.examples.x} <= {(1, 3), (2, 4)}
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    np.savez(arrays / "a.npz", x=np.ones((4, 2, 3)), y=np.arange(4) / 2)
    whole = build_federation(source="folder", directory=str(arrays), task="regression", test_share=0.25)
    assert whole.shards.examples.x.shape == (3, 2, 3)
    assert whole.shards.examples.y.dtype == np.float32


BAD_FOLDERS = {
    "a csv file that is empty": (lambda d: (d / "a.csv").write_text(""), r"a\.csv: cannot be read"),
    "a csv file without rows": (lambda d: (d / "a.csv").write_text("age,dose,ill\n"), r"a\.csv: has no rows"),
    "rows of unequal length": (lambda d: (d / "a.csv").write_text("age,dose,ill\n1,2,0\n1\n"), r"a\.csv: cannot be"),
    "a parquet file cut short": (lambda d: truncate(d / "b.parquet"), r"b\.parquet: cannot be read"),
    "an npz file cut short": (lambda d: truncate(d / "c.npz"), r"c\.npz: is damaged"),
    "a missing column": (
        lambda d: write_ward(d / "b.parquet", {"age": [1.0], "ill": [0]}),
        r"b\.parquet: has no column dose; it has age, ill",
    ),
    "text among the inputs": (
        lambda d: write_ward(d / "b.parquet", {"age": ["old"], "dose": [1.0], "ill": [0]}),
        r"column age: a number in .*a\.csv \(line 2: '30'\), but text in .*b\.parquet \(row 1: 'old'\)",
    ),
    "labels that are text": (
        lambda d: write_ward(d / "a.csv", {"age": [1.0], "dose": [1.0], "ill": ["yes"]}),
        r"column ill: a number in .*b\.parquet \(row 1: '1'\), but text in .*a\.csv \(line 2: 'yes'\)",
    ),
    "labels that lack": (
        lambda d: write_ward(d / "a.csv", {"age": [1.0, 2], "dose": [1.0, 2], "ill": [1, None]}),
        r"a\.csv: 1 row has no ill",
    ),
    "arrays of unequal length": (
        lambda d: np.savez(d / "c.npz", age=np.ones(3), dose=np.ones(2), ill=np.ones(3)),
        r"c\.npz: age does not have as many rows as dose",
    ),
    "labels of another length": (
        lambda d: np.savez(d / "c.npz", age=np.ones(3), dose=np.ones(3), ill=np.ones(2)),
        r"c\.npz: inputs \(3, 2\) and ill \(2,\) do not have one label per row",
    ),
    "inputs of another shape": (
        lambda d: np.savez(d / "c.npz", age=np.ones((3, 2)), dose=np.ones(3), ill=np.ones(3)),
        r"c\.npz: inputs are \[3\], but those of a\.csv are \[2\]",
    ),
    "infinity": (
        lambda d: write_ward(d / "a.csv", {"age": [np.inf, 1.0], "dose": [1.0, 2.0], "ill": [0, 1]}),
        r"a\.csv, line 2, column age: 'inf' is infinite",
    ),
    "two files of one client": (
        lambda d: write_ward(d / "a.npz", WARDS["a.csv"]),
        r"a\.npz: a\.csv belongs to the same client",
    ),
    "a label beyond 1": (
        lambda d: write_ward(d / "a.csv", {"age": [1.0], "dose": [1.0], "ill": [2]}),
        r"a\.csv, line 2, column ill: '2' is not a label; the labels of task binary are 0 and 1",
    ),
}


@pytest.mark.parametrize("bad", BAD_FOLDERS)
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_a_bad_file_of_a_client_is_named_with_the_problem(bad: str, tmp_path: Path) -> None:
    settings = write_wards(tmp_path)
    spoil, message = BAD_FOLDERS[bad]
    spoil(tmp_path)
    with pytest.raises(DataError, match=message):
        build_federation(**settings, task="binary", standardize=False)


def test_a_folder_without_files_is_refused(tmp_path: Path) -> None:
    settings = {"source": "folder", "directory": str(tmp_path / "none")}
    with pytest.raises(DataError, match="is not a directory"):
        build_federation(**settings)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"holds no \.csv, \.tsv, \.parquet or \.npz file, but notes\.txt"):
        build_federation(**settings)


# ——— other sources ———

MODULE = """
import numpy as np
from fednar_ray.data.sources import Source

def good(examples=4):
    x, y = np.zeros((examples, 2), np.float32), np.arange(examples) % 2
    return Source(name="mine", train_x=x, train_y=y, test_x=x[:2], test_y=y[:2], groups=y)

def nothing(): pass
def fails(): raise OSError("disk on fire")
def uneven(): return Source(name="u", train_x=np.zeros((3, 2)), train_y=[0], test_x=[[0.0, 0.0]], test_y=[0])
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_data_of_tests.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_data_of_tests", raising=False)
    return "my_data_of_tests"


def test_an_entry_point_provides_its_source(module: str) -> None:
    settings = {"entry_point": f"{module}:good", "arguments": {"examples": 6}, "partition": {"kind": "natural"}}
    found = build_federation(**settings)
    assert (found.name, found.shards.sizes.tolist(), len(found.test)) == ("mine", [3, 3], 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "cannot be imported: module 'my_data_of_tests' has no attribute 'missing'"),
        ("nothing", "returns NoneType; a fednar_ray.data.sources.Source is needed"),
        ("fails", r"fails when called with \(\): OSError: disk on fire"),
        ("uneven", r"training set: x \(3, 2\) and y \(1,\)"),
    ],
)
def test_a_bad_entry_point_is_named_with_the_problem(name: str, message: str, module: str) -> None:
    with pytest.raises(DataError, match=rf"data\.entry_point: {module}:{name}: {message}"):
        load_source(entry_point=f"{module}:{name}")


def test_a_missing_module_is_reported() -> None:
    with pytest.raises(DataError, match="no_such_module_anywhere:f: cannot be imported: No module named"):
        load_source(entry_point="no_such_module_anywhere:f")


def test_the_hub_source_without_its_package_names_the_package_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'fednar-ray\[hub\]'"):
        load_source(source="huggingface", dataset="ylecun/mnist", features=["image"])


@pytest.mark.parametrize("shape", [(5, 4, 3), (3, 3, 3), (8, 8, 2), (5, 4)])
def test_images_from_the_hub_have_channels_last(shape: tuple[int, ...]) -> None:
    images, labels = build_images(4, *shape), [0, 1, 1, 0]
    wanted = {"source": "huggingface", "dataset": "mine", "features": ["image"]}
    part = {"image": list(images), "label": labels}  # as ``datasets`` gives a column: a list with one value per row
    found = _build_examples(part, read_data(wanted), "train")
    expected = images.transpose(0, 3, 1, 2) if len(shape) == 3 else images[:, None]
    np.testing.assert_array_equal(found.x, expected)


def test_a_data_set_in_the_hubs_format_is_read_by_its_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    pytest.importorskip("datasets", reason="the optional extra hub")
    columns = {"a": [1.0, 2, 3, 4, 5], "b": [5.0, 4, 3, 2, 1], "label": [0, 1, 0, 1, 1], "who": list("xyxyz")}
    (tmp_path / "data").mkdir()
    parquet.write_table(pa.table(columns), tmp_path / "data" / "train.parquet")
    settings = {"source": "huggingface", "dataset": str(tmp_path / "data"), "features": ["a", "b"], "groups": "who"}
    found = load_source(**settings, test_share=0.4)
    rows = [*zip(found.train_x, found.groups, strict=True), *zip(found.test_x, found.test_groups, strict=True)]
    assert sorted((x[0], x[1], who) for x, who in rows) == list(zip(columns["a"], columns["b"], "xyxyz", strict=True))
    assert len(found.test_y) == 2
    with pytest.raises(DataError, match="train: has no column c; it has a, b, label, who"):
        load_source(**settings | {"features": ["c"]})


# ——— runs ———


def write_silos(directory: Path) -> dict[str, Any]:
    """Writes three wards of different sizes, whose label can be predicted from the inputs."""
    rng = np.random.default_rng(5)
    for name, size in (("a.csv", 40), ("b.parquet", 23), ("c.npz", 31)):
        x = rng.normal(3, 2, size=(size, 2))
        ill = (x @ [1.0, -1.0] + rng.normal(size=size) > 0).astype(int)
        write_ward(directory / name, {"age": x[:, 0].tolist(), "dose": x[:, 1].tolist(), "ill": ill.tolist()})
    return {"source": "folder", "directory": str(directory), "features": ["age", "dose"], "label": "ill"}


def build_silo_experiment(data: dict[str, Any], **execution: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "data": {"task": "binary", "validation": 0.2, **data},
            "model": {"name": "logistic"},
            "federation": {"rounds": 3, "local_steps": 4, "batch_size": 8},
            "evaluation": {"federated": True},
            "execution": {"cpus_per_actor": 0.5, "gpus_per_actor": 0, **execution},
        }
    )


def test_dedicated_actors_read_their_own_files_and_give_the_same_bytes(tmp_path: Path, session: fr.RaySession) -> None:
    data = write_silos(tmp_path)
    *_, serial = fr.iter_rounds(build_silo_experiment(data, placement="serial", vectorize=1))
    own = build_silo_experiment(data, placement="dedicated")
    *_, dedicated = fr.iter_rounds(own, session=session)
    assert dedicated.parameters.tobytes() == serial.parameters.tobytes()
    assert dedicated.metrics.keys() == serial.metrics.keys()
    for name in ("test_auc", "test_loss", "validation_accuracy", "client_accuracy_mean", "train_loss"):
        assert dedicated.metrics[name] == pytest.approx(serial.metrics[name], rel=1e-6), name
    assert serial.metrics["test_accuracy"] > 0.6


def test_the_driver_holds_no_inputs_of_a_federation_of_files(tmp_path: Path) -> None:
    data = write_silos(tmp_path)
    kept = prepare(build_silo_experiment(data, placement="dedicated")).federation
    whole = load_federation(read_data({"task": "binary", "validation": 0.2, **data}), seed=0)
    assert not kept.shards.examples.x.any()
    assert not any(kept.shards.examples.x.strides[:1])  # a single zero stands for all inputs
    np.testing.assert_array_equal(kept.shards.offsets, whole.shards.offsets)
    np.testing.assert_array_equal(kept.label_counts(), whole.label_counts())
    np.testing.assert_array_equal(kept.test.y, whole.test.y)
    assert (kept.classes, kept.task, kept.name) == (whole.classes, whole.task, whole.name)
    for client_id in range(3):
        shard, splits = kept.get_client_data(client_id).load()
        expected = whole.shards.only(client_id)
        np.testing.assert_array_equal(shard.examples.x, expected.examples.x)
        np.testing.assert_array_equal(shard.examples.y, expected.examples.y)
        assert len(splits["test"]) == round(0.2 * (40, 23, 31)[client_id])
    digest = kept.digest()
    assert digest == load_file_federation(build_silo_experiment(data).data, 0).digest()
    columns = {"age": [1.0, 2.0, 3.0], "dose": [1.0, 2.0, 3.0], "ill": [0, 1, 0]}
    write_ward(tmp_path / "b.parquet", columns)
    assert digest != load_file_federation(build_silo_experiment(data).data, 0).digest()


def test_a_file_that_is_deleted_before_its_actor_reads_it_is_named(tmp_path: Path, session: fr.RaySession) -> None:
    prepared = prepare(build_silo_experiment(write_silos(tmp_path), placement="dedicated"))
    truncate(tmp_path / "b.parquet")
    with (
        pytest.raises(DataError, match=r"b\.parquet: cannot be read"),
        open_pool(prepared, plan_execution(prepared, session), session) as pool,
    ):
        pool.list_actors()


@pytest.mark.parametrize("kind", ["per_batch", "per_example"])
def test_training_on_augmented_images_gives_the_same_bytes_in_every_placement(
    kind: str, tmp_path: Path, session: fr.RaySession
) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(256, size=(60, 8, 8), dtype=np.uint8), rng.integers(3, size=60)
    path = write_npz(tmp_path / "a.npz", train_x=images, train_y=labels, test_x=images[:9], test_y=labels[:9])
    augmentation = {"kind": kind, "padding": 2}
    data = {"source": "npz", "path": str(path), "augmentation": augmentation, "partition": {"clients": 4}}
    ends = []
    for width, execution in ((2, {"placement": "serial"}), (2, {"placement": "pooled", "actors": 2})):
        experiment = fr.Experiment.model_validate(
            {
                "data": data,
                "model": {"name": "mlp", "hidden": 8},
                "federation": {"rounds": 2, "local_steps": 4, "batch_size": 5},
                "execution": {"gpus_per_actor": 0, "cpus_per_actor": 0.5, "vectorize": width, **execution},
            }
        )
        *_, last = fr.iter_rounds(experiment, session=session)
        ends.append(last.parameters.tobytes())
    assert ends[0] == ends[1]
    plain = experiment.model_copy(update={"data": read_data({**data, "augmentation": None})})
    *_, last = fr.iter_rounds(plain, session=session)
    assert last.parameters.tobytes() != ends[0]
