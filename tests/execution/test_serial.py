"""Failures of clients that train in the driver's own process."""

import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import fednar_ray as fr
from fednar_ray.core.errors import BadInput, DeviceError, ModelError, RunFailed
from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.experiments.iter_rounds import build_initial_state, train_rounds
from fednar_ray.experiments.placement import SerialTrainer, plan_in_this_process
from fednar_ray.experiments.prepare import prepare
from tests.support.faulty_models import (
    BAD,
    SENTINEL,
    Trap,
    build_experiment,
    build_federation,
    check_abort_with_cause,
    check_halves_after_running_out_of_memory,
    train,
    train_undisturbed,
    train_without_bad_client,
)


def test_a_client_that_raises_is_dropped() -> None:
    reports = train(build_experiment({"placement": "serial"}), Trap("raise", None))
    assert [dict(report.exclusions) for report in reports] == [
        {BAD: Exclusion(ExclusionReason.FAILED, "ArithmeticError: this client cannot be trained")}
    ] * 3
    assert reports[-1].parameters.tobytes() == train_without_bad_client()


@pytest.mark.parametrize(("what", "reason"), [("exit", "SystemExit(3)"), ("leave", "Leaves(for good)")])
@pytest.mark.parametrize("screening", [{}, {"max_deviation": 50}], ids=["one phase", "two phases"])
def test_an_exit_of_one_client_fails_only_that_client(what: str, reason: str, screening: dict[str, Any]) -> None:
    settings = build_experiment({"placement": "serial", "retries": 1}, screening=screening)
    reports = train(settings, Trap(what, None))
    expected = Exclusion(ExclusionReason.FAILED, f"UserCodeExited: the code raised {reason}")
    assert [report.exclusions for report in reports] == [{BAD: expected}] * 3
    assert reports[-1].parameters.tobytes() == train_without_bad_client()


class LosesGpu(Trap):
    """A model whose GPU fails in training, or in scoring."""

    fails_in: ClassVar[str | None] = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if LosesGpu.fails_in == ("training" if self.training else "scoring"):
            raise RuntimeError("CUDA error: device-side assert triggered\nCompile with …")
        return super().forward(x)


@pytest.mark.parametrize("when", ["training", "scoring"])
def test_a_run_ends_once_its_gpu_cannot_be_used_any_more(
    when: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = build_experiment({"placement": "serial", "vectorize": 2})
    prepared = prepare(settings, build_federation(), LosesGpu("", None))
    plan, pool = plan_in_this_process(prepared, torch.device("cpu")), SerialTrainer(prepared).build_pool(prepared)
    monkeypatch.setattr(LosesGpu, "fails_in", when)  # not in the trial before the first round
    with pytest.raises(DeviceError, match=r"cannot use its GPU any more: CUDA error: device-side assert triggered$"):
        next(train_rounds(prepared, plan, pool, build_initial_state(prepared)))
    assert "retrying" not in caplog.text


def test_an_exit_that_happens_once_changes_nothing(tmp_path: Path) -> None:
    reports = train(build_experiment({"placement": "serial"}), Trap("exit", tmp_path / "sprung"))
    assert (tmp_path / "sprung").exists()
    assert reports[-1].parameters.tobytes() == train_undisturbed()


def test_a_keyboard_interrupt_ends_the_run() -> None:
    with pytest.raises(KeyboardInterrupt):
        train(build_experiment({"placement": "serial"}), Trap("interrupt", None))


@pytest.mark.parametrize("always", [True, False])
def test_a_model_that_exits_in_the_forward_trial_is_refused(always: bool) -> None:
    calls: list[int] = []

    class Exits(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            if always or len(calls) == 4:
                sys.exit(5)
            return super().forward(x)

    with pytest.raises(BadInput, match=r"raised SystemExit\(5\)"):
        train(build_experiment({"placement": "serial"}), Exits(2, 3))


def test_a_function_that_exits_while_it_builds_the_model_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exits_of_a_user.py").write_text("import sys\n\ndef build():\n    sys.exit('usage: …')\n")
    monkeypatch.syspath_prepend(tmp_path)
    settings = build_experiment({"placement": "serial"}, model={"function": "exits_of_a_user.build"})
    with pytest.raises(ModelError, match=r"exits_of_a_user.build: fails .*raised SystemExit\(usage: …\)"):
        next(fr.iter_rounds(settings, federation=build_federation()))


@pytest.mark.parametrize("what", ["exit", "raise"])
def test_a_failure_in_scoring_ends_the_run_and_names_the_split(what: str) -> None:
    class FailsWhenScoring(Trap):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x if self.training else torch.full_like(x, SENTINEL))

    settings = build_experiment({"placement": "serial"}, federation={"participation": [[0, 1]] * 3})
    with pytest.raises(RunFailed, match=r"round 0: test cannot be scored: .*(SystemExit|ArithmeticError)"):
        train(settings, FailsWhenScoring(what, None))


def test_groups_that_run_out_of_memory_are_halved_and_no_client_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    check_halves_after_running_out_of_memory("serial", caplog)


def test_a_round_with_too_few_clients_left_is_aborted_with_the_cause() -> None:
    check_abort_with_cause("serial")


def test_a_round_takes_one_thread_as_in_an_actor_and_gives_the_others_back() -> None:
    seen: set[int] = set()

    class Counts(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.add(torch.get_num_threads())
            return super().forward(x)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        reports = fr.iter_rounds(
            build_experiment({"placement": "serial"}), federation=build_federation(), model=Counts(2, 3)
        )
        next(reports)
        seen.clear()  # of the forward trial
        next(reports)
        assert (seen, torch.get_num_threads()) == ({1}, 3)
    finally:
        torch.set_num_threads(before)
