"""Decides which call is sent to which actor next, from the state of the queue and of the pool's slots."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from fednar_ray.core.messages import GroupTask, TermTask
from fednar_ray.execution.queue import Call, CallQueue
from fednar_ray.execution.slots import CALLS_PER_ACTOR, Slot


def find_next_dispatch(
    queue: CallQueue[Any], slots: Sequence[Slot], *, dedicated: bool
) -> tuple[Call[Any], Slot] | None:
    """Finds the first call in dispatch order that may be sent now, and its slot.

    At most ``CALLS_PER_ACTOR`` results per actor are outstanding, so that the driver's memory does not grow with the
    round. The call that all other results wait for is exempt.

    Args:
        queue: The calls of the round.
        slots: The slots of the pool.
        dedicated: Whether each call may run only in its own slot.

    Returns:
        The call and the slot, or None if nothing can be sent until something else happens.
    """
    if not any(slot.has_room for slot in slots):
        return None
    outstanding = queue.arrived_count + sum(len(slot.calls) for slot in slots)
    is_full = outstanding >= CALLS_PER_ACTOR * len(slots)
    for call in queue.waiting:
        if is_full and not queue.is_due(call):
            return None
        slot = choose_slot(call, slots, dedicated=dedicated)
        if slot is not None:
            return call, slot
    return None


def choose_slot(call: Call[Any], slots: Sequence[Slot], *, dedicated: bool) -> Slot | None:
    """Returns the least loaded slot that accepts a call, or None if there is none now.

    A call goes to its own slot if it has one. Otherwise it avoids the slots where it failed, if another is ready.
    """
    if call.slot is not None and (dedicated or slots[call.slot].is_ready):
        own = slots[call.slot]
        return own if own.accepts(call) else None
    ready = [slot for slot in slots if slot.is_ready]
    elsewhere = [slot for slot in ready if slot.index not in call.avoid]
    accepting = [slot for slot in elsewhere or ready if slot.accepts(call)]
    return min(accepting, key=lambda slot: len(slot.calls), default=None)


def find_absent_slots(queue: CallQueue[Any], slots: Sequence[Slot]) -> list[Slot]:
    """Returns the slots of a dedicated pool that waiting calls need and whose actors are still starting."""
    needed = {call.slot for call in queue.waiting}
    return [slot for slot in slots if slot.index in needed and not slot.is_ready]


def join_terms(tasks: Sequence[GroupTask], actors: int) -> list[GroupTask | TermTask]:
    """Joins the client groups of each term into one call, as far as every actor gets the same number of terms.

    Args:
        tasks: The groups of a round, in dispatch order.
        actors: The number of actors that may take any of them.
    """
    terms = [tuple(groups) for term, groups in groupby(tasks, key=lambda task: task.term) if term is not None]
    if not terms:
        return list(tasks)
    whole = len(terms) - len(terms) % actors
    rest = [task for groups in terms[whole:] for task in groups]
    return [*(TermTask(groups=groups) for groups in terms[:whole]), *rest]
