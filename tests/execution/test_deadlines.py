"""The time that a pool waits: pure decisions, tested on slots without actors."""

from fednar_ray.config import ExecutionSettings
from fednar_ray.execution.deadlines import Deadline, NoActor, SlowCall, SlowStart, TimeLimits, compute_wait_seconds
from fednar_ray.execution.queue import Call
from fednar_ray.execution.slots import Slot
from tests.support.faulty_models import build_tasks

LIMITS = TimeLimits(call_seconds=10, start_seconds=60)


def build_slot(index: int, *, starting_since: float | None = None, busy_since: float | None = None) -> Slot:
    slot = Slot(index, "actor", None if starting_since is None else "starting", starting_since=starting_since or 0)
    if busy_since is not None:
        slot.add("ref", Call((0,), build_tasks((0,))[0]))
        slot.busy_since = busy_since
    return slot


def test_limits_follow_from_the_settings() -> None:
    settings = ExecutionSettings(client_timeout_seconds=3, capacity_timeout_seconds=4)
    assert TimeLimits.from_settings(settings) == TimeLimits(call_seconds=3, start_seconds=4)


def test_without_a_ready_actor_only_the_time_without_one_counts() -> None:
    slots = [build_slot(i, starting_since=100) for i in range(2)]
    assert LIMITS.find_deadlines(slots, slots, none_ready_since=102) == [Deadline(162, NoActor())]


def test_each_call_and_each_awaited_start_has_a_deadline() -> None:
    idle, busy, starting, other = (
        build_slot(0),
        build_slot(1, busy_since=5),
        *(build_slot(i, starting_since=7) for i in (2, 3)),
    )
    deadlines = LIMITS.find_deadlines([idle, busy, starting, other], [starting], none_ready_since=0)
    assert deadlines == [Deadline(67, SlowStart(starting)), Deadline(15, SlowCall(busy))]
    assert compute_wait_seconds(deadlines, now=12) == 3
    assert compute_wait_seconds(deadlines, now=20) == 0


def test_without_limits_a_pool_waits_forever() -> None:
    limits = TimeLimits(call_seconds=None, start_seconds=60)
    deadlines = limits.find_deadlines([build_slot(0, busy_since=5)], [], none_ready_since=0)
    assert compute_wait_seconds(deadlines, now=12) is None


def test_a_start_is_overdue_after_its_limit_but_never_after_it_has_ended() -> None:
    starting, ready = build_slot(0, starting_since=7), build_slot(1)
    assert [LIMITS.is_start_overdue(starting, now) for now in (66, 67)] == [False, True]
    assert not LIMITS.is_start_overdue(ready, 1e9)
