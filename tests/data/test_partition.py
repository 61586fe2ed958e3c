"""The assignment of examples to clients: the guarantees of every kind, and the distribution of Dirichlet draws."""

from collections.abc import Callable
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fednar_ray.core.errors import DataError
from fednar_ray.data import partition as partitions
from fednar_ray.data.partition import Partition
from tests.support.drawn import draw

Kind = Callable[[np.ndarray, int, np.random.Generator], Partition]
KINDS: dict[str, Kind] = {
    "iid": partitions.iid,
    "dirichlet": lambda y, n, rng: partitions.dirichlet(y, n, rng, 0.3),
    "dirichlet_concentrated": lambda y, n, rng: partitions.dirichlet(y, n, rng, 0.01),
    "dirichlet_equal": lambda y, n, rng: partitions.dirichlet_equal(y, n, rng, 0.3),
    "dirichlet_equal_concentrated": lambda y, n, rng: partitions.dirichlet_equal(y, n, rng, 0.01),
    "shards": lambda y, n, rng: partitions.shards(y, n, rng, 2),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
some_labels = st.lists(st.sampled_from([0, 1, 2, 5, 9]), min_size=1, max_size=150).map(np.array)
some_clients = st.integers(1, 25)
seeds = st.integers(0, 2**32)
drawn = draw(60)


def assert_each_example_once(split: Partition, examples: int, clients: int) -> None:
    held = np.concatenate([split.client(i) for i in range(clients)])
    assert sorted([*held, *split.left_out]) == list(range(examples))
    assert [len(split.client(i)) for i in range(clients)] == split.sizes.tolist()


def count_by_client(split: Partition, labels: np.ndarray) -> np.ndarray:
    """Counts examples by client and class, [n, classes]."""
    return np.array([np.bincount(labels[split.client(i)], minlength=labels.max() + 1) for i in range(len(split.sizes))])


@every_kind
@drawn
@given(labels=some_labels, clients=some_clients, seed=seeds)
def test_each_example_goes_to_one_client_and_only_a_remainder_to_none(kind, labels, clients, seed):
    split = KINDS[kind](labels, clients, np.random.default_rng(seed))
    assert_each_example_once(split, len(labels), clients)
    assert len(split.left_out) == (len(labels) % clients if kind.startswith("dirichlet_equal") else 0)


@every_kind
def test_the_same_seed_repeats_the_partition_and_another_seed_changes_it(kind):
    labels = np.arange(300) % 10
    first, again, other = (KINDS[kind](labels, 7, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.order, again.order)
    np.testing.assert_array_equal(first.offsets, again.offsets)
    assert not np.array_equal(first.order, other.order)


@drawn
@given(labels=some_labels, clients=some_clients, seed=seeds)
def test_partitions_have_the_promised_sizes(labels, clients, seed):
    rng = np.random.default_rng(seed)
    iid = partitions.iid(labels, clients, rng).sizes
    assert iid.max() - iid.min() <= 1
    assert set(partitions.dirichlet_equal(labels, clients, rng, 0.3).sizes) == {len(labels) // clients}


@drawn
@given(labels=some_labels, clients=some_clients, seed=seeds, each=st.integers(1, 4))
def test_shards_cut_the_sorted_labels(labels, clients, seed, each):
    split = partitions.shards(labels, clients, np.random.default_rng(seed), each)
    per_shard = len(labels) / (clients * each)
    assert (split.sizes >= each * np.floor(per_shard)).all()
    assert (split.sizes <= each * np.ceil(per_shard)).all()
    # of n·k shards, only those across a border between two labels hold more than one label
    distinct = np.count_nonzero(count_by_client(split, labels), axis=1)
    assert distinct.sum() <= clients * each + len(np.unique(labels)) - 1


@drawn
@given(
    classes=st.integers(2, 8), each=st.integers(1, 4), per_class=st.integers(1, 3), size=st.integers(1, 5), seed=seeds
)
def test_shards_that_fit_their_classes_give_a_client_at_most_k_labels(classes, each, per_class, size, seed):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), per_class * each * size))
    split = partitions.shards(labels, classes * per_class, rng, each)
    assert (np.count_nonzero(count_by_client(split, labels), axis=1) <= each).all()
    assert set(split.sizes) == {each * size}


@drawn
@given(groups=st.lists(st.sampled_from(["ann", "bob", "eve", "zoe"]), min_size=1, max_size=60), seed=seeds)
def test_natural_clients_are_the_groups_in_sorted_order(groups, seed):
    split = partitions.natural(np.array(groups), np.random.default_rng(seed))
    names = sorted(set(groups))
    assert_each_example_once(split, len(groups), len(names))
    for client, name in enumerate(names):
        assert sorted(split.client(client)) == [i for i, group in enumerate(groups) if group == name]


@drawn
@given(sizes=st.lists(st.integers(0, 30), min_size=1, max_size=20), floor=st.integers(0, 8), spare=st.integers(0, 3))
def test_ensure_minimum_moves_as_few_examples_as_possible_from_the_largest(sizes, floor, spare):
    before = build_partition(sizes, spare)
    if sum(sizes) < floor * len(sizes):
        with pytest.raises(DataError, match="min_examples"):
            partitions.ensure_minimum(before, floor)
        return
    after = partitions.ensure_minimum(before, floor)
    assert_each_example_once(after, sum(sizes) + spare, len(sizes))
    np.testing.assert_array_equal(after.left_out, before.left_out)
    assert after.sizes.min() >= floor
    kept = [len(np.intersect1d(before.client(i), after.client(i))) for i in range(len(sizes))]
    assert kept == np.minimum(before.sizes, after.sizes).tolist()  # no client both gives and takes
    assert sum(sizes) - sum(kept) == sum(max(floor - size, 0) for size in sizes)
    givers = after.sizes < before.sizes
    assert (after.sizes[givers] >= after.sizes.max() - 1).all()  # only the largest give, down to one level


def build_partition(sizes: list[int], spare: int) -> Partition:
    order = np.random.default_rng(0).permutation(sum(sizes) + spare)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Partition(order[: sum(sizes)], offsets, np.sort(order[sum(sizes) :]))


def test_ensure_minimum_matches_numbers_by_hand():
    # two clients need 2 + 1; the largest gives 3, down to the level of the next: [9, 0, 1, 6, 2] → [6, 2, 2, 6, 2]
    assert partitions.ensure_minimum(build_partition([9, 0, 1, 6, 2], 0), 2).sizes.tolist() == [6, 2, 2, 6, 2]


def test_too_few_examples_are_refused_with_the_number_that_fits():
    with pytest.raises(DataError, match="10 examples cannot give each of 4 clients 3; use at most 3 clients"):
        partitions.ensure_minimum(build_partition([10, 0, 0, 0], 0), 3)


@pytest.mark.parametrize("alpha", [0.05, 0.3, 10.0])
def test_a_clients_share_of_a_class_follows_the_dirichlet(alpha):
    clients, classes, members = 10, 2000, 400
    labels = np.repeat(np.arange(classes), members)
    split = partitions.dirichlet(labels, clients, np.random.default_rng(0), alpha)
    shares = count_by_client(split, labels) / members  # [n, classes]: per client, draws of Beta(α, (n−1)α)
    mean, variance, _, kurtosis = stats.beta(alpha, (clients - 1) * alpha).stats("mvsk")
    assert (mean, variance) == pytest.approx((0.1, 0.1 * 0.9 / (clients * alpha + 1)))
    # five standard errors, and what rounding to whole examples can add
    np.testing.assert_allclose(shares.mean(axis=1), mean, atol=5 * np.sqrt(variance / classes) + 1 / members)
    spread = 5 * variance * np.sqrt((kurtosis + 2) / classes) + 2 * np.sqrt(variance) / members
    np.testing.assert_allclose(shares.var(axis=1), variance, atol=spread)


def test_classes_are_shared_out_independently():
    clients, classes, members = 2, 4000, 100
    labels = np.repeat(np.arange(classes), members)
    split = partitions.dirichlet(labels, clients, np.random.default_rng(0), 0.3)
    shares = count_by_client(split, labels)[0] / members
    assert abs(np.corrcoef(shares[::2], shares[1::2])[0, 1]) < 5 / np.sqrt(classes / 2)


def test_dirichlet_with_a_large_alpha_gives_equal_shares():
    labels = np.repeat(np.arange(5), 1000)
    counts = count_by_client(partitions.dirichlet(labels, 10, np.random.default_rng(0), 1e6), labels)
    # a share's standard deviation is 1e-4: six of them are 0.6 examples of 1000, and rounding adds at most 1
    assert np.abs(counts - 100).max() < 2


def test_dirichlet_equal_with_a_large_alpha_draws_without_preference():
    labels = np.repeat(np.arange(5), 2000)
    counts = count_by_client(partitions.dirichlet_equal(labels, 10, np.random.default_rng(0), 1e6), labels)
    # 1000 draws of 5 classes without replacement vary no more than the binomial's √(1000·0.2·0.8) = 12.6
    assert np.abs(counts - 200).max() < 5 * 12.65
    assert counts.std() > 4  # they are random draws, not a quota


@pytest.mark.parametrize("alpha", [0.01, 1e-4, 1e-300])
def test_a_tiny_alpha_concentrates_each_class(alpha):
    clients, classes, members = 10, 1000, 100
    labels = np.repeat(np.arange(classes), members)
    split = partitions.dirichlet(labels, clients, np.random.default_rng(0), alpha)
    assert_each_example_once(split, len(labels), clients)
    shares = count_by_client(split, labels) / members
    # E Σp² = (α + 1)/(nα + 1) for Dir(α·1); Σp² lies in [0, 1], so its standard deviation is at most ½
    expected = (alpha + 1) / (clients * alpha + 1)
    assert (shares**2).sum(axis=0).mean() == pytest.approx(expected, abs=5 * 0.5 / np.sqrt(classes))
    assert (np.bincount(shares.argmax(axis=0), minlength=clients) > 0).all()  # the classes are not all on one client


@pytest.mark.parametrize("alpha", [0.01, 1e-4, 1e-300])
def test_dirichlet_equal_with_a_tiny_alpha_gives_equal_sizes(alpha):
    labels = np.repeat(np.arange(10), 50)
    split = partitions.dirichlet_equal(labels, 20, np.random.default_rng(0), alpha)
    assert_each_example_once(split, len(labels), 20)
    assert set(split.sizes) == {25}


def draw_as_acar(labels: np.ndarray, clients: int, rng: np.random.Generator, alpha: float) -> np.ndarray:
    """Runs the procedure of Acar et al. draw by draw and returns counts [n, classes].

    They repeat a draw while its class is exhausted, which may take forever. Drawing a remaining class is equivalent.
    """
    amount = np.bincount(labels).tolist()
    priors = rng.dirichlet([alpha] * len(amount), size=clients).tolist()
    room = [len(labels) // clients] * clients
    counts = np.zeros((clients, len(amount)), dtype=int)
    while any(room):
        client = int(rng.integers(clients))
        if not room[client]:
            continue
        room[client] -= 1
        ends = list(accumulate(prior * (left > 0) for prior, left in zip(priors[client], amount, strict=True)))
        u = rng.random() * ends[-1]
        label = next(code for code, end in enumerate(ends) if u < end)
        amount[label] -= 1
        counts[client, label] += 1
    return counts


@pytest.mark.usefixtures("long_computation")
@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("class_sizes", [(45,) * 8, (10, 15, 20, 30, 45, 60, 80, 100)], ids=["balanced", "unbalanced"])
def test_dirichlet_equal_matches_the_procedure_of_acar_et_al(alpha, class_sizes):
    labels = np.repeat(np.arange(len(class_sizes)), class_sizes)
    ours = np.empty((300, 3))
    theirs = np.empty((300, 3))
    for seed in range(300):
        split = partitions.dirichlet_equal(labels, 12, np.random.default_rng([seed, 0]), alpha)
        ours[seed] = measure_heterogeneity(count_by_client(split, labels))
        theirs[seed] = measure_heterogeneity(draw_as_acar(labels, 12, np.random.default_rng([seed, 1]), alpha))
    standard_error = np.sqrt((ours.var(axis=0) + theirs.var(axis=0)) / 300)  # below 1 % of the means
    difference = ours.mean(axis=0) - theirs.mean(axis=0)
    assert (np.abs(difference) < 4 * standard_error).all(), difference / standard_error


def measure_heterogeneity(counts: np.ndarray) -> tuple[float, float, float]:
    """Returns the number of classes, the largest class's share, and Σ share², each as a mean over clients."""
    shares = counts / counts.sum(axis=1, keepdims=True)
    return np.count_nonzero(counts, axis=1).mean(), shares.max(axis=1).mean(), (shares**2).sum(axis=1).mean()
