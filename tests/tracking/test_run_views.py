"""A saved view can be read back, names every column, and fits into a tag of MLflow."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from fednar_ray.tracking.run_views import (
    VIEW_TAG_PREFIX,
    RunView,
    build_page_path,
    format_rank,
    get_view_key,
    parse_view,
)
from tests.support.stores import create_store

VIEW = RunView(
    key="1a2b3c4d",
    name="clip: best first",
    metrics=["loss/validation", "accuracy/test"],
    params=["regularizer.clip_bound"],
    tags=["fednar.status"],
    ascending=True,
    parent="1a2b3c4d" * 4,
)
COLUMNS = [
    "metrics.`loss/validation`", "metrics.`accuracy/test`", "params.`regularizer.clip_bound`", "tags.`fednar.status`",
]  # fmt: skip


def test_a_view_is_read_back_from_the_experiments_tag(tmp_path: Path) -> None:
    client = MlflowClient(create_store(tmp_path / "m.db"))
    experiment_id = client.create_experiment("e")
    client.set_experiment_tag(experiment_id, *VIEW.build_tag(1_700_000_000_000))
    saved = client.get_experiment(experiment_id).tags[f"{VIEW_TAG_PREFIX}1a2b3c4d"]
    fields = json.loads(saved)
    assert (fields["name"], fields["createdAt"], fields["updatedAt"]) == ("clip: best first", *[1_700_000_000_000] * 2)
    state = parse_view(saved)
    assert (state["selectedColumns"], state["orderByKey"], state["orderByAsc"]) == (COLUMNS, COLUMNS[0], True)
    assert state["searchFilter"] == f"tags.`mlflow.parentRunId` = '{'1a2b3c4d' * 4}'"
    ranked = parse_view(replace(VIEW, ranked=True, ascending=False).build_tag(0)[1])
    assert (ranked["selectedColumns"], ranked["orderByKey"], ranked["orderByAsc"]) == (
        COLUMNS,
        "tags.`fednar.rank`",
        True,
    )


def test_ranks_are_sorted_as_text() -> None:
    assert sorted(map(format_rank, (10, 9, 100_000, 0))) == list(map(format_rank, (0, 9, 10, 100_000)))


def test_a_view_of_a_search_over_thirty_settings_fits_into_a_tag() -> None:
    params = [f"section_{index % 7}.a_setting_with_a_long_name_{index}" for index in range(30)]
    view = RunView(key="k", name="n" * 200, metrics=["accuracy/validation"], params=params, tags=[], parent="f" * 32)
    assert len(view.build_tag(0)[1]) < 5000  # MLflow's limit of an experiment's tag


@pytest.mark.parametrize(
    "damaged", ["", "{}", '{"state": 1}', '{"state": "deflate;????"}', '{"state": "deflate;AAAA"}']
)
def test_a_damaged_view_is_refused(damaged: str) -> None:
    with pytest.raises(ValueError, match=re.compile("", re.DOTALL)):
        parse_view(damaged)


def test_pages_open_the_part_of_the_ui_for_training() -> None:
    shared = "workflowType=machine_learning"
    assert build_page_path("3") == f"/#/experiments/3/runs?{shared}"
    assert build_page_path("3", run_id="a") == f"/#/experiments/3/runs/a?{shared}"
    assert build_page_path("3", view="k") == f"/#/experiments/3/runs?{shared}&viewStateShareKey=k"
    assert get_view_key({"fednar.kind": "comparison"}, "1a2b3c4d" * 4) == "1a2b3c4d"
    assert get_view_key({"fednar.kind": "trial"}, "1a2b3c4d" * 4) is None
