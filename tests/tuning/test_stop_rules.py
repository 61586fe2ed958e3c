"""Rules that end a search, and the file that tells Tune to stop."""

import pickle

import pytest

import fednar_ray as fr
from fednar_ray.tracking.store import Store
from fednar_ray.tuning.search import start_search
from fednar_ray.tuning.stop_rules import StopFileStopper, StopRules
from fednar_ray.tuning.trial_table import FINISHED, TrialEntry, TrialTable
from tests.support.searches import IGNORED_WARNINGS, OPTUNA, build_search, draw_no_pages, show_nothing
from tests.support.trials import ROUNDS, build_trial_search, create_table, record_trials

pytestmark = IGNORED_WARNINGS


@pytest.mark.usefixtures("searches")
def test_stop_rules_end_the_search(uri: str, session: fr.RaySession) -> None:
    search = {**OPTUNA, "algorithm": "random", "trials": 50, "scheduler": "none"}
    reached = start_search(
        build_search(uri, {**search, "name": "target", "stop": {"target": 0.05}}), session, show_nothing
    )
    assert reached.ended_early is not None
    assert "reached search.stop.target (0.05)" in reached.ended_early
    assert len(reached.trials) < 10
    impatient_search = build_search(uri, {**search, "name": "impatient", "stop": {"patience_trials": 2}})
    with draw_no_pages():
        impatient = start_search(impatient_search, session, show_nothing)
    assert impatient.ended_early == "2 trials ended without a new best"
    assert len(impatient.trials) < 50


def add_finished_trial(table: TrialTable, value: float) -> TrialEntry:
    entry = TrialEntry(name=f"trial-{len(table.trials):04d}", values={}, status=FINISHED, rounds=ROUNDS, value=value)
    table.trials[entry.name] = entry
    return entry


@pytest.mark.parametrize(
    ("stop", "values", "met"),
    [
        ({"target": 0.8}, (0.5, 0.8), "trial-0001 reached search.stop.target (0.8)"),
        ({"patience_trials": 2}, (0.5, 0.4, 0.3), "2 trials ended without a new best"),
        ({"patience_trials": 2}, (0.5, 0.4, 0.6, 0.3), None),
        ({"wall_seconds": 1e-9}, (), "search.stop.wall_seconds (1e-09) have passed"),
        ({"wall_seconds": 1000}, (0.5,), None),
    ],
)
def test_the_first_rule_that_is_met_also_stops_a_pickled_stopper(
    stop: dict[str, float], values: tuple[float, ...], met: str | None, store: Store
) -> None:
    """Tune restores a pickled stopper when a search is resumed."""
    table, search = create_table(store), build_trial_search(stop=stop).search
    assert search is not None
    table.save()
    stopper = pickle.loads(pickle.dumps(StopFileStopper("small")))  # noqa: S301 - our own
    rules = StopRules(search, table)
    rules.check_time()
    for value in values:
        assert not stopper.stop_all()
        rules.count_ended_trial(add_finished_trial(table, value))
        rules.check_time()
    assert (rules.met, stopper.stop_all()) == (met, met is not None)
    rules.clear()
    assert not stopper.stop_all()
    assert not stopper("a", {})


def test_a_stop_file_of_a_killed_process_does_not_end_a_resumed_search(store: Store) -> None:
    table = create_table(store)
    table.save()
    table.files.stop_file.write_text("1 trial ended without a new best")
    with record_trials(table, store) as recorder:
        assert not StopFileStopper("small").stop_all()
        assert recorder.ended_early is None
