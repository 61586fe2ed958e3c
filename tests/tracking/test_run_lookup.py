"""The name of an experiment stands for its newest run, never for a run of a comparison or a search."""

import json
from pathlib import Path

import pytest

import fednar_ray as fr
from fednar_ray.core.errors import BadInput
from fednar_ray.tracking.identity import Identity, read_identity
from fednar_ray.tracking.journal import Journal
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.run_lookup import find_run_or_newest, list_own_runs, list_runs

EXPERIMENT = fr.Experiment.model_validate({"name": "wards", "model": {"name": "logistic"}})


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_run(name: str, parent_id: str | None = None) -> Path:
    directory = Path("runs").absolute() / name
    with Journal(directory, EXPERIMENT):
        pass
    Identity(run_id=f"run-{name}", tracking_uri="sqlite:///m.db", parent_id=parent_id).write(directory)
    return directory


def test_runs_of_comparisons_and_searches_do_not_stand_for_an_experiment() -> None:
    own = write_run("wards-00000001")
    comparison = write_run("wards-00000002")
    RunDirectory(comparison).comparison_yaml.write_text("runs: []")
    write_run("wards-00000003", parent_id="comparison")
    assert find_run_or_newest("wards").directory == own
    assert [ref.directory for ref in list_own_runs()] == [own]
    assert {ref.name for ref in list_runs()} == {"wards-00000001", "wards-00000002", "wards-00000003"}
    for exactly in ("wards-00000003", "00000003", "runs/wards-00000003"):
        assert find_run_or_newest(exactly).name == "wards-00000003"


def test_only_runs_of_a_comparison_are_refused_by_the_name_with_theirs() -> None:
    write_run("wards-00000003", parent_id="comparison")
    with pytest.raises(BadInput, match="train one with fednar run, or name one of theirs exactly: wards-00000003"):
        find_run_or_newest("wards")
    with pytest.raises(BadInput, match="beds: no such run"):
        find_run_or_newest("beds")


def test_the_parent_is_recorded_and_optional() -> None:
    directory = write_run("wards-1", parent_id="of")
    assert read_identity(directory).parent_id == "of"
    path = RunDirectory(directory).identity
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({**fields, "parent_id": 3}))
    with pytest.raises(BadInput, match="parent_id is 3"):
        read_identity(directory)
    del fields["parent_id"]
    path.write_text(json.dumps(fields))
    assert read_identity(directory).parent_id is None
