"""The examples that a client sees in each step, alone and in a client group."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fednar_ray.core.flat_params import flatten, flatten_buffers
from fednar_ray.core.messages import EvalParams, ScoringTask
from fednar_ray.core.random import Purpose, generator
from fednar_ray.data.batches import ResidentShards, plan_client_batches, plan_poisson_batches
from fednar_ray.data.examples import Examples, Shards
from fednar_ray.data.transforms import Augmentation, Transform, compute_channel_statistics
from fednar_ray.federated.scoring import Scorer
from tests.conftest import build_small_federation
from tests.support.drawn import draw

CPU = torch.device("cpu")
drawn = draw(100)


@drawn
@given(examples=st.integers(1, 40), batch_size=st.integers(1, 50), epochs=st.integers(1, 4), seed=st.integers(0, 99))
def test_an_epoch_contains_every_example_once_with_a_short_last_batch(examples, batch_size, epochs, seed):
    per_epoch = -(-examples // batch_size)
    batches = plan_client_batches(examples, batch_size, epochs * per_epoch, np.random.default_rng(seed))
    for epoch in batches.reshape(epochs, per_epoch, -1):
        assert sorted(epoch[epoch >= 0]) == list(range(examples))
        sizes = (epoch >= 0).sum(axis=1)
        assert (sizes[:-1] == batch_size).all()
        assert sizes[-1] == examples - (per_epoch - 1) * batch_size


@drawn
@given(examples=st.integers(1, 40), batch_size=st.integers(1, 50), steps=st.integers(1, 60))
def test_the_number_of_batches_is_exact_and_fewer_steps_get_the_first_ones(examples, batch_size, steps):
    batches, longer = (
        plan_client_batches(examples, batch_size, k, np.random.default_rng(0)) for k in (steps, steps + 5)
    )
    assert batches.shape == (steps, min(batch_size, examples))
    np.testing.assert_array_equal(batches, longer[:steps])


def test_each_epoch_is_shuffled_again():
    first, second = plan_client_batches(60, 10, 12, np.random.default_rng(0)).reshape(2, 60)
    assert not np.array_equal(first, np.arange(60))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("batch_size", [5, 6, 1000])
def test_a_batch_size_at_or_above_the_shard_is_full_batch(batch_size):
    batches = plan_client_batches(5, batch_size, 3, np.random.default_rng(0))
    assert [sorted(batch) for batch in batches] == [[0, 1, 2, 3, 4]] * 3


SIZES = (7, 30, 12, 1, 21)
some_group = st.lists(st.integers(0, 4), min_size=1, max_size=5, unique=True)


@drawn
@given(ids=some_group, batch_size=st.integers(1, 40), steps=st.lists(st.integers(1, 9), min_size=5, max_size=5))
def test_padding_has_weight_zero_and_examples_have_weight_one(ids, batch_size, steps):
    taken = np.array(steps)[: len(ids)]
    plan = ResidentShards(build_small_federation(SIZES).shards, CPU).plan(ids, taken, batch_size, seed=0, round_index=0)
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
@given(ids=some_group, batch_size=st.integers(1, 40), round_index=st.integers(0, 5))
def test_a_clients_batches_do_not_depend_on_its_group(ids, batch_size, round_index):
    federation = build_small_federation(SIZES)
    shards, steps = ResidentShards(federation.shards, CPU), np.full(len(ids), 6)
    together = shards.plan(ids, steps, batch_size, seed=1, round_index=round_index)
    for row, client in enumerate(ids):
        own = ResidentShards(federation.shards.only(client), CPU)  # as in a dedicated actor
        for alone in (shards, own):
            single = alone.plan([client], steps[:1], batch_size, seed=1, round_index=round_index)
            for step in range(6):
                real = int(single.counts[step, 0])
                x, y = single.unpadded_batch(step)
                assert int(together.counts[step, row]) == real == len(y)
                batch = together.batch(step)
                torch.testing.assert_close(batch.x[row, :real], x, rtol=0, atol=0)
                torch.testing.assert_close(batch.y[row, :real], y, rtol=0, atol=0)


def test_batches_contain_the_client_s_own_examples_in_the_order_of_its_generator():
    federation = build_small_federation(SIZES)
    plan = ResidentShards(federation.shards, CPU).plan([1, 4], np.array([5, 5]), 8, seed=9, round_index=2)
    own = federation.shards.only(4).examples
    expected = plan_client_batches(21, 8, 5, generator(9, Purpose.BATCHES, round_index=2, client_id=4))
    for step, rows in enumerate(expected):
        real = rows[rows >= 0]
        np.testing.assert_array_equal(plan.batch(step).x[1, : len(real)], own.x[real])
        np.testing.assert_array_equal(plan.batch(step).y[1, : len(real)], own.y[real])


def test_batches_differ_between_rounds_clients_and_seeds():
    shards = ResidentShards(build_small_federation((50, 50)).shards, CPU)
    addresses = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)]
    orders = set()
    for client, round_index, seed in addresses:
        index = shards.plan([client], np.array([5]), 10, seed=seed, round_index=round_index).index
        orders.add(tuple((index - 50 * client).flatten().tolist()))
    assert len(orders) == len(addresses)


def test_read_only_shards_are_not_copied():
    shards = build_small_federation((4, 3)).shards
    shards.examples.x.flags.writeable = False
    resident = ResidentShards(shards, CPU)
    plan = resident.plan([0], np.array([1]), 4, seed=0, round_index=0)
    assert plan.x.data_ptr() == shards.examples.x.ctypes.data
    assert resident.sizes([1, 0]).tolist() == [3, 4]


# ——— images: normalized and augmented in the batch ———

MEAN, STD = (0.2, 0.5), (0.1, 0.4)
CHANNELS_2 = (2, 6, 5)


def build_image_shards(augmentation: Augmentation | None = None) -> Shards:
    """Builds uint8 images of clients of different sizes."""
    rng = np.random.default_rng(1)
    images = rng.integers(256, size=(sum(SIZES), *CHANNELS_2), dtype=np.uint8)
    examples = Examples(images, np.arange(sum(SIZES)))
    transform = Transform(mean=MEAN, std=STD, augmentation=augmentation)
    return Shards(examples, np.cumsum([0, *SIZES]), transform=transform)


def normalize(images: np.ndarray) -> np.ndarray:
    """Normalizes images independently of the package, in float64."""
    return (images / 255 - np.reshape(MEAN, (2, 1, 1))) / np.reshape(STD, (2, 1, 1))


def list_windows(image: np.ndarray, padding: int, flip: bool) -> list[np.ndarray]:
    """Returns every crop that augmentation may take of a normalized image."""
    height, width = image.shape[1:]
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    offsets = range(2 * padding + 1)
    cut = [padded[:, i : i + height, j : j + width] for i in offsets for j in offsets]
    return cut + [window[:, :, ::-1] for window in cut if flip]


def test_images_are_stored_as_uint8_and_normalized_in_the_batch() -> None:
    shards = build_image_shards()
    plan = ResidentShards(shards, CPU).plan([1, 3], np.array([4, 4]), 8, seed=0, round_index=0)
    assert (plan.x.dtype, plan.x.data_ptr()) == (torch.uint8, shards.examples.x.ctypes.data)
    batch = plan.batch(2)
    assert batch.x.dtype == torch.float32
    assert batch.x.shape == (2, 8, *CHANNELS_2)
    real = int(plan.counts[2, 0])
    expected = normalize(shards.examples.x[batch.y[0, :real].numpy()])  # a label is the number of its image
    np.testing.assert_allclose(batch.x[0, :real], expected, rtol=1e-5, atol=1e-5)


@drawn
@given(ids=some_group, per_example=st.booleans(), flip=st.booleans(), padding=st.integers(0, 3))
def test_a_clients_augmented_batches_do_not_depend_on_its_group(ids, per_example, flip, padding):
    shards = build_image_shards(Augmentation(per_example=per_example, padding=padding, flip=flip))
    steps = np.full(len(ids), 5)
    together = ResidentShards(shards, CPU).plan(ids, steps, 8, seed=1, round_index=2)
    for row, client in enumerate(ids):
        longer = np.array([7])  # the first steps are the same
        alone = ResidentShards(shards.only(client), CPU).plan([client], longer, 8, seed=1, round_index=2)
        for step in range(5):
            x, y = alone.unpadded_batch(step)
            batch = together.batch(step)
            torch.testing.assert_close(batch.x[row, : len(y)], x, rtol=0, atol=0)
            torch.testing.assert_close(batch.y[row, : len(y)], y, rtol=0, atol=0)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("per_example", [False, True])
def test_an_augmented_image_is_a_crop_of_the_padded_image_and_all_crops_occur(per_example: bool, flip: bool) -> None:
    shards = build_image_shards(Augmentation(per_example=per_example, padding=1, flip=flip))
    plan = ResidentShards(shards, CPU).plan([1], np.array([150]), 6, seed=0, round_index=0)
    seen, mixed = set(), 0
    possible = {label: np.stack(list_windows(normalize(shards.examples.x[label]), 1, flip)) for label in range(7, 37)}
    for step in range(150):
        x, y = plan.unpadded_batch(step)
        taken = []
        for image, label in zip(x.numpy(), y.tolist(), strict=True):
            near = np.flatnonzero(np.abs(possible[label] - image).max(axis=(1, 2, 3)) < 1e-4)
            assert len(near) == 1
            taken.append(int(near[0]))
        seen.update(taken)
        mixed += len(set(taken)) > 1
    assert seen == set(range(18 if flip else 9))
    assert mixed > 140 if per_example else mixed == 0


def test_crops_differ_between_rounds_clients_steps_and_seeds() -> None:
    shards = ResidentShards(build_image_shards(Augmentation(per_example=True, padding=4, flip=True)), CPU)
    moves = set()
    for client, round_index, seed in [(1, 0, 0), (4, 0, 0), (1, 1, 0), (1, 0, 1)]:
        drawn_moves = shards.plan([client], np.array([3]), 8, seed=seed, round_index=round_index).moves
        assert drawn_moves is not None
        moves |= {tuple(step.flatten().tolist()) for step in drawn_moves}
    assert len(moves) == 12


def test_a_warm_up_batch_of_images_has_the_shape_of_a_real_one() -> None:
    shards = build_image_shards(Augmentation(per_example=False, padding=2, flip=True))
    plan = ResidentShards(shards, CPU).plan([0, 1], np.array([1, 1]), 8, seed=0, round_index=0)
    zeros, real = plan.with_zeros().batch(0), plan.batch(0)
    assert (zeros.x.shape, zeros.x.dtype) == (real.x.shape, real.x.dtype)


@pytest.mark.parametrize("count", [1, 3, 2500])
def test_channel_statistics_match_the_pixel_values(count: int) -> None:
    images = np.random.default_rng(2).integers(256, size=(count, 3, 4, 2), dtype=np.uint8)
    images[:, 1] = 51
    mean, std = compute_channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(np.array(std)[[0, 2]], (images / 255).std(axis=(0, 2, 3))[[0, 2]])
    assert std[1] == 1  # a constant channel is not divided by zero


def test_evaluation_normalizes_but_does_not_augment() -> None:
    shards = build_image_shards(Augmentation(per_example=True, padding=2, flip=True))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(60, 77))
    held_out = Examples(shards.examples.x[:9], shards.examples.y[:9])
    scorer = Scorer(model, shards, {"test": held_out}, CPU)
    eval_params = EvalParams(round_index=0, parameters=flatten(model), buffers=flatten_buffers(model))
    weight, bias = (p.detach().double().numpy() for p in model.parameters())
    for task, rows in ((ScoringTask(split="test", start=2, stop=9), slice(2, 9)),
                       (ScoringTask(split="clients", start=0, stop=0, client_id=1), slice(7, 37))):  # fmt: skip
        logits = normalize(shards.examples.x[rows]).reshape(-1, 60) @ weight.T + bias
        likelihoods = logits[np.arange(len(logits)), shards.examples.y[rows]] - np.log(np.exp(logits).sum(axis=1))
        np.testing.assert_allclose(scorer.score(eval_params, task).losses, -likelihoods, rtol=1e-4)


def test_poisson_batches_take_each_example_with_the_same_probability_independently() -> None:
    plan = plan_poisson_batches(50, 0.2, 4000, np.random.default_rng(0))
    counts = (plan >= 0).sum(axis=1)
    of_each = np.bincount(plan[plan >= 0], minlength=50)
    assert abs(counts.mean() - 10) < 4 * np.sqrt(50 * 0.2 * 0.8 / 4000)
    assert abs(counts.var() - 8) < 0.8  # binomial: a fixed batch size would have none
    assert np.abs(of_each - 800).max() < 5 * np.sqrt(4000 * 0.2 * 0.8)
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in plan)


def test_poisson_batches_may_be_empty_or_whole_and_fewer_steps_are_the_first_rows() -> None:
    assert plan_poisson_batches(3, 1.0, 2, np.random.default_rng(0)).tolist() == [[0, 1, 2]] * 2
    assert plan_poisson_batches(3, 0.0, 2, np.random.default_rng(0)).shape == (2, 0)
    few, many = (plan_poisson_batches(9, 0.5, steps, np.random.default_rng(3)) for steps in (2, 6))
    for a, b in zip(few, many[:2], strict=True):
        assert a[a >= 0].tolist() == b[b >= 0].tolist()
