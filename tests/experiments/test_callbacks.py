"""The callbacks of many runs: each run gets its own, and what cannot be copied is refused with a remedy."""

import threading

import pytest

import fednar_ray as fr
from fednar_ray.experiments.callbacks import build_callbacks
from fednar_ray.experiments.given import Given


class Counting(fr.RoundCallback):
    def __init__(self, start: int = 0) -> None:
        self.seen = start


class Locked(fr.RoundCallback):
    def __init__(self) -> None:
        self.lock = threading.Lock()


def needs_an_argument(path: str) -> fr.RoundCallback:
    return Counting()


def test_each_run_gets_a_copy_of_a_callback_or_a_new_one() -> None:
    given = Counting(start=3)
    sources = [given, Counting, lambda: Counting(7)]
    first, again = build_callbacks(sources), build_callbacks(sources)
    for built in (first, again):
        assert [type(each) for each in built] == [Counting] * 3
        assert [each.seen for each in built] == [3, 0, 7]  # type: ignore[attr-defined]
    for one, other in zip(first, again, strict=True):
        assert one is not other
        assert one is not given


def test_what_is_made_anew_need_not_be_copied() -> None:
    (callback,) = build_callbacks([Locked])
    assert isinstance(callback, Locked)
    Given(callbacks=(Locked, fr.EarlyStopping(3))).check_can_travel()


def test_all_problems_are_reported_at_once_with_a_remedy() -> None:
    with pytest.raises(fr.ConfigError) as caught:
        build_callbacks([Locked(), 3, needs_an_argument, lambda: 4])  # type: ignore[list-item]
    locked, number, argument, four = caught.value.problems
    assert locked.startswith("callbacks.0: ")
    assert "cannot be copied for each run: TypeError: cannot pickle" in locked
    assert locked.endswith("; give a function that returns a new callback, or its class")
    assert number.startswith("callbacks.1: 3: is not a callback")
    assert "callbacks.2: " in argument
    assert "fails when it is called without arguments: TypeError" in argument
    assert "returns 4, which is not a callback" in four


def test_a_callback_that_cannot_reach_the_processes_of_trials_is_refused() -> None:
    lock = threading.Lock()
    given = Given(callbacks=(lambda: Counting(int(lock.locked())),))
    assert len(given.build_callbacks()) == 1  # in this process it can be used
    with pytest.raises(fr.ConfigError, match=r"callbacks: 0: .*: cannot be sent to other processes: cannot pickle"):
        given.check_can_travel()
