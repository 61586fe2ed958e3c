"""The size of client groups, and which clients they hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fednar_ray.federated.model_traits import ModelTraits
from fednar_ray.federated.vectorization import CPU, MAX_GROUP_SIZE, StepCosts, choose_group_size, form_groups
from tests.support.drawn import draw

drawn = draw(100)


def build_traits(alone: str | None = None, **numbers: float) -> ModelTraits:
    nothing = {"parameters": 0, "matmuls": 0, "convolutions": 0, "matmul_flops": 0.0, "convolution_flops": 0.0}
    return ModelTraits(changed_buffers=(), alone_because=alone, **{**nothing, **numbers})  # type: ignore[arg-type]


def build_costs(**numbers: object) -> StepCosts:
    free = {"step": 0, "matmul": (0, 0), "convolution": (0, 0), "flop": 0, "convolution_flop": 0, "parameter": (0, 0)}
    return StepCosts(**{**free, **numbers})  # type: ignore[arg-type]


@pytest.mark.parametrize(("clients", "width"), [(1, 1), (2, 1), (4, 1), (5, 5), (20, 20)])
def test_a_group_at_twice_the_cost_pays_off_once_four_actors_need_two_turns(clients, width):
    # A step costs 1 alone and 2 in a group of any width: with 4 actors, width 1 takes ceil(S/4), one client group 2.
    assert choose_group_size(build_traits(matmuls=1), clients, 16, build_costs(matmul=(1, 2))) == width


def test_no_chosen_group_size_is_predicted_to_be_slower_than_single_clients():
    arithmetic = build_costs(matmul=(1, 2), flop=1e-3)
    widths = [
        choose_group_size(build_traits(matmuls=1, matmul_flops=f), 20, 1, arithmetic) for f in (0, 30, 300, 3e3, 3e4)
    ]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 1
    assert widths[-1] == 1  # arithmetic of 3·30 per client: sharing the dispatch gains less than an idle actor loses


def test_the_group_size_is_one_if_the_model_requires_it_and_never_above_the_maximum():
    assert choose_group_size(build_traits(matmuls=1), 10_000, 16, CPU) == MAX_GROUP_SIZE
    assert choose_group_size(build_traits("it keeps running statistics", matmuls=1), 10_000, 16, CPU) == 1


@drawn
@given(
    clients=st.lists(
        st.tuples(st.integers(0, 500), st.integers(1, 6)), min_size=1, max_size=60, unique_by=lambda c: c[0]
    ),
    width=st.integers(1, 40),
)
def test_groups_have_nearly_equal_sizes_and_those_with_most_steps_come_first(clients, width):
    ids, steps = zip(*clients, strict=True)
    groups = form_groups(ids, np.array(steps), width)
    in_order = [client for group in groups for client in group]
    assert in_order == [client for client, _ in sorted(clients, key=lambda c: (-c[1], c[0]))]
    sizes = [len(group) for group in groups]
    assert len(groups) == -(-len(clients) // width)
    assert max(sizes) <= width
    assert max(sizes) - min(sizes) <= 1


def test_groups_match_an_example_by_hand():
    assert form_groups([4, 7, 1, 9, 2], np.array([3, 5, 3, 1, 5]), 3) == [(2, 7, 1), (4, 9)]
