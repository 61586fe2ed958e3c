"""A trial in its process: it resumes from its checkpoint, and does not train if its result is recorded."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

import fednar_ray as fr
from fednar_ray.experiments.given import Given
from fednar_ray.tuning.search import start_search
from fednar_ray.tuning.trial_plan import build_values_key
from fednar_ray.tuning.trial_report import TrialReport
from tests.support.searches import IGNORED_WARNINGS, RATE, SEARCH_ROUNDS, build_search, list_outcomes, train_alone
from tests.support.trial_processes import KillOnce
from tests.support.trial_reports import build_report
from tests.support.trials import build_plan, open_trial

pytestmark = IGNORED_WARNINGS


@pytest.mark.usefixtures("searches")
def test_a_trial_whose_process_is_killed_resumes_from_its_checkpoint(uri: str, session: fr.RaySession) -> None:
    search = {"algorithm": "grid", "space": {RATE: {"grid": [0.05, 0.1]}}, "report_rounds": 1, "retries": 3}
    document = build_search(uri, search)
    kill_once = KillOnce("FederatedTrial")
    disturbed = start_search(document, session, kill_once)
    assert kill_once.killed
    assert list_outcomes(disturbed) == train_alone(document, [{RATE: 0.05}, {RATE: 0.1}])
    for entry in disturbed.trials:
        steps = [m.step for m in MlflowClient(uri).get_metric_history(entry.run_id, "loss/train")]
        assert steps == list(range(SEARCH_ROUNDS))


def test_rays_dashboard_names_actors_by_their_trial(session: fr.RaySession) -> None:
    from ray._private.state import actors as list_actors

    plan = build_plan()
    execution = {"placement": "pooled", "actors": 1, "cpus_per_actor": 0.5, "vectorize": 1}
    plan = replace(plan, execution=execution, search=plan.search.model_copy(update={"seeds": 2}))
    trial = open_trial({RATE: 0.05}, plan)
    try:
        assert repr(trial) == "small"  # of the process that trains trials
        names = {actor["Name"] for actor in list_actors().values() if actor["State"] != "DEAD"}
        assert {f"small trial {trial.trial_id} seed {seed} actor 0" for seed in (0, 1)} <= names
    finally:
        trial.cleanup()
        trial._session.close()


@pytest.mark.parametrize(
    ("metric", "mode", "worst"),
    [
        ("validation_accuracy", "max", 0.0),
        ("client_accuracy_worst_decile", "max", 0.0),
        ("validation_r2", "max", -math.inf),  # a bad fit is worse than 0
        ("validation_profit", "max", -math.inf),  # a user's own metric
        ("validation_rmse", "min", math.inf),
    ],
)
def test_a_trial_that_diverges_reports_a_value_below_that_of_any_model(metric: str, mode: str, worst: float) -> None:
    plan = build_plan()
    search = plan.search.model_copy(update={"metric": metric, "mode": mode})
    plan = replace(plan, search=search, raw={**plan.raw, "regularizer": {"name": "none", "weight_decay": 0}})
    trial = open_trial({RATE: 1e30}, plan)
    report = trial.step()
    trial.cleanup()
    assert report["done"]
    assert report["failure"] is not None
    assert math.isfinite(report[metric])  # for the schedulers
    assert TrialReport.from_tune({**report, "trial_id": "a"}, metric).value == worst


def test_a_recorded_trial_returns_its_result_and_trains_nothing() -> None:
    recorded = build_report(done=True)
    plan = replace(build_plan(), recorded={build_values_key({RATE: 0.05}): recorded})
    again, other = open_trial({RATE: 0.05}, plan), open_trial({RATE: 0.06}, plan)
    result = again.step()
    assert (result["validation_accuracy"], result["rounds"], result["done"]) == (0.5, 2, True)
    assert result["lines"] == ("{}",)
    assert again._training is None
    assert other.step()["rounds"] == 1
    assert again.reset_config({RATE: 0.07})  # the process is reused for another trial
    assert again.step()["rounds"] == 1
    assert again.reset_config({RATE: 0.05})
    assert again.step() == result


def test_callbacks_see_the_rounds_of_their_federation_and_end_the_trial_together() -> None:
    made: list[fr.RoundCallback] = []

    class Seen(fr.RoundCallback):
        def __init__(self) -> None:
            self.calls: list[object] = []
            made.append(self)

        def on_round_end(self, report: fr.RoundReport) -> None:
            assert not any(name.startswith("test_") for name in report.metrics)
            self.calls.append(report.round_index)
            if report.round_index >= made.index(self):  # the first federation wants to end after one round
                raise fr.StopRun(f"enough for {made.index(self)}")

        def on_run_end(self) -> None:
            self.calls.append("end")

    plan = build_plan()
    search = plan.search.model_copy(update={"seeds": 2, "report_rounds": 1})
    trial = open_trial({RATE: 0.05}, replace(plan, given=Given(callbacks=(lambda: Seen(),)), search=search))
    first, second = trial.step(), trial.step()
    assert (first["ended"], first["done"]) == (None, False)
    assert (second["ended"], second["done"], second["rounds"]) == ("enough for 0", True, 2)
    trial.cleanup()
    assert [vars(each)["calls"] for each in made] == [[0, 1, "end"]] * 2


def test_a_trial_that_continues_from_a_checkpoint_tells_its_callbacks(tmp_path: Path) -> None:
    resumed: list[int] = []

    class Seen(fr.RoundCallback):
        def on_resume(self, history: Sequence[fr.RoundRecord]) -> None:
            resumed.append(len(history))

    plan = build_plan()
    search = plan.search.model_copy(update={"report_rounds": 1})
    plan = replace(plan, given=Given(callbacks=(Seen,)), search=search)
    trial, again = open_trial({RATE: 0.05}, plan), open_trial({RATE: 0.05}, plan)
    trial.step()
    trial.save_checkpoint(str(tmp_path))
    assert resumed == []
    again.load_checkpoint(str(tmp_path))
    again.step()
    assert resumed == [1]
