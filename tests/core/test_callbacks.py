"""Callbacks of a run: the order in which they are called, and which of them receive an error."""

from typing import Any, cast

import pytest

from fednar_ray.core.callbacks import CallbackList, RoundCallback, StopRun


class Recording(RoundCallback):
    """Appends every call to a list."""

    def __init__(self, name: str, calls: list[str], fails_in: str = "") -> None:
        self._name, self._calls, self._fails_in = name, calls, fails_in

    def _record(self, call: str) -> None:
        self._calls.append(f"{self._name}.{call}")
        if call == self._fails_in:
            raise OSError(f"{self._name} failed")

    def on_run_start(self) -> None:
        self._record("start")

    def on_round_end(self, report: Any) -> None:
        self._record(f"round {report}")

    def on_run_end(self) -> None:
        self._record("end")

    def on_error(self, error: BaseException) -> None:
        self._record(f"error {type(error).__name__}")


def train(*callbacks: RoundCallback, rounds: int = 0, error: type[BaseException] | None = None) -> None:
    """Runs rounds with these callbacks, and then raises ``error`` if it is given."""
    with CallbackList() as started:
        for callback in callbacks:
            assert started.start(callback) is callback
        for index in range(rounds):
            started.on_round_end(cast("Any", index))
        if error is not None:
            raise error


def test_rounds_call_forward_and_the_end_calls_backward() -> None:
    calls: list[str] = []
    train(Recording("a", calls), Recording("b", calls), rounds=2)
    assert calls == ["a.start", "b.start", "a.round 0", "b.round 0", "a.round 1", "b.round 1", "b.end", "a.end"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_error_reaches_every_callback_that_was_started_and_propagates(error: type[BaseException]) -> None:
    calls: list[str] = []
    with pytest.raises(error):
        train(Recording("a", calls), Recording("b", calls), error=error)
    assert calls[2:] == [f"b.error {error.__name__}", f"a.error {error.__name__}"]


@pytest.mark.parametrize(
    ("fails_in", "called"),
    [
        ("start", ["a.start", "b.start", "a.error OSError"]),
        ("round 0", ["a.start", "b.start", "a.round 0", "b.round 0", "b.error OSError", "a.error OSError"]),
        ("end", ["a.start", "b.start", "a.round 0", "b.round 0", "b.end", "a.error OSError"]),
    ],
)
def test_an_error_of_a_callback_is_passed_to_those_that_started_before_it(fails_in: str, called: list[str]) -> None:
    """A callback that fails to start is not ended; one that fails at its end is not ended again."""
    calls: list[str] = []
    with pytest.raises(OSError, match="b failed"):
        train(Recording("a", calls), Recording("b", calls, fails_in=fails_in), rounds=1)
    assert calls == called


def test_a_callback_that_overrides_nothing_does_nothing() -> None:
    train(RoundCallback(), rounds=1)


class Stopping(Recording):
    """Asks for the end of the run after every round."""

    def on_round_end(self, report: Any) -> None:
        super().on_round_end(report)
        raise StopRun(f"{self._name} stops")


def test_a_callback_that_stops_the_run_ends_it_without_an_error_and_after_the_others() -> None:
    calls: list[str] = []
    with CallbackList() as started:
        for callback in (Stopping("a", calls), Recording("b", calls), Stopping("c", calls)):
            started.start(callback)
        assert started.on_round_end(cast("Any", 0)) == "a stops; c stops"
    assert calls[3:] == ["a.round 0", "b.round 0", "c.round 0", "c.end", "b.end", "a.end"]


def test_a_run_continues_if_no_callback_stops_it() -> None:
    with CallbackList() as started:
        started.start(Recording("a", []))
        assert started.on_round_end(cast("Any", 0)) is None
