"""The assignment of calls to actors: pure decisions, tested on slots without actors."""

from typing import Any

import pytest

from fednar_ray.execution.dispatch import choose_slot, find_absent_slots, find_next_dispatch
from fednar_ray.execution.queue import Call, CallQueue
from fednar_ray.execution.slots import Slot
from tests.support.faulty_models import build_tasks


def build_slots(count: int, *, starting: tuple[int, ...] = ()) -> list[Slot]:
    return [Slot(i, f"actor {i}", "starting" if i in starting else None) for i in range(count)]


def build_queue(count: int, slots: list[int | None] | None = None) -> CallQueue[Any]:
    return CallQueue(build_tasks(*((i,) for i in range(count))), slots or [None] * count)


def dispatch_all(queue: CallQueue[Any], slots: list[Slot], *, dedicated: bool = False) -> list[tuple[int, int]]:
    """Sends calls until nothing more can be sent; returns the index of each call and its slot."""
    sent = []
    while (found := find_next_dispatch(queue, slots, dedicated=dedicated)) is not None:
        call, slot = found
        queue.mark_sent(call)
        slot.add(object(), call)
        sent.append((call.key[0], slot.index))
    return sent


def test_calls_are_spread_over_ready_actors_with_two_per_actor() -> None:
    assert dispatch_all(build_queue(9), build_slots(2)) == [(0, 0), (1, 1), (2, 0), (3, 1)]
    assert dispatch_all(build_queue(9), build_slots(2, starting=(0,))) == [(0, 1), (1, 1)]
    assert dispatch_all(build_queue(9), build_slots(1, starting=(0,))) == []


def test_results_that_wait_for_an_earlier_one_count_as_outstanding() -> None:
    queue, slots = build_queue(9), build_slots(2)
    dispatch_all(queue, slots)
    for slot in slots:  # all but the first call arrive
        for ref, call in list(slot.calls):
            if call.key != (0,):
                queue.arrive(slot.remove(ref), "result")
    assert dispatch_all(queue, slots) == []  # three results wait and one call runs
    ref, call = slots[0].calls[0]
    slots[0].remove(ref)
    queue.requeue(call)
    assert dispatch_all(queue, slots)[0] == (0, 0)  # the call that all others wait for is exempt


def test_a_dedicated_call_waits_for_its_own_slot_and_others_pass_it() -> None:
    queue, slots = build_queue(3, [0, 1, 2]), build_slots(3, starting=(1,))
    assert dispatch_all(queue, slots, dedicated=True) == [(0, 0), (2, 2)]
    assert find_absent_slots(queue, slots) == [slots[1]]


def test_a_preferred_slot_that_is_starting_is_skipped_in_a_pool() -> None:
    slots = build_slots(2, starting=(1,))
    (call,) = build_queue(1, [1]).waiting
    assert choose_slot(call, slots, dedicated=False) is slots[0]
    assert choose_slot(call, slots, dedicated=True) is None


@pytest.mark.parametrize(("avoid", "chosen"), [((), 0), ((0,), 1), ((0, 1), 0)])
def test_a_call_avoids_slots_where_it_failed_if_another_is_ready(avoid: tuple[int, ...], chosen: int) -> None:
    slots = build_slots(2)
    (call,) = build_queue(1).waiting
    call.avoid = frozenset(avoid)
    assert choose_slot(call, slots, dedicated=False) is slots[chosen]


def test_a_call_that_must_run_alone_shares_its_actor_with_no_other_call() -> None:
    (slot,) = slots = build_slots(1)
    first, second = Call((0,), build_tasks((0,))[0]), Call((1,), build_tasks((1,))[0])
    slot.add("ref", first)
    assert choose_slot(second, slots, dedicated=False) is slot
    second.alone = True
    assert choose_slot(second, slots, dedicated=False) is None
    second.alone, first.alone = False, True
    assert choose_slot(second, slots, dedicated=False) is None
