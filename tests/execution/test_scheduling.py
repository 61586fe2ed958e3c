"""The nodes on which actors start."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednar_ray.execution.scheduling import pack_actors


@pytest.mark.parametrize(
    ("free", "gpus", "count", "chosen"),
    [
        ({"a": 2, "b": 4}, 0, 3, ["b", "b", "b"]),
        ({"a": 2, "b": 4}, 0, 2, ["a", "a"]),  # the smaller node is large enough
        ({"a": 2, "b": 4}, 0, 5, ["b", "b", "b", "b", "a"]),
        ({"a": 1, "b": 1}, 0, 3, ["a", "b", None]),
        ({}, 0, 2, [None, None]),
        ({"a": 8}, 0.5, 3, ["a", "a", None]),  # of one GPU
    ],
)
def test_actors_are_packed_on_as_few_nodes_as_possible(
    free: dict[str, float], gpus: float, count: int, chosen: list[str | None]
) -> None:
    assert pack_actors({node: {"CPU": cpus, "GPU": 1} for node, cpus in free.items()}, 1, gpus, count) == chosen


@given(cpus=st.lists(st.integers(0, 9), max_size=6), count=st.integers(1, 30))
def test_packed_actors_fit_and_no_smaller_number_of_nodes_would_hold_them(cpus: list[int], count: int) -> None:
    chosen = pack_actors({str(i): {"CPU": float(free)} for i, free in enumerate(cpus)}, 1, 0, count)
    placed = [node for node in chosen if node is not None]
    assert len(chosen) == count
    assert len(placed) == min(count, sum(cpus))
    assert all(placed.count(node) <= cpus[int(node)] for node in placed)
    used = len(set(placed))
    assert not used or sum(sorted(cpus, reverse=True)[: used - 1]) < len(placed)
