"""``fednar compare`` in its own process and an empty directory. One test types it into a new interpreter."""

import html
import json
from pathlib import Path

import pytest

from tests.support.commands import SERIAL, load_journal, open_store, run_fednar, type_fednar
from tests.support.stores import create_store

pytestmark = pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)


@pytest.mark.usefixtures("processes")
def test_compare_uses_the_metrics_of_evaluated_rounds_only(tmp_path: Path) -> None:
    create_store(tmp_path / "mlflow.db")
    evaluation = ["federation.rounds=5", "evaluation.every=2"]  # rounds 2, 4 and 5, counted from 1
    comparison = ["compare.seeds=1", "compare.weight_decays=[0.03]", "compare.final_rounds=3"]
    target = "compare.target_accuracy=0.001"
    done = run_fednar("compare", "--json", *SERIAL, *evaluation, *comparison, target, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout.lower()
    result, client = json.loads(done.stdout), open_store(tmp_path)
    for row in result["rows"]:
        (run,) = client.search_runs(
            [client.get_experiment_by_name("compare").experiment_id],
            f"params.`regularizer.name` = '{row['regularizer']}' and tags.`mlflow.parentRunId` = '{result['run_id']}'",
        )
        history = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "accuracy/test")}
        assert sorted(history) == [1, 3, 4]
        assert row["final accuracy"] == f"{(history[3] + history[4]) / 2:.3f}"
        assert row["rounds to target"] == "2"  # the first round was not evaluated
    headline = client.get_run(result["run_id"]).data.metrics
    assert set(headline) == {
        "final_accuracy/decoupled_0.03", "final_accuracy/fednar_0.03", "difference/fednar_0.03",
    }  # fmt: skip


@pytest.mark.usefixtures("processes")
def test_compare_trains_paired_runs(tmp_path: Path) -> None:
    create_store(tmp_path / "mlflow.db")
    settings = ["compare.seeds=2", "compare.weight_decays=[0.03]", "compare.final_rounds=2"]
    done = type_fednar("compare", "--json", *SERIAL, *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["regularizer"] for row in result["rows"]] == ["decoupled", "fednar"]
    assert result["rows"][0]["difference"] == "–"
    page = Path(result["page"])
    assert page.is_relative_to(tmp_path / "runs")
    assert result["answer"][0] in html.unescape(page.read_text())
    assert page.with_name("comparison.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")

    client = open_store(tmp_path)
    everything = client.search_runs([client.get_experiment_by_name("compare").experiment_id])
    children = [run for run in everything if run.info.run_id != result["run_id"]]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {result["run_id"]}
    assert {run.info.status for run in everything} == {"FINISHED"}
    by_variant = {(run.data.params["regularizer.name"], int(run.data.params["seed"])): run for run in children}
    assert len(children) == 4
    assert set(by_variant) == {(name, seed) for name in ("decoupled", "fednar") for seed in (0, 1)}

    def sampled(name: str, seed: int) -> list[list[int]]:
        run_id = by_variant[name, seed].info.run_id
        return [line["clients"] for line in load_journal(tmp_path / "runs" / f"compare-{run_id[:8]}")]

    for seed in (0, 1):
        assert sampled("decoupled", seed) == sampled("fednar", seed)
    assert sampled("fednar", 0) != sampled("fednar", 1)
    for row in result["rows"]:
        final = [
            metric.value
            for seed in (0, 1)
            for metric in client.get_metric_history(by_variant[row["regularizer"], seed].info.run_id, "accuracy/test")
            if metric.step >= 1
        ]
        assert row["final accuracy"].startswith(f"{sum(final) / 4:.3f} ± ")
