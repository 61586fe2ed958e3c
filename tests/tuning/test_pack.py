"""A pack in its process: its trials end alone, continue from their checkpoints, and are those that are assigned."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fednar_ray.core.errors import DeviceError
from fednar_ray.experiments.given import Given
from fednar_ray.experiments.prepare import load_experiment_data
from fednar_ray.tuning.pack import REPORTS_KEY, Assignment, PackTrainable
from fednar_ray.tuning.trial_plan import TrialPlan
from tests.support.faulty_models import unwrap_group
from tests.support.packs import open_pack, step
from tests.support.searches import IGNORED_WARNINGS
from tests.support.trials import RATE, ROUNDS, build_plan, build_trial_search, open_trial

pytestmark = IGNORED_WARNINGS

GOOD = Assignment(trial_id="good", values={RATE: 0.05})
OTHER = Assignment(trial_id="other", values={RATE: 0.1})


def train_alone(rate: float) -> list[float]:
    """Returns the value after each round."""
    trial = open_trial({RATE: rate}, build_plan())
    return [trial.step()["validation_accuracy"] for _ in range(ROUNDS)]


def test_a_trial_that_diverges_or_cannot_start_ends_alone() -> None:
    plan = build_plan()
    plan = replace(plan, raw={**plan.raw, "regularizer": {"name": "none", "weight_decay": 0}})
    alone = open_trial(dict(GOOD.values), plan)
    pack = open_pack(plan)
    assert pack.step()[REPORTS_KEY] is None  # it does not know its trials yet
    bad, wrong = (Assignment(trial_id=f"{rate}", values={RATE: rate}) for rate in (1e30, -1))
    pack.assign([bad, GOOD, wrong])
    first = step(pack)
    assert set(first) == {"good", "1e+30", "-1"}
    assert "not finite" in str(first["1e+30"].failure)
    assert "local_lr: -1 should be" in str(first["-1"].failure)
    assert (first["1e+30"].done, first["-1"].done, first["good"].done) == (True, True, False)
    assert first["-1"].value == first["1e+30"].value == 0
    pack.assign([GOOD])
    second = step(pack)["good"]
    expected = [alone.step()["validation_accuracy"] for _ in range(2)]
    assert [first["good"].value, second.value] == expected
    pack.cleanup()


def test_a_pack_trains_the_trials_that_are_assigned_and_no_others() -> None:
    pack = open_pack(build_plan())
    pack.assign([GOOD])
    values = [step(pack)["good"].value]
    pack.assign([GOOD, OTHER])
    values.append(step(pack)["good"].value)
    pack.assign([GOOD, OTHER])  # the same again
    last = step(pack)
    assert [*values, last["good"].value] == train_alone(0.05)
    assert (last["good"].done, last["other"].rounds) == (True, 2)
    pack.assign([])
    assert step(pack) == {}
    assert pack.reset_config({})  # the process is reused for another pack
    assert pack.step()[REPORTS_KEY] is None


class Crowded(torch.nn.Linear):
    """A model of a user that fails if more than ``most`` clients are trained as one matrix."""

    most = 10**9
    error: Exception = MemoryError("no memory is left")

    def forward(self, x: Tensor) -> Tensor:
        group = unwrap_group(x)
        if group.ndim > x.ndim and len(group) > Crowded.most:
            raise Crowded.error
        return super().forward(x.flatten(1))


TRIALS = [Assignment(trial_id=f"{rate}", values={RATE: rate}) for rate in (0.05, 0.1, 0.2, 0.02)]


def open_crowded_pack(trials: Sequence[Assignment]) -> PackTrainable:
    """Returns a pack whose trials have groups of three clients."""
    torch.manual_seed(0)
    document = build_trial_search()
    assert document.search is not None
    raw = {key: value for key, value in document.raw.items() if key not in ("data", "model")}
    raw["federation"] = {**raw["federation"], "clients_per_round": 3}
    execution = {"placement": "serial", "vectorize": 3}
    given = Given(federation=load_experiment_data(document.experiment), model=Crowded(64, 10))
    pack = open_pack(TrialPlan(raw=raw, execution=execution, search=document.search, given=given))
    pack.assign(trials)
    assert not pack._follow(trials)  # as in the first step; from now on the model may fail
    return pack


def train_all(pack: PackTrainable) -> list[bytes]:
    """Returns the parameters of a pack's trials after two rounds."""
    for _ in range(2):
        step(pack)
    return [training.federations[0].parameters.tobytes() for training in pack._trainings.values()]


def test_a_model_that_runs_out_of_memory_in_a_matrix_is_trained_in_smaller_ones(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [train_all(open_crowded_pack([trial]))[0] for trial in TRIALS]
    pack = open_crowded_pack(TRIALS)
    monkeypatch.setattr(Crowded, "most", 6)  # of the 12 clients of all trials
    assert train_all(pack) == alone
    messages = [each.getMessage() for each in caplog.records if "out of memory" in each.getMessage()]
    assert messages == ["out of memory: packs train at most 6 clients as one matrix from now on"]


def test_a_trial_that_runs_out_of_memory_ends_its_process_unless_it_is_alone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, one = open_crowded_pack(TRIALS[:2]), open_crowded_pack(TRIALS[:1])
    monkeypatch.setattr(Crowded, "most", 2)
    with pytest.raises(MemoryError):  # which splits the pack: a trial of its own may have the memory for its group
        two.step()
    assert "training its two halves" not in caplog.text
    train_all(one)
    assert "training its two halves" in caplog.text  # as in its own run


def test_a_pack_ends_its_process_once_its_gpu_cannot_be_used_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    pack = open_crowded_pack(TRIALS)
    monkeypatch.setattr(Crowded, "most", 3)
    monkeypatch.setattr(Crowded, "error", RuntimeError("CUDA error: an illegal memory access was encountered"))
    with pytest.raises(DeviceError, match="CUDA error: an illegal memory access"):
        pack.step()


def test_a_trial_continues_from_the_newest_checkpoint_that_can_be_loaded(tmp_path: Path) -> None:
    plan = build_plan()
    plan = replace(plan, search=plan.search.model_copy(update={"checkpoint_seconds": 0.0}))
    pack, folders = open_pack(plan), [str(tmp_path / f"{i}") for i in range(2)]
    pack.assign([GOOD, OTHER])
    for folder in folders:
        assert pack.step()["should_checkpoint"]
        pack.save_checkpoint(folder)
    pack.cleanup()
    for path in Path(folders[1], "good").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:50])  # the process was killed while it was copied
    shutil.rmtree(Path(folders[1], "other"))
    newest_first = folders[::-1]
    again = open_pack(plan)
    again.assign(
        [replace(each, checkpoints=tuple(f"{f}/{each.trial_id}" for f in newest_first)) for each in (GOOD, OTHER)]
    )
    reports = step(again)
    assert {trial_id: report.rounds for trial_id, report in reports.items()} == {"good": 2, "other": 2}
    assert [reports["good"].value, step(again)["good"].value] == train_alone(0.05)[1:]
    again.cleanup()
