"""An intact checkpoint of another version raises an error that names file and difference; no older one is used."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

import fednar_ray as fr
from fednar_ray.config.renamed import RENAMED
from fednar_ray.core.errors import CheckpointError, ConfigError
from fednar_ray.experiments.resume import resume_from
from tests.conftest import build_small_federation
from tests.support.stores import create_store

ROUNDS = 3
pytestmark = [
    pytest.mark.usefixtures("recorded_runs"),
    pytest.mark.filterwarnings(
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]


def build_arguments() -> dict[str, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    return {"federation": build_small_federation((7, 30, 12)), "model": model}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Returns the directories of finished runs with two checkpoints, by algorithm."""
    folder = tmp_path_factory.mktemp("versions")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("scaffold+exp", "fedavgm+exp"):
            settings = {
                "name": name.replace("+", "-"),
                "federation": {"rounds": ROUNDS, "local_steps": 2, "batch_size": 5},
                "algorithm": {"name": name},
                "execution": {"placement": "serial"},
                "checkpoint": {"every": 1, "keep": 2},
                "tracking": {"uri": create_store(folder / "m.db")},
            }
            found[name] = fr.run(fr.Experiment.model_validate(settings), **build_arguments()).directory
    return found


class Edited:
    """The newest checkpoint of a run, which can be rewritten with other contents and correct checksums."""

    def __init__(self, directory: Path) -> None:
        self.folder = directory / "checkpoints"
        self.path = max(self.folder.glob("round-*.json"))
        self._whole = self.path.read_bytes()
        self.manifest: dict[str, Any] = json.loads(self._whole)
        self.arrays = load((self.folder / self.manifest["arrays"]["name"]).read_bytes())

    def write(self) -> None:
        self._put(self.manifest["arrays"], save(self.arrays))
        body = json.dumps({key: value for key, value in self.manifest.items() if key != "sha256"}).encode()[1:]
        self.path.write_bytes(b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'", ' + body)

    def history(self, change: Callable[[list[str]], list[str]]) -> None:
        """Changes the lines of the first segment of the history."""
        file = self.manifest["history"][0]["file"]
        lines = change((self.folder / file["name"]).read_text().splitlines())
        self._put(file, "".join(f"{line}\n" for line in lines).encode())

    def _put(self, file: dict[str, Any], data: bytes) -> None:
        digest = hashlib.sha256(data).hexdigest()
        file["name"] = file["name"].replace(file["sha256"][:16], digest[:16])
        file["sha256"], file["size_bytes"] = digest, len(data)
        (self.folder / file["name"]).write_bytes(data)

    def restore(self) -> None:
        self.path.write_bytes(self._whole)


@pytest.fixture
def edited(kept: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[Edited]:
    checkpoint = Edited(kept[request.param])
    yield checkpoint
    checkpoint.restore()


FACTS = {
    "experiment": "facts.experiment",
    "experiment_sha256": "facts.experiment_sha256",
    "data_digest": "facts.data_digest",
    "run_id": "facts.run_id",
    "tracking_uri": "facts.tracking_uri",
    "placement": "facts.placement",
    "group_size": "facts.group_size",
    "compiled": "facts.compiled",
    "server": "facts.server",
}
ARRAYS = {
    "scaffold+exp": {"parameters", "buffers", "control", "server.previous"},
    "fedavgm+exp": {"parameters", "buffers", "server.m", "server.previous"},
}


def find_refusal(edited: Edited) -> str:
    """Returns the error when the run is resumed."""
    edited.write()
    with pytest.raises(CheckpointError) as caught:
        fr.run(resume=edited.folder.parent, **build_arguments())
    message = str(caught.value)
    assert message.startswith(f"{edited.path}: "), message
    assert "resume with the version that wrote it, or start a new run" in message
    return message


@pytest.mark.parametrize("edited", ARRAYS, indirect=True)
def test_a_checkpoint_that_is_rewritten_unchanged_can_be_resumed(edited: Edited) -> None:
    edited.write()
    assert len(fr.run(resume=edited.folder.parent, **build_arguments()).history) == ROUNDS
    del edited.manifest["facts"]["server"]["vectors"]  # as older versions wrote it
    edited.manifest["facts"]["color"] = "red"  # as a later version may
    edited.write()
    assert len(fr.run(resume=edited.folder.parent, **build_arguments()).history) == ROUNDS


@pytest.mark.parametrize("edited", ["fedavgm+exp"], indirect=True)
def test_every_fact_that_is_missing_or_of_another_type_is_named(edited: Edited) -> None:
    facts = edited.manifest["facts"]
    assert set(FACTS) == set(facts)
    for key, name in FACTS.items():
        for change in (None, [], 5.5, "", {"a": 1}, ...):
            edited.manifest["facts"] = copy.deepcopy(facts)
            if change is ...:
                del edited.manifest["facts"][key]
            else:
                edited.manifest["facts"][key] = change
            edited.write()
            with pytest.raises(CheckpointError, match=name) as caught:
                resume_from(str(edited.folder.parent), None)
            assert str(caught.value).startswith(f"{edited.path}: ")
    for key in ("scalars", "server_lr"):
        edited.manifest["facts"] = copy.deepcopy(facts)
        del edited.manifest["facts"]["server"][key]
        assert f"facts.server.{key}" in find_refusal(edited)
    edited.manifest["facts"] = copy.deepcopy(facts)
    edited.manifest["facts"]["server"]["scalars"] = {}
    assert "facts.server.scalars.r is missing" in find_refusal(edited)


@pytest.mark.parametrize("edited", ["fedavgm+exp"], indirect=True)
def test_an_experiment_of_another_version_is_named_with_its_key(edited: Edited) -> None:
    edited.manifest["facts"]["experiment"]["federation"]["drawing"] = "poisson"
    assert "facts.experiment.federation.drawing: 'poisson': unknown key" in find_refusal(edited)
    edited.manifest["facts"]["experiment"] = {"tracking": {"uri": "http://me:hunter2@mlflow"}}
    message = find_refusal(edited)
    assert "facts.experiment.tracking.uri" in message
    assert "hunter2" not in message


OLD_KEYS: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "execution.cohort_width": (("execution", "cohort_width"), 8, "execution.cohort_width is now execution.vectorize"),
    "execution.sites": (("execution", "sites"), {}, "execution.sites is now execution.silos"),
    "corruption": (("corruption",), {"nan": 0.1}, "corruption.nan is now attacks.nan"),
    "data.standardise": (("data", "standardise"), True, "data.standardise is now data.standardize"),
    "data.normalisation": (("data", "normalisation"), 1, "data.normalisation is now data.normalization"),
}


@pytest.mark.parametrize("edited", ["fedavgm+exp"], indirect=True)
def test_a_checkpoint_with_old_keys_is_refused_with_the_new_names(edited: Edited) -> None:
    assert set(OLD_KEYS) == set(RENAMED)
    experiment = copy.deepcopy(edited.manifest["facts"]["experiment"])
    for (*sections, key), value, says in OLD_KEYS.values():
        edited.manifest["facts"]["experiment"] = copy.deepcopy(experiment)
        inner = edited.manifest["facts"]["experiment"]
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value
        assert f"facts.experiment.{says}" in find_refusal(edited)
    facts = edited.manifest["facts"]
    facts["experiment"] = {**experiment, "execution": {"placement": "serial", "cohort_width": 3}}
    facts["cohort_width"] = facts.pop("group_size")
    message = find_refusal(edited)  # as the previous version wrote it
    assert "facts.cohort_width is now facts.group_size" in message
    assert "facts.experiment.execution.cohort_width is now execution.vectorize" in message


@pytest.mark.parametrize(("edited", "names"), ARRAYS.items(), indirect=["edited"])
def test_every_array_that_is_missing_or_of_another_shape_or_type_is_named(edited: Edited, names: set[str]) -> None:
    arrays = edited.arrays
    assert set(arrays) == names
    for name, array in arrays.items():
        edited.arrays = {other: value for other, value in arrays.items() if other != name}
        assert f"the array {name} is missing" in find_refusal(edited)
        for change in (array[:-1], np.concatenate([array, array]), array[None]):
            edited.arrays = {**arrays, name: change}
            if name == "buffers" and change.ndim == 1:  # those of another model, which is message before Ray starts
                edited.write()
                with pytest.raises(ConfigError, match="values of averaged buffers"):
                    fr.run(resume=edited.folder.parent, **build_arguments())
            else:
                assert "the array " in find_refusal(edited)
    edited.arrays = {**arrays, "buffers": arrays["buffers"].astype(np.float32)}
    assert "the array buffers is float32" in find_refusal(edited)
    edited.arrays = {**arrays, "velocity": arrays["parameters"]}
    assert "the array velocity is unknown" in find_refusal(edited)
    edited.arrays = {**arrays, "server.velocity": arrays["parameters"]}
    assert "the array server.velocity is unknown" in find_refusal(edited)


@pytest.mark.parametrize("edited", ["scaffold+exp"], indirect=True)
def test_a_row_of_another_length_is_named(edited: Edited) -> None:
    edited._put(edited.manifest["rows"][0]["file"], save({"row": np.zeros(4, np.float32)}))
    assert "the row of client 0 has 4 values" in find_refusal(edited)


HISTORIES: dict[str, Callable[[list[str]], list[str]]] = {
    "no record": lambda lines: ["{}", *lines[1:]],
    "no object": lambda lines: ["5", *lines[1:]],
    "no JSON": lambda lines: ["round 0", *lines[1:]],
    "another order": lambda lines: lines[::-1] if len(lines) > 1 else [lines[0].replace('"round": 0', '"round": 1')],
    "text for a number": lambda lines: [lines[0].replace('"train_loss": ', '"train_loss": "x", "b": '), *lines[1:]],
}


@pytest.mark.parametrize("edited", ["fedavgm+exp"], indirect=True)
@pytest.mark.parametrize("case", HISTORIES)
def test_a_line_of_the_history_that_is_not_a_round_is_named(edited: Edited, case: str) -> None:
    edited.history(HISTORIES[case])
    assert "line 1 of the history is not the record of round 0" in find_refusal(edited)


@pytest.mark.parametrize("edited", ["fedavgm+exp"], indirect=True)
def test_a_checkpoint_in_another_format_is_refused_and_kept(edited: Edited) -> None:
    edited.manifest["format"] = "checkpoint 2"
    edited.write()
    with pytest.raises(CheckpointError, match=f"{edited.path.name} has the format 'checkpoint 2'"):
        fr.run(resume=edited.folder.parent, **build_arguments())
    assert edited.path.exists()
