"""The order in which a pool returns the results of a round."""

import itertools

import numpy as np

from fednar_ray.core.messages import GroupTask
from fednar_ray.execution.queue import CallQueue
from tests.support.faulty_models import build_tasks


def test_results_are_returned_in_dispatch_order() -> None:
    for order in itertools.permutations(range(3)):
        queue = CallQueue(build_tasks((1, 2), (3,), (4,)), [None] * 3)
        calls, left = list(queue.waiting), []
        for call in calls:
            queue.mark_sent(call)
        for index in order:
            queue.arrive(calls[index], index)
            left += queue.pop_due()
        assert left == [0, 1, 2]
        assert queue.is_finished


def test_halves_take_the_position_of_their_group() -> None:
    queue = CallQueue(build_tasks((1, 2, 3), (4,)), [None] * 2)
    first, second = queue.waiting
    queue.mark_sent(first)
    queue.mark_sent(second)
    queue.arrive(second, "4")
    queue.split(first, attempts=2)
    halves = list(queue.waiting)
    assert [(h.work.client_ids, h.attempts, queue.is_due(h)) for h in halves] == [((1, 2), 2, True), ((3,), 2, False)]
    queue.mark_sent(halves[0])
    queue.split(halves[0], attempts=2)
    for call in list(queue.waiting):
        queue.mark_sent(call)
        queue.arrive(call, call.work.client_ids)
    assert list(queue.pop_due()) == [(1,), (2,), (3,), "4"]


def test_each_half_keeps_the_states_and_factors_of_its_clients() -> None:
    rows = tuple(np.full(2, i, dtype=np.float32) for i in range(3))
    task = GroupTask(client_ids=(7, 8, 9), states=rows, factors=(0.0, 1.0, 0.5), return_rows=True)
    first, second = task.halves()
    assert (first.client_ids, first.factors, first.return_rows) == ((7, 8), (0.0, 1.0), True)
    assert (second.client_ids, second.factors) == ((9,), (0.5,))
    assert second.states is not None
    assert second.states[0] is rows[2]
