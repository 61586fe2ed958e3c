"""Names of working directories that are special in a URI, and names of experiments that are special in a path."""

import os
from pathlib import Path
from urllib.parse import quote

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from sqlalchemy.engine import make_url

import fednar_ray as fr
from fednar_ray.config.loading import parse_document
from fednar_ray.core.errors import BadInput, ConfigError, TrackingUnavailable
from fednar_ray.core.store_uris import build_artifact_folder, find_sqlite_file, make_uri_absolute, split_off_folder
from fednar_ray.experiments.resume import resume_from
from fednar_ray.tracking.store import Store
from fednar_ray.tuning.trial_table import TrialTable

pytestmark = [
    pytest.mark.usefixtures("recorded_runs"),
    pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
        "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
    ),
]

NAMES = ("my project", "50%", "a%20b", "a#b", "a?b=c", "Zürich & Co;é", "plain")
STORES = {
    "MLflow's default": None,
    "a relative SQLite file": "sqlite:///m.db",
    "a relative folder": "store",
    "a relative file URI": "file:store",
}
YAML = """
experiment:
  name: odd
  data: {partition: {clients: 3}}
  model: {hidden: 4}
  federation: {rounds: 2, clients_per_round: 2, local_steps: 1}
  execution: {placement: serial}
  checkpoint: {every: 1, storage: %s}
  tracking: {uri: %s}
"""


@pytest.fixture(autouse=True)
def maintained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize(
    ("store", "name"),
    [("MLflow's default", name) for name in NAMES if name not in ("my project", "plain")]
    + [("a relative SQLite file", name) for name in ("a%20b", "a?b=c")]
    + [("a relative folder", "a#b"), ("a relative file URI", "my project")],
)
def test_a_run_writes_only_into_the_working_directory(
    store: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / name
    here.mkdir()
    monkeypatch.chdir(here)
    experiment = parse_document(YAML % ("kept", STORES[store] or "null"), "odd.yaml").experiment
    result = fr.run(experiment)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # no sibling
    assert (here / "kept" / result.directory.name).is_dir()
    client = MlflowClient(result.tracking_uri)
    files = {file.path for file in client.list_artifacts(result.run_id)}
    assert {"experiment.yaml", "curves.png", "report.html", "metrics.jsonl"} <= files
    (here / "back").mkdir()
    journal = client.download_artifacts(result.run_id, "metrics.jsonl", str(here / "back"))
    assert Path(journal).read_bytes() == (result.directory / "metrics.jsonl").read_bytes()
    assert len(list(here.glob("[ms]*/**/models/*/artifacts/MLmodel"))) == 1
    (output,) = client.get_run(result.run_id).outputs.model_outputs
    location = client.get_logged_model(output.model_id).artifact_location
    assert location.startswith(here.as_uri() + "/")
    if name != "a%20b":  # MLflow's loader decodes such a path twice
        x = torch.rand(3, 1, 8, 8)
        assert torch.equal(mlflow.pytorch.load_model(location)(x), result.model(x))
    resumption = resume_from(result.directory.name, None)
    assert resumption is not None
    assert resumption.checkpoint.next_round == 2
    assert fr.load(result.directory / "experiment.yaml") == experiment


def test_a_folder_that_mlflow_would_misread_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrackingUnavailable, match=r"misreads the percent sign in .*a%20b/store; use a SQLite file"):
        Store(str(tmp_path / "a%20b" / "store")).check()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_relative_address_is_resolved_as_the_operating_system_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / name)
    for relative in ("m.db", "./m.db", "below/../m.db", "below/m.db"):
        for scheme in ("sqlite:///", "sqlite+pysqlite:///"):
            uri = make_uri_absolute(scheme + relative)
            assert make_url(uri).database == os.path.abspath(relative)  # as SQLAlchemy parses it
            assert find_sqlite_file(uri) == Path(os.path.abspath(relative))
            assert make_uri_absolute(uri) == uri
    assert make_uri_absolute("sqlite:///m.db?timeout=5").endswith("/m.db?timeout=5")
    for folder in ("mlruns", "file:mlruns", "file:./mlruns"):
        assert make_uri_absolute(folder) == (tmp_path / name / "mlruns").as_uri()


@pytest.mark.parametrize("name", NAMES)
def test_a_server_creates_only_the_folder_of_its_store(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, folder = split_off_folder(Store(f"sqlite:///{quote(str(tmp_path / name))}/m.db").uri)
    (tmp_path / name).mkdir()
    monkeypatch.chdir(folder or tmp_path)
    assert os.path.abspath(str(make_url(uri).database)) == str(tmp_path / name / "m.db")
    MlflowClient(uri).search_experiments()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:5000", "postgresql://u@h/db", "databricks", "databricks://profile", "sqlite:////x/m.db"]
)
def test_other_addresses_are_unchanged(uri: str) -> None:
    assert make_uri_absolute(uri) == uri


OUTSIDE = {
    "above": "../../x",
    "in the middle": "a/../../../x",
    "at the end": "a/..",
    "alone": "..",
    "a line break": "a\\nb",
    "a null": "a\\0b",
    "nothing": "",
    "a slash": "/",
    "too long": "x" * 501,
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_an_experiment_name_that_leads_out_of_its_folder_is_refused(case: str, tmp_path: Path) -> None:
    name = OUTSIDE[case]
    with pytest.raises(ConfigError, match=r"^tracking\.experiment: "):
        parse_document("experiment: {name: a}", "a.yaml", [f'tracking.experiment="{name}"'])
    (tmp_path / "inner").mkdir()
    with pytest.raises(BadInput, match="cannot be the name of an MLflow experiment"):
        Store(f"sqlite:///{tmp_path}/inner/m.db").ensure_experiment(name.encode().decode("unicode_escape"))
    assert list(tmp_path.rglob("*")) == [tmp_path / "inner"]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("digits", "digits"),
        ("team/digits", "team/digits"),
        ("/Users/me/digits", "Users/me/digits"),
        ("a/./b", "a/b"),
        ("...", "..."),
        ("%2e%2e/x", "%2e%2e/x"),
        ("ä ö", "ä ö"),
    ],
)
def test_artifacts_of_every_other_experiment_are_below_mlruns(name: str, folder: str, tmp_path: Path) -> None:
    assert parse_document("experiment: {name: a}", "a.yaml", [f'tracking.experiment="{name}"'])
    assert build_artifact_folder(name) == folder
    store = Store(f"sqlite:///{tmp_path}/m.db")
    run_id = store.create_run(store.ensure_experiment(name), "a run", {})
    (tmp_path / "file.txt").write_text("x")
    store.client.log_artifact(run_id, tmp_path / "file.txt")
    assert (tmp_path / "mlruns" / folder / run_id / "artifacts" / "file.txt").read_text() == "x"


def test_a_name_too_long_for_a_file_system_is_shortened(tmp_path: Path) -> None:
    names = ["ü" * 500, "ü" * 499 + "x"]
    folders = [build_artifact_folder(name) for name in names]
    assert len({*folders}) == 2
    for folder in folders:
        (tmp_path / folder).mkdir()


@pytest.mark.parametrize("name", ["../x", "/etc", "a/b", "", ".", "..", "a\n"])
def test_a_path_is_not_accepted_as_the_name_of_a_search(name: str) -> None:
    with pytest.raises(BadInput, match="not the name of a search"):
        TrialTable.load(name)
    with pytest.raises(ConfigError, match=r"^(experiment\.)?name|^search\.name"):
        parse_document("experiment: {name: a}\nsearch: {space: {}}", "a.yaml", [f'search.name="{name!r}"'])
