"""Lines of progress: one per stage, and one per minute while nothing else is printed."""

from itertools import pairwise

import pytest

from fednar_ray.core import stages
from fednar_ray.core.stages import ProgressLines, announce, open_lines, update
from tests.support.servers import wait_for


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def printed() -> list[str]:
    return []


@pytest.fixture
def lines(clock: Clock, printed: list[str]) -> ProgressLines:
    return ProgressLines(printed.append, clock)


def test_a_stage_is_said_at_once_and_only_once(lines: ProgressLines, printed: list[str]) -> None:
    for stage in ("loading the data", "starting Ray", "loading the data"):
        lines.announce(stage)
    assert printed == ["loading the data …", "starting Ray …"]


def test_a_minute_without_a_line_repeats_the_newest_one(lines: ProgressLines, clock: Clock, printed: list[str]) -> None:
    lines.announce("waiting for 3 Ray actors")
    for second in range(1, 181):
        clock.seconds = second
        lines.beat()
    assert printed == [
        "waiting for 3 Ray actors …",
        *(f"still at work, {minutes} min after: waiting for 3 Ray actors …" for minutes in (1, 2, 3)),
    ]


@pytest.mark.parametrize("seconds", [0.5, 7.0, 45.0, 200.0])
def test_no_minute_passes_without_a_line_however_long_a_round_takes(
    seconds: float, lines: ProgressLines, clock: Clock
) -> None:
    """Rounds are only due at the end; all other lines come from the clock."""
    written = [0.0]

    def write(_: str) -> None:
        written.append(clock.seconds)

    lines.show("round 0/100", write, now=True)
    for done in range(1, 101):
        while clock.seconds + 1 < done * seconds:
            clock.seconds += 1
            lines.beat()
        clock.seconds = done * seconds
        lines.show(f"round {done}/100", write, now=done == 100)
    assert max(after - before for before, after in pairwise(written)) <= 61
    assert len(written) <= 3 + 100 * max(seconds / 60, seconds > 60)  # and not many more


def test_a_round_that_is_not_due_is_written_once_a_minute_has_passed(
    lines: ProgressLines, clock: Clock, printed: list[str]
) -> None:
    lines.show("round 1/100", printed.append, now=False)
    clock.seconds = 59.0
    lines.beat()
    assert printed == []
    clock.seconds = 60.0
    lines.beat()
    assert printed == ["round 1/100"]  # nobody has seen it, so that it is no repetition
    clock.seconds = 120.0
    lines.show("round 2/100", printed.append, now=False)
    assert printed[1:] == ["round 2/100"]


def test_nothing_is_printed_unless_lines_are_open(printed: list[str]) -> None:
    announce("starting Ray")
    update("round 1/3")
    with open_lines(printed.append, repeat=False) as outer:
        announce("starting Ray")
        with open_lines(lambda _: pytest.fail("lines are open already"), repeat=True) as inner:
            assert inner is outer
            announce("loading the data")
        announce("drawing the page")
    announce("sending")
    assert printed == ["starting Ray …", "loading the data …", "drawing the page …"]


def test_lines_that_are_repeated_are_looked_after_by_a_thread(
    printed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread needs no clock of its own: whenever it looks, ``beat`` decides."""
    monkeypatch.setattr(stages, "CHECK_SECONDS", 0.001)
    monkeypatch.setattr(stages, "PATIENCE_SECONDS", 0.0)
    with open_lines(printed.append, repeat=True):
        announce("starting Ray")
        wait_for(lambda: len(printed) > 2)
    assert printed[1] == "still at work, 0 min after: starting Ray …"
