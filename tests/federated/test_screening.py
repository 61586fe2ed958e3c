"""Screening: numbers computed by hand, and properties that hold for all updates."""

import re
import statistics

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.core.messages import ClientMetrics
from fednar_ray.federated.screening import NOT_FINITE, screen
from tests.support.drawn import draw

drawn = draw(100)
some_norms = st.lists(st.floats(0, 1e6), min_size=1, max_size=20)
deviations = st.floats(0.1, 20)


def build_group(norms: list[float], first: int = 0, included: list[bool] | None = None) -> ClientMetrics:
    """Builds metrics of clients ``first``, ``first`` + 1, …, whose updates have the given norms."""
    count = len(norms)
    return ClientMetrics(
        client_ids=tuple(range(first, first + count)),
        included=np.ones(count, dtype=bool) if included is None else np.array(included),
        examples=np.full(count, 10),
        steps=np.full(count, 5),
        clipped_steps=np.zeros(count, dtype=np.int64),
        effective_weight_decay=np.zeros(count),
        step_norms=np.ones(count),
        norm_points=np.ones((count, 5)),
        losses=np.ones(count),
        delta_norms=np.array(norms, dtype=np.float64),
        train_seconds=0.1,
    )


def find_excluded(norms: list[float], max_deviation: float) -> set[int]:
    return set(screen([build_group(norms)], max_deviation))


def test_a_norm_far_above_the_median_is_excluded_with_its_numbers():
    # median 5; deviations 4, 3, 1, 0, 1, 3, 35: MAD 3; limit 5 + 2·1.4826·3 = 13.8956
    assert screen([build_group([1, 2, 4, 5, 6, 8, 40])], 2.0) == {
        6: Exclusion(ExclusionReason.NORM_TOO_LARGE, "norm 40, median 5, limit 13.9")
    }


def test_an_update_at_the_limit_is_included():
    # median 10, MAD 0: the limit is the median plus 4 times a tenth of the median
    assert find_excluded([10, 10, 10, 10, 14], 4.0) == set()
    assert find_excluded([10, 10, 10, 10, 14.001], 4.0) == {4}


def test_short_updates_are_included():
    assert find_excluded([1.0, 1.0, 1.0, 1.0, 1.0, 0.0], 0.1) == set()


def test_all_honest_clients_are_included_if_every_step_is_clipped():
    norms = [5.0] * 8 + [4.99999, 5.00001, 5.02]  # MAD 0 or nearly: multiples of it would reject 5.00001
    assert find_excluded(norms, 3.0) == set()


def test_clients_that_are_not_finite_are_excluded_and_not_part_of_the_median():
    bad = [np.nan, np.inf, 1e30, np.nan]
    metrics = [
        build_group([1.0, *bad, 1.2], included=[True, False, False, False, False, True]),
        build_group([0.9, 1.1, 90.0], 6),
    ]
    # without the four: 0.9, 1, 1.1, 1.2, 90; with them the median could not be 1.1
    exclusions = screen(metrics, 5.0)
    assert list(exclusions) == [1, 2, 3, 4, 8]  # in dispatch order
    assert [exclusions[i] for i in (1, 2, 3, 4)] == [NOT_FINITE] * 4
    assert "median 1.1," in exclusions[8].detail


def test_without_a_limit_only_clients_that_are_not_finite_are_excluded():
    metrics = [build_group([1, 1, 1, 1, 1e9]), build_group([np.nan, 1], 5, included=[False, True])]
    assert screen(metrics, None) == {5: NOT_FINITE}


def test_fewer_than_four_finite_clients_are_not_screened():
    assert find_excluded([1, 1, 1e9], 3.0) == set()
    assert find_excluded([1, 1, 1, 1e9], 3.0) == {3}
    metrics = [build_group([1, 1, np.nan, 1e9], included=[True, True, False, True])]
    assert screen(metrics, 3.0) == {2: NOT_FINITE}


@pytest.mark.parametrize("metrics", [[], [build_group([np.nan, np.nan], included=[False, False])]])
def test_a_round_without_an_included_client_is_screened_without_a_warning(metrics):
    assert set(screen(metrics, 3.0)) == {i for f in metrics for i in f.client_ids}


def test_exclusions_follow_dispatch_order_not_client_order():
    metrics = [build_group([1e3, 1, 1], first=10), build_group([1, 1, 2e3], first=0)]
    assert list(screen(metrics, 3.0)) == [10, 2]


@drawn
@given(norms=some_norms, max_deviation=deviations)
def test_screening_matches_its_formula(norms, max_deviation):
    median = statistics.median(norms)
    spread = statistics.median(abs(norm - median) for norm in norms)
    limit = median + max_deviation * max(1.4826 * spread, 0.1 * median)
    expected = {i for i, norm in enumerate(norms) if norm > limit} if len(norms) >= 4 else set()
    borderline = {i for i, norm in enumerate(norms) if norm == pytest.approx(limit, rel=1e-12)}
    assert find_excluded(norms, max_deviation) ^ expected <= borderline


@drawn
@given(norms=some_norms, max_deviation=deviations, width=st.integers(1, 6))
def test_the_split_into_groups_does_not_matter(norms, max_deviation, width):
    groups = [build_group(norms[i : i + width], first=i) for i in range(0, len(norms), width)]
    assert screen(groups, max_deviation) == screen([build_group(norms)], max_deviation)


@drawn
@given(norms=some_norms, max_deviation=deviations, order=st.randoms(use_true_random=False))
def test_the_order_of_clients_does_not_matter(norms, max_deviation, order):
    shuffled = list(range(len(norms)))
    order.shuffle(shuffled)
    after = find_excluded([norms[i] for i in shuffled], max_deviation)
    assert {shuffled[i] for i in after} == find_excluded(norms, max_deviation)


@drawn
@given(norms=some_norms, max_deviation=deviations, power=st.integers(-20, 20))
def test_the_unit_of_length_does_not_matter(norms, max_deviation, power):
    assume(all(norm == 0 or norm > 1e-100 for norm in norms))
    assert find_excluded([norm * 2.0**power for norm in norms], max_deviation) == find_excluded(norms, max_deviation)


@drawn
@given(norms=some_norms, max_deviation=deviations)
def test_at_least_half_of_the_clients_are_always_included(norms, max_deviation):
    assert 2 * len(find_excluded(norms, max_deviation)) <= len(norms)


@drawn
@given(
    honest=st.lists(st.floats(1, 3), min_size=3, max_size=12),
    bad=st.lists(st.floats(1, 1e6), min_size=1, max_size=11),
    max_deviation=deviations,
)
def test_fewer_than_half_cannot_hide_long_updates(honest, bad, max_deviation):
    bad = bad[: len(honest) - 1]
    # the median lies among the honest, so do most deviations from it: within their range
    low, high = min(honest), max(honest)
    furthest = high + max_deviation * max(1.4826 * (high - low), 0.1 * high) + 1e-9
    exclusions = screen([build_group([*honest, *(furthest * factor for factor in bad)])], max_deviation)
    hidden = {len(honest) + i for i, factor in enumerate(bad) if factor > 1} - set(exclusions)
    assert not hidden
    named = [float(re.search(r"median ([\d.e+-]+)", reason.detail).group(1)) for reason in exclusions.values()]
    assert all(low * 0.999 <= median <= high * 1.001 for median in named)
