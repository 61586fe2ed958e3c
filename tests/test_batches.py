"""Which examples a client sees in which step, alone and in a cohort."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fednar_ray.data.batches import ResidentShards, client_batches
from fednar_ray.seeding import Purpose, generator

from .conftest import small_federation

CPU = torch.device("cpu")
drawn = settings(max_examples=100, deadline=None)


@drawn
@given(examples=st.integers(1, 40), batch_size=st.integers(1, 50), epochs=st.integers(1, 4), seed=st.integers(0, 99))
def test_an_epoch_sees_every_example_once_and_keeps_its_short_last_batch(examples, batch_size, epochs, seed):
    per_epoch = -(-examples // batch_size)
    batches = client_batches(examples, batch_size, epochs * per_epoch, np.random.default_rng(seed))
    for epoch in batches.reshape(epochs, per_epoch, -1):
        assert sorted(epoch[epoch >= 0]) == list(range(examples))
        sizes = (epoch >= 0).sum(axis=1)
        assert (sizes[:-1] == batch_size).all()
        assert sizes[-1] == examples - (per_epoch - 1) * batch_size


@drawn
@given(examples=st.integers(1, 40), batch_size=st.integers(1, 50), steps=st.integers(1, 60))
def test_exactly_so_many_batches_and_fewer_steps_see_the_same_ones(examples, batch_size, steps):
    batches, longer = (client_batches(examples, batch_size, k, np.random.default_rng(0)) for k in (steps, steps + 5))
    assert batches.shape == (steps, min(batch_size, examples))
    np.testing.assert_array_equal(batches, longer[:steps])


def test_each_epoch_is_shuffled_anew():
    first, second = client_batches(60, 10, 12, np.random.default_rng(0)).reshape(2, 60)
    assert not np.array_equal(first, np.arange(60))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("batch_size", [5, 6, 1000])
def test_a_batch_size_at_or_above_the_shard_is_full_batch(batch_size):
    batches = client_batches(5, batch_size, 3, np.random.default_rng(0))
    assert [sorted(batch) for batch in batches] == [[0, 1, 2, 3, 4]] * 3


SIZES = (7, 30, 12, 1, 21)
some_cohort = st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True)


@drawn
@given(ids=some_cohort, batch_size=st.integers(1, 40), steps=st.lists(st.integers(1, 9), min_size=5, max_size=5))
def test_padding_weighs_nothing_and_the_rest_weighs_one(ids, batch_size, steps):
    taken = np.array(steps)[: len(ids)]
    plan = ResidentShards(small_federation(SIZES).shards, CPU).plan(ids, taken, batch_size, seed=0, round_index=0)
    widest = min(batch_size, max(SIZES[i] for i in ids))
    assert plan.weights.shape[:2] == (taken.max(), len(ids))
    assert widest <= plan.weights.shape[2] <= min(batch_size, 2 * widest)
    for step in range(taken.max()):
        batch = plan.batch(step)
        for row, client in enumerate(ids):
            real = int(plan.counts[step, row])
            if step >= taken[row]:
                assert real == 0
            else:
                assert 1 <= real <= min(batch_size, SIZES[client])
            expected = torch.cat([torch.full((real,), 1 / max(real, 1)), torch.zeros(batch.weights.shape[1] - real)])
            torch.testing.assert_close(batch.weights[row], expected)


@drawn
@given(ids=some_cohort, batch_size=st.integers(1, 40), round_index=st.integers(0, 5))
def test_a_clients_batches_do_not_depend_on_its_cohort(ids, batch_size, round_index):
    federation = small_federation(SIZES)
    shards, steps = ResidentShards(federation.shards, CPU), np.full(len(ids), 6)
    together = shards.plan(ids, steps, batch_size, seed=1, round_index=round_index)
    for row, client in enumerate(ids):
        own = ResidentShards(federation.shards.only(client), CPU)  # as in a dedicated actor
        for alone in (shards, own):
            single = alone.plan([client], steps[:1], batch_size, seed=1, round_index=round_index)
            for step in range(6):
                real = int(single.counts[step, 0])
                x, y = single.single(step)
                assert int(together.counts[step, row]) == real == len(y)
                batch = together.batch(step)
                torch.testing.assert_close(batch.x[row, :real], x, rtol=0, atol=0)
                torch.testing.assert_close(batch.y[row, :real], y, rtol=0, atol=0)


def test_batches_are_the_clients_own_examples_at_its_own_address():
    federation = small_federation(SIZES)
    plan = ResidentShards(federation.shards, CPU).plan([1, 4], np.array([5, 5]), 8, seed=9, round_index=2)
    own = federation.shards.only(4).examples
    expected = client_batches(21, 8, 5, generator(9, Purpose.BATCHES, round_index=2, client_id=4))
    for step, rows in enumerate(expected):
        real = rows[rows >= 0]
        np.testing.assert_array_equal(plan.batch(step).x[1, : len(real)], own.x[real])
        np.testing.assert_array_equal(plan.batch(step).y[1, : len(real)], own.y[real])


def test_rounds_clients_and_seeds_have_batches_of_their_own():
    shards = ResidentShards(small_federation((50, 50)).shards, CPU)
    addresses = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)]
    orders = set()
    for client, round_index, seed in addresses:
        index = shards.plan([client], np.array([5]), 10, seed=seed, round_index=round_index).index
        orders.add(tuple((index - 50 * client).flatten().tolist()))
    assert len(orders) == len(addresses)


def test_read_only_shards_are_used_where_they_lie():
    shards = small_federation((4, 3)).shards
    shards.examples.x.flags.writeable = False
    resident = ResidentShards(shards, CPU)
    plan = resident.plan([0], np.array([1]), 4, seed=0, round_index=0)
    assert plan.x.data_ptr() == shards.examples.x.ctypes.data
    assert resident.sizes([1, 0]).tolist() == [3, 4]
