"""Quantiles of ‖v‖ over steps against numpy's over the single norms."""

import numpy as np
import pytest

from fednar_ray.core.step_norms import LEVELS, MOST_POINTS, merge_quantiles, summarize_norms


def test_quantiles_by_hand():
    # client 0 takes two steps, client 1 three; what follows its last step does not count
    norms = np.array([[3.0, 1.0, 99.0], [2.0, 5.0, 4.0]])
    points = summarize_norms(norms, np.array([2, 3]))
    assert np.isnan(points[0, 2])
    assert (points[0, :2].tolist(), points[1].tolist()) == ([1, 3], [2, 4, 5])
    quantiles = dict(zip(LEVELS, merge_quantiles([points], [np.array([2, 3])]), strict=True))
    assert (quantiles[0], quantiles[0.25], quantiles[0.5], quantiles[0.75], quantiles[1]) == (1, 2, 3, 4, 5)


@pytest.mark.parametrize("most", [1, 7, MOST_POINTS])
def test_few_steps_give_exactly_the_quantiles_of_all_steps(most):
    rng = np.random.default_rng(0)
    groups = [(rng.lognormal(size=(4, most)), rng.integers(1, most + 1, 4)) for _ in range(3)]
    single = [row[:count] for norms, steps in groups for row, count in zip(norms, steps, strict=True)]
    merged = merge_quantiles([summarize_norms(*group) for group in groups], [steps for _, steps in groups])
    assert merged == pytest.approx(np.quantile(np.concatenate(single), LEVELS), rel=1e-12)


def test_many_steps_are_off_by_a_small_share_of_them_and_the_ends_are_exact():
    rng = np.random.default_rng(1)
    steps = np.array([33, 100, 1000, 5])
    norms = rng.lognormal(sigma=2, size=(4, 1000)) * np.array([[1], [2], [0.5], [10]])
    every = np.sort(np.concatenate([row[:count] for row, count in zip(norms, steps, strict=True)]))
    merged = merge_quantiles([summarize_norms(norms, steps)], [steps])
    assert (merged[0], merged[-1]) == (every[0], every[-1])
    shares = np.searchsorted(every, merged) / len(every)
    assert np.abs(shares - LEVELS).max() < 1 / MOST_POINTS


def test_norms_that_are_not_finite_are_left_out():
    norms = np.array([[1.0, np.inf, np.nan]])
    assert set(merge_quantiles([summarize_norms(norms, np.array([3]))], [np.array([3])])) == {1.0}
    assert merge_quantiles([summarize_norms(norms[:, 1:], np.array([2]))], [np.array([2])]) == ()
    assert merge_quantiles([], []) == ()
