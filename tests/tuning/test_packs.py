"""The trials of packs, from their start to their end, also across crashes and a killed driver. No Ray is started."""

from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from ray.tune.experiment import Trial

from fednar_ray.config import Document
from fednar_ray.tracking.journal import load_records
from fednar_ray.tracking.store import Store
from fednar_ray.tuning.trial_table import FAILED, FINISHED, RUNNING, TrialTable
from tests.support.packs import open_packs
from tests.support.searches import IGNORED_WARNINGS
from tests.support.trials import RATE, ROUNDS, build_plan, build_trial_search, create_table, open_trial

pytestmark = IGNORED_WARNINGS


class Killed(BaseException):
    """Stands for a killed process: the package does not catch it."""


def build_packed_search(trials: int, **search: Any) -> Document:
    return build_trial_search(trials=trials, checkpoint_seconds=0, **search)


def create_packed_table(store: Store, pack: int) -> TrialTable:
    table = create_table(store)
    table.pack = pack
    table.save()
    return table


def list_metrics(table: TrialTable) -> list[tuple[str, str, list[dict[str, float]]]]:
    """Returns what each trial has recorded, but how long it took."""
    return [
        (
            entry.name,
            entry.status,
            [_drop_times(record.metrics) for record in load_records(table.get_trial_directory(entry))],
        )
        for entry in sorted(table.trials.values(), key=lambda entry: entry.name)
    ]


def _drop_times(metrics: Any) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if "seconds" not in name}


def train_alone(table: TrialTable) -> list[tuple[str, str, list[dict[str, float]]]]:
    """Returns ``list_metrics`` of the same trials, each trained in a process of its own."""
    expected = []
    for entry in sorted(table.trials.values(), key=lambda entry: entry.name):
        trial = open_trial(entry.values, build_plan())
        while not trial.step()["done"]:
            pass
        assert trial._training is not None
        (federation,) = trial._training.federations
        expected.append((entry.name, FINISHED, [_drop_times(record.metrics) for record in federation.records]))
    return expected


def test_trials_of_packs_record_what_single_trials_record(store: Store) -> None:
    """Also if their settings differ in more than numbers, and two of them share data and model in their process."""
    kinds = {"regularizer.name": {"choice": ["fednar", "none"]}, "algorithm.name": {"choice": ["fedavg", "scaffold"]}}
    table = create_packed_table(store, pack=2)
    space = {RATE: {"uniform": [0.01, 0.2]}, **kinds}
    with open_packs(build_packed_search(5, space=space), table, store) as packs:
        packs.finish()
        assert not packs.packs.has_trials_left
    assert [(name, status) for name, status, _ in list_metrics(table)] == [
        (f"trial-000{i}", FINISHED) for i in range(5)
    ]
    assert list_metrics(table) == train_alone(table)
    client = MlflowClient(store.uri)
    for entry in table.trials.values():
        assert client.get_run(str(entry.run_id)).info.status == "FINISHED"
        steps = [point.step for point in client.get_metric_history(str(entry.run_id), "loss/train")]
        assert steps == list(range(ROUNDS))


def test_a_killed_search_continues_in_the_middle_of_its_packs(store: Store) -> None:
    document, table = build_packed_search(4), create_packed_table(store, pack=2)

    def kill(number: int) -> None:
        if number == ROUNDS + 2:  # the first two trials have ended, and the others have a checkpoint after two rounds
            raise Killed

    with pytest.raises(Killed), open_packs(document, table, store) as packs:
        packs.finish(kill)
    table = TrialTable.load("small")
    assert [entry.status for entry in table.trials.values()] == [FINISHED, FINISHED, RUNNING, RUNNING]
    with open_packs(document, table, store) as packs:
        assert {each.trial_id for each in packs.assigned} == {*table.trials} - {*list(table.trials)[:2]}
        assert all(each.checkpoints for each in packs.assigned)
        (one, other) = (report["rounds"] for _, report in packs.step()["reports"])
        assert (one, other) == (3, 3)  # only the last round was left
        packs.finish()
    assert list_metrics(table) == train_alone(table)


def test_a_pack_that_crashes_is_split_until_the_trial_that_harms_the_others_is_alone(store: Store) -> None:
    table = create_packed_table(store, pack=4)
    with open_packs(build_packed_search(5), table, store) as packs:
        packs.step()
        harmful, sizes = packs.assigned[1].trial_id, []
        while packs.assigned or packs.packs.has_trials_left:
            if any(each.trial_id == harmful for each in packs.assigned):  # each pack with it crashes
                sizes.append(len(packs.assigned))
                packs.crash(ValueError("this trial cannot be trained"))
                packs.packs.lose(packs.trial)
                packs.start()
            elif packs.assigned:
                packs.step()
            else:
                packs.start()
    assert sizes == [4, 2, 1]
    failed = table.trials[harmful]
    assert (failed.status, failed.failure) == (FAILED, "ValueError: this trial cannot be trained")
    others = [each for each in list_metrics(table) if each[0] != failed.name]
    assert others == [each for each in train_alone(table) if each[0] != failed.name]
    assert len(others) == 4


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no memory is left"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
    ids=["Python", "torch on a CPU", "torch on a GPU"],
)
def test_a_pack_that_runs_out_of_memory_is_halved_and_says_so(
    error: Exception, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    table = create_packed_table(store, pack=4)
    with open_packs(build_packed_search(6), table, store) as packs:
        packs.step()
        four = [each.trial_id for each in packs.assigned]
        packs.crash(error)
        packs.restart()
        assert [each.trial_id for each in packs.assigned] == four[:2]
        assert all(each.checkpoints for each in packs.assigned)
        sizes = []
        packs.finish(lambda number: sizes.append(len(packs.assigned)))
    assert "from now on packs have at most 2 trials" in caplog.text
    assert max(sizes) == 2
    assert list_metrics(table) == train_alone(table)
    assert len(table.trials) == 6


def test_processes_that_crash_before_they_know_their_trials_do_not_crash_forever(store: Store) -> None:
    table = create_packed_table(store, pack=2)
    with open_packs(build_packed_search(4), table, store) as packs:
        packs.packs.lose(packs.trial)  # its two trials wait
        crashes = 0
        while packs.packs.has_trials_left:
            packs.packs.lose(Trial("pack", stub=True))
            crashes += 1
    assert crashes == 4
    assert [entry.status for entry in table.trials.values()] == [FAILED] * 4


def test_no_trial_starts_after_a_stop_rule_is_met(store: Store) -> None:
    table = create_packed_table(store, pack=2)
    with open_packs(build_packed_search(6, stop={"target": 0.0}), table, store) as packs:
        packs.finish()
        assert not packs.packs.has_trials_left
    assert [entry.status for entry in table.trials.values()] == [FINISHED, FINISHED]
    assert RATE in next(iter(table.trials.values())).values
