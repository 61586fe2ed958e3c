"""What a packed search proposes, also when it is resumed from its table."""

from typing import Any

import pytest
from ray import tune

from fednar_ray.config import SearchSettings
from fednar_ray.tuning.proposals import Proposals, Row
from fednar_ray.tuning.trial import FederatedTrial
from fednar_ray.tuning.trial_table import FAILED, FINISHED, RUNNING, STOPPED, TrialEntry, TrialTable
from tests.support.searches import IGNORED_WARNINGS, draw_values
from tests.support.trials import RATE, build_trial_search

pytestmark = IGNORED_WARNINGS

OTHER = "algorithm.local_lr_anneal"
OPTUNA = {"algorithm": "optuna", "trials": 8, "space": {RATE: {"loguniform": [1e-3, 1]}, OTHER: {"choice": [0.9, 1]}}}


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tune.register_trainable("trial", FederatedTrial)


def open_proposals(search: SearchSettings, table: TrialTable) -> Proposals:
    return Proposals(search, table, "trial", table.pack)


def build_table(points: list[dict[str, Any]] | None = None) -> TrialTable:
    return TrialTable(name="small", tracking_uri="none", experiment_id="0", pack=2, points=points or [])


def take_all(proposals: Proposals) -> list[Row]:
    return [row for row in iter(proposals.propose, None) if row is not None]


def enter(table: TrialTable, rows: list[Row], status: str, value: float | None = 0.5) -> None:
    """Writes trials into the table, as the recorder does when they start."""
    for row in rows:
        name = f"trial-{len(table.trials):04d}"
        table.trials[row.trial.trial_id] = TrialEntry(
            name=name, values=row.trial.config, status=status, value=value, rounds=1
        )


def test_a_random_search_proposes_what_tune_would() -> None:
    document = build_trial_search(trials=5)
    assert document.search is not None
    point = {RATE: 0.123}
    proposals = open_proposals(document.search, build_table([point]))
    assert proposals.left == 5
    rows = take_all(proposals)
    assert [row.trial.config for row in rows] == [point, *draw_values(document)[:4]]
    assert proposals.left == 0
    assert not any(row.checkpoints for row in rows)


@pytest.mark.parametrize(
    "search",
    [
        {"trials": 6},
        {"algorithm": "grid", "trials": 2, "space": {RATE: {"grid": [0.1, 0.2, 0.3]}}},  # each point twice
        {**OPTUNA, "trials": 6},
    ],
)
def test_a_resumed_search_proposes_the_trials_that_have_not_ended(search: dict[str, Any]) -> None:
    section = build_trial_search(**search).search
    assert section is not None
    point = {key: domain.extremes[0] for key, domain in section.space.items()}
    table = build_table([] if section.algorithm == "grid" else [point])
    proposals = open_proposals(section, table)
    first = [proposals.propose() for _ in range(4)]
    ended, running = [row for row in first[:3] if row], first[3]
    assert running is not None
    for row, (status, value) in zip(ended, [(FINISHED, 0.9), (STOPPED, 0.1), (FAILED, None)], strict=True):
        enter(table, [row], status, value)
    enter(table, [running], RUNNING)
    known = {row.trial.trial_id for row in (*ended, running)}
    again = open_proposals(section, table)
    assert again.left == 3
    rows = take_all(again)
    assert (rows[0].trial.trial_id, rows[0].trial.config) == (running.trial.trial_id, running.trial.config)
    assert [row.checkpoints for row in rows] == [True, False, False]
    assert not known & {row.trial.trial_id for row in rows[1:]}
    if section.algorithm != "optuna":  # which learns from the trials that have ended
        assert [row.trial.config for row in rows[1:]] == [row.trial.config for row in take_all(proposals)]
    else:
        assert not {row.trial.config[RATE] for row in rows[1:]} & {row.trial.config[RATE] for row in (*ended, running)}


def test_all_trials_of_a_pack_are_proposed_at_once_and_optuna_learns_of_each() -> None:
    """Also of those that a resumed search knows from its table: TPE then prefers the better values."""
    section = build_trial_search(**{**OPTUNA, "trials": 60}).search
    assert section is not None
    table = build_table()
    proposals = open_proposals(section, table)
    for row in [proposals.propose() for _ in range(20)]:
        assert row is not None
        value = 1.0 if row.trial.config[OTHER] == 0.9 else 0.0
        proposals.tell(row, {"validation_accuracy": value, "training_iteration": 1}, ended=False)
        proposals.tell(row, {"validation_accuracy": value, "training_iteration": 2}, ended=True)
        enter(table, [row], FINISHED, value)
    for source in (proposals, open_proposals(section, table)):
        rows = take_all(source)
        assert len(rows) == 40
        better = sum(row.trial.config[OTHER] == 0.9 for row in rows)
        assert better >= 28, better
