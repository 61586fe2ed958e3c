"""Malformed input of every kind is accepted if it is valid, or refused with its place. Nothing else happens.

The random cases are the same in every run of the tests: 500 in this process, and 20 as commands.
"""

import io
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

import fednar_ray as fr
from fednar_ray.config import load_document
from fednar_ray.core.errors import format_text
from fednar_ray.experiments.prepare import prepare
from fednar_ray.experiments.prepared import Prepared
from tests.support.drawn import draw
from tests.support.processes import finish, start_fednar

CLIENTS, ROUNDS = 4, 3
VALID: dict[str, Any] = {
    "experiment": {
        "name": "small",
        "seed": 0,
        "data": {
            "source": "digits",
            "validation": 0.1,
            "partition": {"kind": "dirichlet", "clients": CLIENTS, "alpha": 0.3, "min_examples": 1},
        },
        "model": {"name": "mlp", "hidden": 4, "dropout": 0.0},
        "federation": {"rounds": ROUNDS, "clients_per_round": 2, "local_steps": 1, "batch_size": 16},
        "algorithm": {"name": "fedadam", "local_lr": 0.1, "server_lr": 0.1, "beta1": 0.9, "epsilon": 0.01},
        "regularizer": {"name": "fednar", "weight_decay": 0.01, "clip_bound": 10.0, "clip_bound_anneal": 0.99},
        "availability": {
            "dropout": 0.1,
            "trace": "trace.csv",
            "on_off": {"on_rounds": 5.0, "off_rounds": 2.0},
            "speed": {"steps_per_second": 2.0, "spread": 0.5, "jitter": 0.1},
            "deadline_seconds": 60.0,
            "over_sampling": 1.2,
        },
        "attacks": {"nan": 0.1, "scaled": 0.1, "factor": 100.0},
        "screening": {"max_deviation": 5.0},
        "aggregation": {"name": "trimmed_mean", "trim": 0.1, "byzantine": 0.2, "bound": 1.0},
        "execution": {"placement": "serial", "actors": "auto", "vectorize": 1, "client_timeout_seconds": 9.0},
        "evaluation": {"every": 1, "federated": True},
        "checkpoint": {"every": 2, "keep": 2},
        "tracking": {"uri": "sqlite:///m.db"},
    },
    "compare": {"regularizers": ["none", "fednar"], "seeds": 2, "target_accuracy": 0.5},
    "search": {
        "trials": 2,
        "space": {"regularizer.clip_bound": {"loguniform": [0.1, 30.0]}},
        "scheduler": {"name": "asha", "grace_rounds": 1},
        "stop": {"wall_seconds": 60.0},
    },
}
TEXT = yaml.safe_dump(VALID, sort_keys=False)
TRACE = np.array([[1, 0, 1], [0, 1, 1], [1, 1, 1], [1, 1, 0]])
TRACE_CSV = "".join(",".join(map(str, row)) + "\n" for row in TRACE).encode()


def iter_places(value: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the path of every section and key of a file. A searched key, which contains dots, is one element."""
    if place:
        yield place
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from iter_places(inner, (*place, key))


PLACES = sorted(place for place in iter_places(VALID) if place != ("experiment",))
KEYS = sorted({place[-1] for place in PLACES})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sets up a working directory with the trace file that the valid experiment names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trace.csv").write_bytes(TRACE_CSV)
    return tmp_path


def draw_cases(count: int) -> Callable[[Any], Any]:
    """Returns settings for ``count`` reproducible cases, each of which rewrites the folder."""
    tolerated = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return draw(count, derandomize=True, database=None, suppress_health_check=tolerated)


def load_everything(content: bytes, overrides: Sequence[str] = ()) -> Prepared | tuple[str, ...]:
    """Returns the prepared run of a file, or the lines of its error. Any other exception fails the test."""
    Path("f.yaml").write_bytes(content)
    try:
        return prepare(load_document("f.yaml", overrides).experiment)
    except fr.ConfigError as error:
        outcome = error.problems
    except fr.BadInput as error:
        outcome = (str(error),)
    assert outcome
    for line in outcome:
        assert re.match(r"\S.*: *\S", line, re.DOTALL), line  # the place, then the problem
    return outcome


def test_the_file_that_is_mutated_is_valid(folder: Path) -> None:
    prepared = load_everything(TEXT.encode())
    assert isinstance(prepared, Prepared)
    assert prepared.federation.num_clients == CLIENTS


# --- Values

numbers = st.sampled_from(
    [-1, 0, 1, 2, 3, 7, 10**5, 2**63, 2**64, 10**30, -(10**30), -0.5, 0.0, 1e-320, 0.3, 0.999, 1.0, 1.5, 1e308]
) | st.sampled_from([float("nan"), float("inf"), float("-inf")])
words = st.sampled_from(
    ["", " ", "auto", "natural", "cnn", "feddyn", "median", "yes", "1", "1e3", "x" * 300, "é\u2028\0"]
)
leaves = st.none() | st.booleans() | numbers | words | st.text(max_size=5) | st.dates()
values = (
    leaves
    | st.lists(leaves, max_size=3)
    | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=3), leaves, max_size=2)
)


def change_value(place: Sequence[str], value: Any, document: dict[str, Any] = VALID) -> dict[str, Any]:
    """Returns the document with one changed value or one additional key."""
    key, *rest = place
    inner = document.get(key)
    return {**document, key: change_value(rest, value, inner if isinstance(inner, dict) else {}) if rest else value}


@draw_cases(200)
@given(place=st.sampled_from(PLACES), value=values)
@example(place=("experiment", "data", "partition", "min_examples"), value=2**63)  # exceeds int64
def test_a_wrong_value_is_refused_with_its_section(folder: Path, place: tuple[str, ...], value: Any) -> None:
    outcome = load_everything(yaml.safe_dump(change_value(place, value), allow_unicode=True).encode())
    if isinstance(outcome, tuple):
        section = place[1] if place[0] == "experiment" else place[0]
        too_small = "availability.trace: "  # follows from more clients or rounds
        assert any(section in line or line.startswith(too_small) for line in outcome), outcome


@draw_cases(40)
@given(
    section=st.sampled_from([p[:-1] for p in PLACES if p[:2] != ("search", "space")]),
    key=st.text(min_size=1, max_size=9),
)
def test_an_unknown_key_is_refused_by_name(folder: Path, section: tuple[str, ...], key: str) -> None:
    key = f"{key}_"  # no known key ends with an underscore
    outcome = load_everything(yaml.safe_dump(change_value((*section, key), 1)).encode())
    assert isinstance(outcome, tuple)
    assert any(f"{format_text(key)}: " in line and "unknown" in line for line in outcome), outcome


# --- Text

LINES = TEXT.splitlines()
SIGNS = [
    "\t",
    ":",
    ": ",
    "- ",
    "[",
    "{",
    "}",
    ",",
    "*a",
    "&a ",
    "!!set ",
    "!!python/object:os.system ",
    "'",
    '"',
    "%",
    "\0",
]


@draw_cases(80)
@given(data=st.data())
def test_a_damaged_text_is_refused_with_its_place(folder: Path, data: st.DataObject) -> None:
    """Lines are lost, doubled, cut off or indented differently, or YAML's special characters are inserted."""
    lines = list(LINES)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.sampled_from(["lost", "doubled", "cut", "deeper", "sign"])):
            case "lost":
                lines[at : at + 1] = [""]
            case "doubled":
                lines.insert(at, lines[at])
            case "cut":
                lines[at + 1 :] = []
            case "deeper":
                lines[at] = " " * data.draw(st.integers(1, 5)) + lines[at]
            case "sign":
                where = data.draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:where] + data.draw(st.sampled_from(SIGNS)) + lines[at][where:]
    load_everything("\n".join(lines).encode())


@draw_cases(30)
@given(at=st.sampled_from([at for at, line in enumerate(LINES) if ":" in line]))
def test_a_key_given_twice_is_refused_with_its_line(folder: Path, at: int) -> None:
    key = LINES[at].strip().partition(":")[0]
    outcome = load_everything("\n".join([*LINES[: at + 1], *LINES[at:]]).encode())
    column = len(LINES[at]) - len(LINES[at].lstrip()) + 1
    assert outcome == (f"f.yaml, line {at + 2}, column {column}: invalid YAML: {key} is given twice",)


@draw_cases(50)
@given(
    junk=st.binary(min_size=1, max_size=4),
    at=st.integers(0, len(TEXT)),
    codec=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp037"]),
)
def test_bytes_that_are_not_text_are_refused_with_the_file(folder: Path, junk: bytes, at: int, codec: str) -> None:
    content = TEXT.encode(codec)
    content = content[:at] + junk + content[at:]
    outcome = load_everything(content)
    try:
        content.decode()
    except UnicodeDecodeError:
        assert outcome == ("f.yaml: cannot be read: it is not UTF-8 text",)


# --- Overrides

KNOWN = [".".join(place).removeprefix("experiment.") for place in PLACES]
texts = (
    values.map(lambda value: yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip())
    | st.sampled_from(["[", "{", "'", "*a", "1e999", "0x", "=", "2001-13-40", "!!python/name:os.system", "- - -", "\0"])
    | st.text(max_size=8)
)


@draw_cases(60)
@given(
    keys=st.lists(st.sampled_from(KNOWN) | st.from_regex(r"\A[a-z. ]{0,9}\Z"), min_size=1, max_size=3), data=st.data()
)
def test_random_overrides_are_applied_or_refused_with_their_key(
    folder: Path, keys: list[str], data: st.DataObject
) -> None:
    outcome = load_everything(TEXT.encode(), [f"{key}={data.draw(texts)}" for key in keys])
    if isinstance(outcome, tuple):
        assert any(key.strip().split(".")[0] in line for key in keys for line in outcome), outcome


# --- Files of data


@draw_cases(40)
@given(data=st.data())
def test_a_damaged_trace_is_refused_with_the_file(folder: Path, data: st.DataObject) -> None:
    """Bytes are changed, inserted or cut off, or the array has another shape, type or values."""
    suffix = data.draw(st.sampled_from(["csv", "npy"]))
    rows, columns = data.draw(
        st.sampled_from([(CLIENTS, ROUNDS), (CLIENTS, ROUNDS - 1), (CLIENTS + 1, 9), (0, 0), (9, 0)])
    )
    entries = data.draw(st.sampled_from([[0, 1], [0, 1, 2], [1, -1], [0.5], [float("nan")], ["1"], [True], [None]]))
    array = np.array([[data.draw(st.sampled_from(entries)) for _ in range(columns)] for _ in range(rows)])
    content = bytearray(dump_csv(array) if suffix == "csv" else dump_npy(array))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    del content[data.draw(st.none() | st.integers(0, len(content))) or len(content) :]
    Path(f"broken.{suffix}").write_bytes(content)
    outcome = load_everything(TEXT.encode(), [f"availability.trace=broken.{suffix}"])
    if isinstance(outcome, tuple):
        assert outcome[0].startswith(f"availability.trace: {folder / 'broken'}.{suffix}")


def dump_csv(array: np.ndarray) -> bytes:
    return "".join(",".join(map(str, row)) + "\n" for row in array.tolist()).encode()


def dump_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# --- As commands

MARK = "FEDNAR_TEST"
PATIENCE_SECONDS = 600  # limit for a command that must end, generous because the machine may be busy


def edit_file(old: str, new: str) -> bytes:
    """Returns the valid file with one text replaced by another."""
    assert TEXT.count(old) == 1
    return TEXT.replace(old, new).encode()


TYPED: dict[str, tuple[bytes, list[str], str]] = {
    "a tab": (
        edit_file("  seed: 0", "\tseed: 0"),
        [],
        "error: f.yaml, line 3, column 1: invalid YAML: found character '\\t'",
    ),
    "a bracket too few": (edit_file("max_deviation: 5.0", "max_deviation: [5.0"), [], "error: f.yaml, line"),
    "a key twice": (edit_file("  seed: 0", "  seed: 0\n  seed: 1"), [], "invalid YAML: seed is given twice"),
    "an object of Python": (
        edit_file("seed: 0", "seed: !!python/object:os.system {}"),
        [],
        "could not determine a constructor",
    ),
    "Latin-1": (TEXT.replace("small", "klein-é").encode("latin-1"), [], "f.yaml: cannot be read: it is not UTF-8 text"),
    "UTF-16": (TEXT.encode("utf-16"), [], "error: f.yaml: cannot be read: it is not UTF-8 text"),
    "an empty file": (b"", [], "error: f.yaml: should be a mapping with an experiment section"),
    "a list": (b"- experiment", [], "error: f.yaml: should be a mapping with an experiment section"),
    "a page of the web": (
        b"<!DOCTYPE html>\n<html></html>\n",
        [],
        "error: f.yaml: should be a mapping with an experiment section",
    ),
    "a section that is a word": (
        edit_file("model:\n    name: mlp\n    hidden: 4\n    dropout: 0.0", "model: mlp"),
        [],
        "model: 'mlp'",
    ),
    "an unknown section": (
        TEXT.encode() + b"comparison: {}\n",
        [],
        "comparison: unknown section; did you mean compare?",
    ),
    "words for numbers": (
        edit_file("rounds: 3", "rounds: three"),
        [],
        "federation.rounds: 'three' should be a valid integer",
    ),
    "a client too many": (
        TEXT.encode(),
        ["federation.clients_per_round=5"],
        "federation.clients_per_round: 5 is more than",
    ),
    "a number out of range": (
        TEXT.encode(),
        ["availability.dropout=1.5"],
        "availability.dropout: 1.5 should be less than 1",
    ),
    "not a number": (TEXT.encode(), ["algorithm.local_lr=.nan"], "algorithm.local_lr: nan should be"),
    "an override of a value's inside": (TEXT.encode(), ["seed.low=1"], "seed.low: seed holds a value, not a section"),
    "too many examples a client": (TEXT.encode(), ["data.partition.min_examples=5000"], "data.partition.min_examples"),
    "a trace that is not there": (TEXT.encode(), ["availability.trace=none.csv"], "none.csv: cannot be read"),
    "a trace of other values": (
        TEXT.encode(),
        ["availability.trace=f.csv"],
        "f.csv, line 2, value 3: '2'; 0 or 1 is needed",
    ),
    "a trace cut off": (TEXT.encode(), ["availability.trace=f.npy"], "f.npy: cannot be read"),
}


@pytest.fixture(scope="module")
def typed(
    processes: None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[subprocess.CompletedProcess[str], set[str]]]:
    """Runs the commands, a few at a time, and returns their results and the files that exist afterwards."""

    def ran(case: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
        content, overrides, _ = TYPED[case]
        folder = tmp_path_factory.mktemp("typed")
        (folder / "f.yaml").write_bytes(content)
        (folder / "trace.csv").write_bytes(TRACE_CSV)
        (folder / "f.csv").write_bytes(TRACE_CSV.replace(b"0,1,1", b"0,1,2"))
        (folder / "f.npy").write_bytes(dump_npy(TRACE)[:-5])
        environment = {**os.environ, MARK: str(folder.parent)}
        done = finish(start_fednar("run", "f.yaml", *overrides, cwd=folder, env=environment))
        return done, {path.name for path in folder.iterdir()}

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(TYPED, pool.map(ran, TYPED), strict=True))


@pytest.mark.parametrize("case", TYPED)
def test_a_command_is_refused_and_creates_nothing(
    case: str, typed: dict[str, tuple[subprocess.CompletedProcess[str], set[str]]]
) -> None:
    done, files = typed[case]
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    stages = [line for line in done.stderr.splitlines() if line.endswith(" …")]
    assert done.stderr.splitlines()[len(stages)].startswith("error: ")
    assert TYPED[case][2] in done.stderr
    assert "Traceback" not in done.stderr
    assert files == {"f.yaml", "trace.csv", "f.csv", "f.npy"}  # neither runs nor mlflow.db


@pytest.mark.usefixtures("typed")
def test_the_commands_leave_no_process_behind(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Actors and all other processes of Ray would have the environment of the command that started them."""
    mark, left = str(tmp_path_factory.getbasetemp()), []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                left.append(process.cmdline())
    assert left == []
