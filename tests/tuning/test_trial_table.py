"""The record of a search: names, damaged files, and files of an earlier version."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import fednar_ray as fr
from fednar_ray.config import load_document
from fednar_ray.tracking.run_directory import SearchDirectory
from fednar_ray.tracking.store import Store
from fednar_ray.tuning.search import resume_search
from fednar_ray.tuning.trial_table import TrialTable, check_name_is_free
from tests.support.search_files import dump_small_search, hash_files
from tests.support.searches import IGNORED_WARNINGS, show_nothing

pytestmark = IGNORED_WARNINGS


def test_names_in_use_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    SearchDirectory.named("empty").path.mkdir(parents=True)
    check_name_is_free("empty")
    (SearchDirectory.named("other").path / "notes").mkdir(parents=True)
    with pytest.raises(fr.BadInput, match=r"searches/other exists and is not a search"):
        check_name_is_free("other")
    SearchDirectory.named("file").path.write_text("")
    with pytest.raises(fr.BadInput, match=r"searches/file exists and is not a search"):
        check_name_is_free("file")


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"trials": 3}', '{"trials": {}, "color": 1}'])
def test_the_error_names_the_damaged_record_of_a_search(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    SearchDirectory.named("small").path.mkdir(parents=True)
    (SearchDirectory.named("small").path / "search.json").write_text(text)
    with pytest.raises(fr.BadInput, match=r"searches/small/search\.json is damaged"):
        resume_search("small", fr.RaySession(), show_nothing)


@pytest.mark.parametrize("move", [shutil.move, shutil.copytree])
def test_a_search_under_another_name_is_refused(store: Store, move: Callable[..., object]) -> None:
    TrialTable(name="small", tracking_uri=store.uri, experiment_id="0").create(dump_small_search(store, trials=3))
    move(SearchDirectory.named("small").path, SearchDirectory.named("other").path)
    before = hash_files(Path("searches"))
    there = SearchDirectory.named("small").path
    message = f"other holds the search 'small', which cannot be resumed as 'other'; rename it to {there}"
    with fr.RaySession() as session, pytest.raises(fr.BadInput, match=message):
        resume_search("other", session, show_nothing)
    assert hash_files(Path("searches")) == before


def test_a_search_without_its_search_file_is_refused_with_a_remedy(store: Store) -> None:
    """An earlier version left this state if it was killed between the writes of its two files."""
    TrialTable(name="small", tracking_uri=store.uri, experiment_id="0").create(dump_small_search(store, trials=3))
    SearchDirectory.named("small").search_yaml.unlink()
    with pytest.raises(fr.BadInput, match=r"search\.yaml is missing.*cannot be resumed; move .* start it again"):
        resume_search("small", fr.RaySession(), show_nothing)


@pytest.mark.parametrize(
    ("table", "names"),
    [
        ({"runs": {}, "trials": {}}, "runs"),
        ({"trials": {"a": {"name": "trial-0000", "cohort_width": 4, "begun": None}}}, "cohort_width, begun"),
    ],
)
def test_a_search_of_an_earlier_version_is_refused_with_a_remedy(
    table: dict[str, Any], names: str, store: Store
) -> None:
    """The trial table is refused; loading the search file then names the keys that were renamed."""
    directory = SearchDirectory.named("small").path
    TrialTable(name="small", tracking_uri=store.uri, experiment_id="0").create(dump_small_search(store, trials=3))
    kept = json.loads((directory / "search.json").read_text())
    (directory / "search.json").write_text(json.dumps({**kept, **table}))
    old = yaml.safe_load(dump_small_search(store, trials=3))
    old["experiment"]["execution"]["cohort_width"] = 4
    (directory / "search.yaml").write_text(yaml.safe_dump(old))
    before = hash_files(directory)
    again = re.escape(f"fednar tune {directory / 'search.yaml'} search.name=small-2")
    message = rf"search\.json was written by an earlier version .*\(it has {names}\).*{again}"
    with pytest.raises(fr.BadInput, match=message):
        resume_search("small", fr.RaySession(), show_nothing)
    with pytest.raises(fr.ConfigError, match=r"cohort_width.*execution\.vectorize"):
        load_document(directory / "search.yaml", ["search.name=small-2"], to_search=True)
    assert hash_files(directory) == before
