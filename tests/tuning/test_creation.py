"""A search is created as a whole or not at all, whenever its writer is killed."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fednar_ray.config import load_document
from fednar_ray.core.errors import TrackingUnavailable
from fednar_ray.tracking.run_directory import SearchDirectory
from fednar_ray.tracking.store import Store
from fednar_ray.tuning.creation import add_parent_run, create_search
from fednar_ray.tuning.trial_table import TrialTable, check_name_is_free, list_searches
from tests.support.search_files import build_small_search
from tests.support.searches import IGNORED_WARNINGS

pytestmark = IGNORED_WARNINGS


class Killed(BaseException):
    """Stands for a killed process: the package does not catch it."""


@contextmanager
def kill_at_change(monkeypatch: pytest.MonkeyPatch, number: int, calls: list[str]) -> Iterator[None]:
    """Raises ``Killed`` in place of the ``number``-th change of a file, directory or MLflow run."""

    def count_calls(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == number:
                raise Killed
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("rename", "replace", "mkdir"):
            patch.setattr(os, name, count_calls(name, getattr(os, name)))
        patch.setattr(Path, "write_text", count_calls("write_text", Path.write_text))
        patch.setattr(Store, "create_run", count_calls("create_run", Store.create_run))
        yield


def test_a_search_whose_creation_is_killed_exists_as_a_whole_or_not_at_all(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill at any write, the search can be started again or resumed, and MLflow has one parent run."""
    experiment_id = store.ensure_experiment("small")
    made, number, outcomes = False, 0, set()
    while not made:
        number += 1
        calls: list[str] = []
        with kill_at_change(monkeypatch, number, calls):
            try:
                create_search(build_small_search(store), store, experiment_id)
                made = True
            except Killed:
                pass
        there = SearchDirectory.named("small").path.exists()
        outcomes.add(there)
        if there:
            assert list(list_searches()) == ["small"]
            table = TrialTable.load("small")
            assert load_document(table.files.search_yaml, to_search=True).search.trials == 3  # type: ignore[union-attr]
            add_parent_run(table, store)
            add_parent_run(TrialTable.load("small"), store)
            runs = store.client.search_runs([experiment_id], "tags.`fednar.search` = 'small'")
            assert [run.info.run_id for run in runs] == [TrialTable.load("small").run_id], calls
            store.client.delete_run(table.parent_id)
            (tmp_path / "searches" / "small").rename(tmp_path / f"kept-{number}")
        else:
            assert list(list_searches()) == []
            check_name_is_free("small")
        assert not store.client.search_runs([experiment_id]), calls
    assert outcomes == {True, False}
    assert number > 6


def test_no_search_remains_if_mlflow_refuses_its_run(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*args: Any) -> str:
        raise TrackingUnavailable("gone")

    monkeypatch.setattr(Store, "create_run", unavailable)
    with pytest.raises(TrackingUnavailable):
        create_search(build_small_search(store), store, store.ensure_experiment("small"))
    assert not SearchDirectory.named("small").path.exists()
