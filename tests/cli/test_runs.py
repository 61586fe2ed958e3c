"""``fednar runs`` names the metric by which each run is judged."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

import fednar_ray as fr
from fednar_ray.cli.main import cli
from fednar_ray.core.reports import RoundRecord
from fednar_ray.tracking.journal import Journal
from fednar_ray.tracking.outbox import Outbox
from fednar_ray.tracking.tags import PRIMARY_TAG


def write_run(name: str, metrics: Mapping[str, float], primary: str | None) -> None:
    directory = Path("runs") / name
    experiment = fr.Experiment.model_validate({"federation": {"rounds": 2, "local_steps": 1}})
    with Journal(directory, experiment) as journal:
        journal.log(RoundRecord(round_index=0, metrics=dict(metrics), client_ids=(0,), exclusions={}))
    if primary is not None:
        outbox = Outbox(directory)
        outbox.append({"kind": "tags", "tags": {PRIMARY_TAG: primary}})
        outbox.close()


@pytest.mark.parametrize(
    ("metrics", "primary", "shown"),
    [
        ({"test_accuracy": 0.97, "test_auc": 0.812}, "auc", "test auc 0.812"),
        ({"test_accuracy": 0.97}, "auc", "test accuracy 0.970"),  # the test rows have one label: no AUC
        ({"test_rmse": 12.345678, "test_r2": 0.5}, "rmse", "test rmse 12.35"),
        ({"test_rmse": 12.345678, "test_r2": 0.5}, None, "test rmse 12.35"),  # a run of an earlier version
        ({"test_accuracy": 0.5}, None, "test accuracy 0.500"),
        ({"train_loss": 0.5}, "auc", "–"),
    ],
)
def test_a_run_is_listed_with_its_primary_metric(
    metrics: Mapping[str, float],
    primary: str | None,
    shown: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run("small-1", metrics, primary)
    cells = CliRunner().invoke(cli, ["runs"]).output.splitlines()[3].split("│")
    assert [cell.strip() for cell in cells[1:4]] == ["small-1", "1/2", shown]
    (row,) = json.loads(CliRunner().invoke(cli, ["runs", "--json"]).output)
    assert row["test_value"] == metrics.get(row["test_metric"])
    assert row["test_accuracy"] == metrics.get("test_accuracy")
