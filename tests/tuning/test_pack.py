"""A pack in its process: its trials end alone, continue from their checkpoints, and are those that are assigned."""

import shutil
from dataclasses import replace
from pathlib import Path

from fednar_ray.tuning.pack import REPORTS_KEY, Assignment
from tests.support.packs import open_pack, step
from tests.support.searches import IGNORED_WARNINGS
from tests.support.trials import RATE, ROUNDS, build_plan, open_trial

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
