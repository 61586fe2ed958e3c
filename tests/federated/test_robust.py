"""Robust means compared with loops over their definitions, in limiting cases, and under simulated attacks."""

import math
import statistics
import tracemalloc
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from fednar_ray.config.robustness import AggregationSettings
from fednar_ray.federated.robust import (
    RULES,
    coordinate_median,
    krum_selection,
    norm_clip_factors,
    robust_mean,
    trimmed_mean,
)
from tests.support.drawn import draw

drawn = draw(100)
every_rule = pytest.mark.parametrize("name", RULES)
seeds = st.integers(0, 2**32)
shares = st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.34, 0.4, 0.49])
float32s = st.floats(width=32, allow_nan=False, allow_infinity=False)


def draw_rows(elements: st.SearchStrategy[float], most_clients: int = 12) -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(np.float32, st.tuples(st.integers(1, most_clients), st.integers(1, 5)), elements=elements)


def build_normal_rows(count: int, size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, size)).astype(np.float32)


def split_into_groups(rows: np.ndarray, width: int) -> list[np.ndarray]:
    """Splits rows into read-only client groups of ``width`` with separate memory, as they arrive from shared memory."""
    blocks = [rows[i : i + width].copy() for i in range(0, len(rows), width)]
    for block in blocks:
        block.flags.writeable = False
    return blocks


def compute_aggregate(name: str, rows: list[np.ndarray], weights: np.ndarray | None = None) -> np.ndarray:
    count = sum(map(len, rows))
    aggregation = AggregationSettings(name=name, trim=0.2, byzantine=0.2)
    return robust_mean(rows, np.arange(1.0, count + 1) if weights is None else weights, aggregation)


def select_krum_by_definition(rows: np.ndarray, bad: int) -> list[bool]:
    """Selects clients by Multi-Krum with m = S − f (Blanchard et al., section 4), exactly for integers."""
    points = [[int(value) for value in row] for row in rows]
    scores = []
    for i, one in enumerate(points):
        others = (other for j, other in enumerate(points) if j != i)
        distances = sorted(sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) for other in others)
        scores.append(sum(distances[: len(points) - bad - 2]))
    best = sorted(range(len(points)), key=lambda i: (scores[i], i))[: len(points) - bad]
    return [i in best for i in range(len(points))]


@drawn
@given(rows=draw_rows(float32s))
def test_the_median_is_that_of_each_coordinate(rows):
    expected = [statistics.median(column) for column in rows.T.astype(float).tolist()]
    np.testing.assert_array_equal(coordinate_median([rows]), np.array(expected, dtype=np.float32))


@drawn
@given(rows=draw_rows(float32s), trim=shares)
def test_the_trimmed_mean_is_that_of_each_coordinate(rows, trim):
    cut = int(trim * len(rows))
    kept = [sorted(column)[cut : len(rows) - cut] for column in rows.T.astype(float).tolist()]
    for result, values in zip(trimmed_mean([rows], trim), kept, strict=True):
        largest = max(map(abs, values))
        assert float(result) == pytest.approx(math.fsum(values) / len(values), rel=1e-7, abs=1e-7 * largest + 1e-45)


@drawn
@given(rows=draw_rows(st.integers(-4, 4)), bad=st.integers(0, 5))
def test_krum_keeps_the_lowest_scores_and_the_first_of_equal_ones(rows, bad):
    count = len(rows)
    bad = min(bad, (count - 1) // 2)
    expected = select_krum_by_definition(rows, bad) if count - bad - 2 >= 1 else [True] * count
    assert krum_selection([rows], bad / count).tolist() == expected


def test_krum_matches_numbers_by_hand():
    # f = 1: two neighbors each. Squared distances add to 1+4, 1+1, 1+1, 1+4 and 97²+98²; four are kept
    line = np.array([[0], [1], [100], [2], [3]], dtype=np.float32)
    assert krum_selection([line], 0.2).tolist() == [True, True, False, True, True]
    # squares: 4², 4², 4² + 4², 5² + 1², 1² + 6²; the plain distances 4, 4, 8, 6, 7 would leave out the third
    uneven = np.array([[0], [0], [4], [9], [10]], dtype=np.float32)
    assert krum_selection([uneven], 0.2).tolist() == [True, True, True, True, False]
    # f = 2: one neighbor each, at 1, 1, 97², 1, 1; the first three of the equals are kept
    assert krum_selection([line], 0.4).tolist() == [True, True, False, True, False]


def test_among_three_clients_krum_cannot_judge_and_keeps_all():
    rows = np.array([[0], [0], [1e6]], dtype=np.float32)
    for count in (1, 2, 3):
        assert krum_selection([rows[:count]], 0.49).tolist() == [True] * count
    assert krum_selection([np.vstack([rows, rows[:1]])], 0.25).tolist() == [True, True, False, True]


def test_the_distance_of_equal_rows_is_exactly_zero():
    copied, other, another = build_normal_rows(3, 999) * np.float32(1e3)
    near = np.nextafter(copied, np.float32(np.inf))  # a rounding error away, so not equal
    rows = np.array([near, copied, other, copied, another, copied, copied, copied])
    # f = 3: three neighbors; the five copies score 0, and five are kept
    assert krum_selection([rows], 3 / 8).tolist() == [False, True, False, True, False, True, True, True]
    # f = 2: four neighbors; the copies still score 0, and the nearest of the others fills the sixth place
    assert krum_selection([rows], 2 / 8).tolist() == [True, True, False, True, False, True, True, True]


def test_the_largest_numbers_do_not_overflow():
    largest = np.finfo(np.float32).max
    rows = np.array([[largest, 1], [largest, 2], [-largest, 3], [largest, 4], [largest, 5]], dtype=np.float32)
    assert coordinate_median([rows[[0, 1]]]).tolist() == [largest, 1.5]
    assert trimmed_mean([rows], 0.0)[0] == pytest.approx(0.6 * largest)
    assert krum_selection([rows], 0.2).tolist() == [True, True, False, True, True]
    assert compute_aggregate("krum", split_into_groups(rows, 2)).tolist() == [
        largest,
        pytest.approx((1 + 2 * 2 + 4 * 4 + 5 * 5) / 12),
    ]


def test_many_columns_give_the_same_result_as_whole_arrays():
    rows, weights = build_normal_rows(20, 30_000), np.linspace(1, 9, 20)  # several blocks of columns
    blocks = split_into_groups(rows, 3)
    np.testing.assert_array_equal(coordinate_median(blocks), np.median(rows.astype(float), axis=0).astype(np.float32))
    np.testing.assert_allclose(trimmed_mean(blocks, 0.1), stats.trim_mean(rows.astype(float), 0.1), atol=1e-7)
    rows[[4, 11]] *= 5  # so far from all others that they are excluded first
    kept = krum_selection([rows], 0.2)
    assert kept.sum() == 16
    assert not kept[[4, 11]].any()
    expected = np.average(rows.astype(float)[kept], axis=0, weights=weights[kept])
    np.testing.assert_allclose(compute_aggregate("krum", split_into_groups(rows, 3), weights), expected, atol=1e-6)


def test_shares_are_converted_to_whole_clients_without_rounding_errors():
    squares = (np.arange(100, dtype=np.float32) ** 2)[:, None]
    # 0.29·100 is 28.999999999999996 in floating point
    assert trimmed_mean([squares], 0.29)[0] == np.float32(sum(i * i for i in range(29, 71)) / 42)
    for count in (3, 7, 49, 100):
        for cut in range((count + 1) // 2):
            expected = sum(i * i for i in range(cut, count - cut)) / (count - 2 * cut)
            assert trimmed_mean([squares[:count]], cut / count)[0] == np.float32(expected)


def test_a_trim_of_nearly_half_still_leaves_the_median():
    for count in (1, 2, 5, 6):
        rows = build_normal_rows(count, 4)
        np.testing.assert_array_equal(trimmed_mean([rows], math.nextafter(0.5, 0)), coordinate_median([rows]))


def test_without_trimming_it_is_the_mean_and_without_bad_clients_krum_is_the_weighted_mean():
    rows, weights = build_normal_rows(11, 50), np.linspace(1, 9, 11)
    np.testing.assert_allclose(trimmed_mean([rows], 0.0), rows.astype(float).mean(axis=0), atol=1e-7)
    everyone = robust_mean([rows], weights, AggregationSettings(name="krum", byzantine=0.0))
    np.testing.assert_allclose(everyone, np.average(rows.astype(float), axis=0, weights=weights), atol=1e-7)


@every_rule
def test_one_client_or_equal_clients_give_their_own_update(name):
    row = build_normal_rows(1, 100)
    for count in (1, 2, 3, 10):
        np.testing.assert_array_equal(
            compute_aggregate(name, split_into_groups(np.repeat(row, count, axis=0), 4)), row[0]
        )


def test_krum_weights_the_clients_that_it_keeps_and_the_other_rules_do_not():
    rows = np.array([[0, 6], [2, 0], [900, 900], [4, 0], [1, 3]], dtype=np.float32)
    weights = np.array([1.0, 2.0, 50.0, 3.0, 4.0])
    # (0·1 + 2·2 + 4·3 + 1·4)/10 and (6·1 + 3·4)/10
    assert compute_aggregate("krum", [rows], weights).tolist() == [2.0, np.float32(1.8)]
    assert compute_aggregate("median", [rows], weights).tolist() == [2, 3]
    assert compute_aggregate("trimmed_mean", [rows], weights).tolist() == [np.float32(7 / 3), 3]


@every_rule
def test_the_split_into_groups_does_not_change_a_byte(name):
    rows = build_normal_rows(17, 20_000)  # several blocks of columns
    results = [compute_aggregate(name, split_into_groups(rows, width)) for width in (1, 2, 5, 16, 17)]
    results.append(
        compute_aggregate(name, [rows[:0], rows[:3], rows[3:3], rows[3:]])
    )  # client groups without an included client
    assert len({result.tobytes() for result in results}) == 1
    assert {(result.dtype, result.shape) for result in results} == {(np.dtype(np.float32), (20_000,))}


@drawn
@given(rows=draw_rows(float32s), seed=seeds, trim=shares)
def test_the_order_of_clients_changes_neither_median_nor_trimmed_mean(rows, seed, trim):
    shuffled = np.random.default_rng(seed).permutation(rows)
    np.testing.assert_array_equal(coordinate_median([shuffled]), coordinate_median([rows]))
    np.testing.assert_array_equal(trimmed_mean([shuffled], trim), trimmed_mean([rows], trim))


@drawn
@given(bad=st.integers(1, 4), spare=st.integers(0, 5), size=st.integers(2, 40), seed=seeds)
def test_krum_keeps_the_same_clients_in_any_order(bad, spare, size, seed):
    count = 2 * bad + 3 + spare  # at least two neighbors, so that no two scores are equal
    rows, order = build_normal_rows(count, size, seed), np.random.default_rng(seed).permutation(count)
    kept = krum_selection([rows], bad / count)
    np.testing.assert_array_equal(krum_selection([rows[order]], bad / count), kept[order])


@drawn
@given(honest=draw_rows(float32s), data=st.data())
def test_fewer_than_half_cannot_move_a_median_out_of_the_honest_range(honest, data):
    bad = data.draw(arrays.arrays(np.float32, (len(honest) - 1, honest.shape[1]), elements=float32s))
    result = coordinate_median([honest, bad])
    assert (honest.min(axis=0) <= result).all()
    assert (result <= honest.max(axis=0)).all()


@drawn
@given(honest=draw_rows(float32s), trim=shares, data=st.data())
def test_clients_up_to_the_trimmed_number_cannot_move_a_trimmed_mean_out_of_the_honest_range(honest, trim, data):
    most = max(bad for bad in range(len(honest)) if bad <= trim * (bad + len(honest)))
    bad = data.draw(arrays.arrays(np.float32, (most, honest.shape[1]), elements=float32s))
    result = trimmed_mean([bad, honest], trim)
    assert (honest.min(axis=0) <= result).all()
    assert (result <= honest.max(axis=0)).all()


@drawn
@given(bad=st.integers(1, 4), spare=st.integers(0, 5), size=st.integers(1, 5), seed=seeds, together=st.booleans())
def test_krum_keeps_none_of_f_clients_that_are_far_from_the_honest(bad, spare, size, seed, together):
    count = 2 * bad + 3 + spare
    rng = np.random.default_rng(seed)
    honest = rng.uniform(size=(count - bad, size))
    # Honest: at most (S − f − 2)·D², D² ≤ d the square of their diameter. Bad: though all f may agree, at least
    # (S − f − 2) − (f − 1) of the neighbors are honest, each beyond D·√(S − f − 2).
    away = np.sqrt(size * (count - bad - 2)) + 0.01
    direction = rng.normal(size=(1 if together else bad, size))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    far = honest[:1] + direction * (away + np.sqrt(size)) * np.ones((bad, 1))
    order = rng.permutation(count)
    rows = np.concatenate([honest, far])[order].astype(np.float32)
    np.testing.assert_array_equal(krum_selection([rows], bad / count), order < count - bad)


@every_rule
def test_one_fifth_of_updates_times_100_barely_moves_robust_means_but_dominates_the_mean(name):
    rows = build_normal_rows(20, 500) + np.float32(1)
    sent = rows.copy()
    sent[[2, 3, 9, 15]] *= -100
    weights = np.ones(20)
    assert np.abs(rows.mean(axis=0) - sent.mean(axis=0)).mean() > 10
    assert np.abs(rows.mean(axis=0) - compute_aggregate(name, split_into_groups(sent, 6), weights)).mean() < 0.5


@every_rule
def test_the_extra_memory_is_a_few_blocks_for_rows_of_any_length(name):
    blocks = split_into_groups(build_normal_rows(40, 80_000), 8)
    tracemalloc.start()
    try:
        result = compute_aggregate(name, blocks)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - result.nbytes < 4e6  # the rows hold 12.8 MB


def test_robust_rules_need_single_rows_and_not_sums():
    names = get_args(AggregationSettings.model_fields["name"].annotation)
    assert set(RULES) == set(names) - {"mean", "norm_bound"}


def test_norm_clipping_matches_numbers_by_hand():
    np.testing.assert_array_equal(norm_clip_factors(np.array([0.0, 1.0, 2.0, 8.0]), 2.0), [1, 1, 1, 0.25])
    np.testing.assert_array_equal(
        norm_clip_factors(np.array([1.0, 4.0, 2.0, 8.0]), None), [1, 0.75, 1, 0.375]
    )  # median 3
    np.testing.assert_array_equal(norm_clip_factors(np.array([7.0]), None), [1])


@drawn
@given(norms=st.lists(st.floats(0, 1e30), min_size=1, max_size=15), bound=st.none() | st.floats(1e-6, 1e6))
def test_norm_clipping_shortens_updates_to_the_bound_and_lengthens_none(norms, bound):
    factors = norm_clip_factors(np.array(norms), bound)
    longest = statistics.median(norms) if bound is None else bound
    for norm, factor in zip(norms, factors, strict=True):
        assert factor == 1 if norm <= longest else factor * norm == pytest.approx(longest)
        assert 0 <= factor <= 1


def test_a_median_norm_of_zero_clips_every_update_to_zero():
    np.testing.assert_array_equal(norm_clip_factors(np.array([0.0, 0.0, 0.0, 5.0]), None), [1, 1, 1, 0])
