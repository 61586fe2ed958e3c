"""``fednar ui NAME`` finds the page of whatever has the name."""

from pathlib import Path

import pytest

import fednar_ray as fr
from fednar_ray.tracking.identity import Identity
from fednar_ray.tracking.pages import find_page
from fednar_ray.tracking.run_views import RunView
from fednar_ray.tracking.store import Store
from tests.support.stores import create_store

SHARED = "workflowType=machine_learning"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return Store(create_store(tmp_path / "mlflow.db"))


def save_view(store: Store, experiment_id: str, key: str) -> None:
    view = RunView(key=key, name="v", metrics=["accuracy/test"], params=[], tags=[])
    store.client.set_experiment_tag(experiment_id, *view.build_tag(0))


def test_the_newest_search_of_a_name_opens_the_table_of_its_trials(store: Store) -> None:
    experiment_id = store.ensure_experiment("digits")
    tags = {"fednar.kind": "search", "fednar.search": "clip"}
    store.create_run(experiment_id, "clip", tags)
    run_id = store.create_run(experiment_id, "clip", tags)
    save_view(store, experiment_id, run_id[:8])
    page = find_page("clip", store.uri, None)
    assert page.path == f"/#/experiments/{experiment_id}/runs?{SHARED}&viewStateShareKey={run_id[:8]}"
    assert page.answer == f"/#/experiments/{experiment_id}/runs/{run_id}?{SHARED}"


def test_an_experiment_opens_its_view_once_it_has_one(store: Store) -> None:
    experiment_id = store.ensure_experiment("digits")
    plain = f"/#/experiments/{experiment_id}/runs?{SHARED}"
    assert find_page("digits", store.uri, None).path == plain
    save_view(store, experiment_id, "runs")
    assert find_page("digits", store.uri, None).path == f"{plain}&viewStateShareKey=runs"


def test_a_run_is_found_by_its_directory_and_by_its_id(store: Store) -> None:
    experiment_id = store.ensure_experiment("digits")
    run_id = store.create_run(experiment_id, "digits", {})
    directory = Path("runs").absolute() / f"digits-{run_id[:8]}"
    directory.mkdir(parents=True)
    (directory / "experiment.yaml").write_text("experiment: {name: digits}\n")
    Identity(run_id=run_id, tracking_uri=store.uri).write(directory)
    for name, uri in ((directory.name, None), (run_id[:8], None), (run_id, store.uri)):
        page = find_page(name, uri, None)
        assert (page.path, page.answer) == (f"/#/experiments/{experiment_id}/runs/{run_id}?{SHARED}", None)
        assert page.store.uri == store.uri


def test_an_unknown_name_lists_what_there_is(store: Store) -> None:
    store.ensure_experiment("digits")
    with pytest.raises(fr.BadInput, match=r"^nothing: no such run, comparison, search or experiment; .*digits"):
        find_page("nothing", store.uri, None)
