"""The driver's record of trials, on disk and in MLflow."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow import MlflowClient
from ray.tune.experiment import Trial

from fednar_ray.tracking.store import Store
from fednar_ray.tuning.trial_table import FINISHED, RUNNING, TrialTable
from tests.support.searches import IGNORED_WARNINGS
from tests.support.trials import (
    RATE,
    ROUNDS,
    build_plan,
    create_table,
    open_trial,
    record_trials,
    train_trial,
)

pytestmark = IGNORED_WARNINGS


def count_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_ended_trials_hold_no_files_open_while_mlflow_is_slow(store: Store, tmp_path: Path) -> None:
    table, trials = create_table(store), []
    with record_trials(table, store) as recorder:
        train_trial(recorder, trials, {RATE: 0.05})
        with closing(sqlite3.connect(tmp_path / "m.db", isolation_level=None)) as busy:
            busy.execute("BEGIN EXCLUSIVE")  # MLflow is blocked while more trials end
            counts = []
            for index in range(12):
                train_trial(recorder, trials, {RATE: 0.01 + index / 1000})
                counts.append(count_open_files())
    assert counts[11] - counts[5] <= 3, counts  # MLflow's own connections
    client = MlflowClient(store.uri)
    assert len(table.trials) == 13
    for entry in table.trials.values():
        run = client.get_run(str(entry.run_id))
        assert (run.info.status, run.data.tags["fednar.status"]) == ("FINISHED", FINISHED)
        assert run.info.run_name == f"{run.data.tags['fednar.trial'][6:]} η={entry.values[RATE]:.3g}"
        assert [m.step for m in client.get_metric_history(run.info.run_id, "loss/train")] == list(range(ROUNDS))


def test_the_table_records_the_end_of_a_trial_before_tune_does(store: Store) -> None:
    table, values = create_table(store), {RATE: 0.05}
    trial, trained = (
        Trial("FederatedTrial", config=values, stub=True),
        open_trial(values, build_plan()),
    )
    statuses = []
    with record_trials(table, store) as recorder:
        recorder.on_trial_start(0, [trial], trial)
        for _ in range(ROUNDS):
            recorder.on_trial_result(0, [trial], trial, trained.step())
            statuses.append(TrialTable.load("small").trials[trial.trial_id].status)
    assert statuses == [RUNNING, RUNNING, FINISHED]


def test_a_resumed_search_sends_missing_trials_to_mlflow(store: Store) -> None:
    table, trials = create_table(store), []
    with record_trials(table, store) as recorder:
        train_trial(recorder, trials, {RATE: 0.05})
        train_trial(recorder, trials, {RATE: 0.06})
    sent, missing = table.trials.values()
    for name in ("run.json", "outbox.jsonl", "outbox.sent"):  # as if the driver had been killed before it wrote them
        (table.get_trial_directory(missing) / name).unlink()
    store.client.delete_run(str(missing.run_id))
    missing.run_id = None
    with record_trials(table, store):
        pass
    assert missing.run_id is not None
    for entry in (sent, missing):
        run = store.client.get_run(str(entry.run_id))
        assert (run.info.status, run.data.tags["fednar.status"], run.data.params[RATE]) == (
            "FINISHED",
            FINISHED,
            str(entry.values[RATE]),
        )
        history = store.client.get_metric_history(run.info.run_id, "loss/train")
        assert [point.step for point in history] == list(range(ROUNDS))
    operations = (table.get_trial_directory(sent) / "outbox.jsonl").read_text()
    assert '"resumed"' not in operations  # the run that MLflow already had is not changed
