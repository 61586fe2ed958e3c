"""Searchers and schedulers: they save rounds, repeat exactly, and keep their state."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

import fednar_ray as fr
from fednar_ray.tracking.journal import load_records
from fednar_ray.tracking.store import Store
from fednar_ray.tuning.search import start_search
from fednar_ray.tuning.strategy import (
    STARTUP_TRIALS,
    build_scheduler,
    build_search_algorithm,
    build_space,
    rename_in_rungs,
    restore_scheduler,
    save_scheduler,
)
from fednar_ray.tuning.trial_report import get_worst_value
from fednar_ray.tuning.trial_table import FINISHED, STOPPED, TrialEntry
from tests.support.searches import (
    IGNORED_WARNINGS,
    OPTUNA,
    RATE,
    SEARCH_ROUNDS,
    build_search,
    draw_no_pages,
    draw_values,
    list_outcomes,
    show_nothing,
    train_alone,
)
from tests.support.trial_reports import build_report
from tests.support.trials import build_trial_search, create_table

pytestmark = IGNORED_WARNINGS


@pytest.mark.usefixtures("searches")
def test_asha_saves_rounds_and_sequential_trials_repeat_exactly(uri: str, session: fr.RaySession) -> None:
    first = start_search(build_search(uri, {**OPTUNA, "name": "first"}), session, show_nothing)
    stopped = [entry for entry in first.trials if entry.status == STOPPED]
    assert stopped
    assert {entry.rounds for entry in stopped} <= {2, 4}
    assert first.rounds_trained == sum(entry.rounds for entry in first.trials)
    assert first.rounds_saved == sum(SEARCH_ROUNDS - entry.rounds for entry in stopped) > 0
    assert first.best.status == FINISHED
    client = MlflowClient(uri)
    run = client.get_run(stopped[0].run_id)
    assert (run.info.status, run.data.tags["fednar.status"]) == ("FINISHED", STOPPED)
    with draw_no_pages():
        second = start_search(build_search(uri, {**OPTUNA, "name": "second"}), session, show_nothing)
    assert list_outcomes(second) == list_outcomes(first)
    warm = {**OPTUNA, "warm_start": {"search": "first", "points": 2}, "scheduler": "none", "trials": 4, "seed": 1}
    with draw_no_pages():
        third = start_search(build_search(uri, {**warm, "name": "third"}), session, show_nothing)
    rates, before = ({entry.values[RATE] for entry in result.trials} for result in (third, first))
    assert rates & before == {entry.values[RATE] for entry in first.trials[:2]}
    assert len(rates - before) == 2  # another seed draws other values


@pytest.mark.usefixtures("searches")
def test_concurrent_random_trials_equal_runs_alone_and_report_the_mean_over_seeds(
    uri: str, session: fr.RaySession
) -> None:
    search = {**OPTUNA, "algorithm": "random", "concurrent": 2, "trials": 3, "scheduler": "none", "seeds": 2}
    document = build_search(uri, search)
    with draw_no_pages(report=True):
        result = start_search(document, session, show_nothing)
    assert list_outcomes(result) == train_alone(document, draw_values(document))
    entry = result.trials[0]
    single = [list(fr.iter_rounds(document.build_variant({**entry.values, "seed": seed}))) for seed in (0, 1)]
    losses = [record.metrics["train_loss"] for record in load_records(result.directory / "trials" / entry.name)]
    assert losses == pytest.approx(
        [(a.metrics["train_loss"] + b.metrics["train_loss"]) / 2 for a, b in zip(*single, strict=True)]
    )


@pytest.mark.usefixtures("searches")
def test_pbt_copies_federations_and_its_best_file_repeats_the_result(uri: str, session: fr.RaySession) -> None:
    search = {
        "algorithm": "random",
        "trials": 4,
        "concurrent": "auto",
        "scheduler": {"name": "pbt", "perturb_rounds": 2, "quantile": 0.5, "resample": 0.0},
        "space": {RATE: {"loguniform": [0.001, 0.5]}},
    }
    result = start_search(build_search(uri, search), session, show_nothing)
    copied = [entry for entry in result.trials if entry.lineage is not None]
    assert copied
    rates = {entry.values[RATE] for entry in result.trials}
    for entry in copied:
        assert entry.lineage is not None
        assert set(entry.lineage.changes) <= {"2", "4"}
        *_, last = entry.lineage.changes.items()
        assert last[1][RATE] == entry.values[RATE]
    assert all(0.001 <= rate <= 0.5 for rate in rates)
    for entry in result.trials:
        assert [record.round_index for record in load_records(result.directory / "trials" / entry.name)] == [
            *range(SEARCH_ROUNDS)
        ]
    winner = next(entry for entry in result.trials if entry.lineage is not None)
    assert winner.lineage is not None
    experiment = build_search(uri, search).build_variant({**winner.lineage.initial_values})
    changes = winner.lineage.changes
    changed = fr.Experiment.model_validate({**experiment.model_dump(exclude_none=True), "changes": changes})
    *_, report = fr.iter_rounds(changed)
    assert report.metrics["validation_accuracy"] == winner.value
    *_, best = fr.iter_rounds(fr.load(result.best_file))
    assert best.metrics["validation_accuracy"] == result.best.value


@pytest.mark.usefixtures("searches")
@pytest.mark.parametrize("scheduler", ["median", "hyperband"])
def test_other_schedulers_run(scheduler: str, uri: str, session: fr.RaySession) -> None:
    settings = {"name": "median", "grace_rounds": 2} if scheduler == "median" else {"name": "hyperband", "reduction": 2}
    search = {**OPTUNA, "algorithm": "random", "trials": 5, "scheduler": settings}
    with draw_no_pages():
        result = start_search(build_search(uri, search), session, show_nothing)
    assert len(result.trials) == 5
    assert result.best.rounds == SEARCH_ROUNDS
    assert {entry.status for entry in result.trials} <= {FINISHED, STOPPED}


def test_a_failed_trial_ranks_below_models_whose_r2_is_negative(store: Store) -> None:
    """Neither ASHA nor TPE, nor the table, takes the failure for the better one."""
    scheduler = {"name": "asha", "grace_rounds": 1, "reduction": 2}
    section = build_trial_search(scheduler=scheduler, algorithm="optuna").search
    assert section is not None
    search = section.model_copy(update={"metric": "validation_r2"})
    failed, asha, table = get_worst_value("validation_r2", "max"), build_scheduler(search, 8), create_table(store)
    searcher = build_search_algorithm(search, (), 1)
    assert isinstance(searcher, Searcher)
    searcher.set_search_properties("validation_r2", "max", build_space(search))
    decisions = []
    for index, value in enumerate([failed, -3.0, failed, -2.0, *[failed] * STARTUP_TRIALS]):
        trial, values = Trial("FederatedTrial", trial_id=f"t{index}", stub=True), searcher.suggest(f"t{index}")
        result = build_report(value=value, rounds=1).to_tune("validation_r2")
        asha.on_trial_add(None, trial)
        decisions.append(asha.on_trial_result(None, trial, result))
        searcher.on_trial_complete(trial.trial_id, result)
        table.trials[trial.trial_id] = TrialEntry(name=f"trial-{index:04d}", values=values, value=value)
    assert (decisions[1], decisions[3]) == (TrialScheduler.CONTINUE, TrialScheduler.CONTINUE)
    assert [entry.value for entry in table.rank("max")[:3]] == [-2.0, -3.0, failed]


def test_rungs_are_saved_and_follow_a_trial_to_its_new_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    search = build_trial_search(scheduler={"name": "asha", "grace_rounds": 1, "reduction": 2}).search
    assert search is not None
    scheduler, trials = build_scheduler(search, 8), [Trial("FederatedTrial", trial_id=key, stub=True) for key in "abc"]
    for trial, value in zip(trials, (0.9, 0.1, 0.5), strict=True):
        scheduler.on_trial_add(None, trial)
        scheduler.on_trial_result(None, trial, {"rounds": 1, "validation_accuracy": value})
    save_scheduler(scheduler, tmp_path / "s.pickle")
    again = build_scheduler(search, 8)
    restore_scheduler(again, tmp_path / "s.pickle")
    rename_in_rungs(again, "b", "new")
    (*_, (milestone, values)) = again._brackets[0]._rungs
    assert (milestone, values) == (1, {"a": 0.9, "new": 0.1, "c": 0.5})
    (tmp_path / "s.pickle").write_bytes((tmp_path / "s.pickle").read_bytes()[:40])
    restore_scheduler(build_scheduler(search, 8), tmp_path / "s.pickle")
    assert "s.pickle cannot be read" in caplog.text
