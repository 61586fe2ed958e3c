"""Modules as flat vectors of their parameters and buffers."""

import numpy as np
import torch
from torch import nn

from fednar_ray.core.flat_params import ParameterLayout, flatten, flatten_buffers, load_buffers, load_parameters
from tests.support.modules import build_partly_frozen, build_tied


def test_the_vector_contains_the_trainable_parameters_in_order():
    module = build_partly_frozen()
    expected = torch.cat([module[2].weight.flatten(), module[2].bias])
    np.testing.assert_array_equal(flatten(module), expected.detach())
    layout = ParameterLayout.of(module)
    assert (layout.names, layout.dimension) == (("2.weight", "2.bias"), 15)
    views = layout.unflatten(torch.arange(15.0))
    assert views["2.weight"].tolist() == torch.arange(12.0).view(3, 4).tolist()
    assert views["2.bias"].tolist() == [12, 13, 14]


def test_tied_parameters_occur_once():
    module = build_tied()
    assert ParameterLayout.of(module).dimension == 9 + 9 + 3 + 3
    vector = np.arange(24, dtype=np.float32)
    load_parameters(module, vector)
    np.testing.assert_array_equal(flatten(module), vector)
    assert module[1].weight is module[2].weight


def test_parameters_survive_the_round_trip_and_frozen_ones_are_unchanged():
    module, frozen = build_partly_frozen(), build_partly_frozen()[0].weight.detach()
    with torch.no_grad():
        module[0].weight.copy_(frozen)
    vector = np.random.default_rng(0).normal(size=15).astype(np.float32)
    vector.flags.writeable = False  # as in a report
    load_parameters(module, vector)
    np.testing.assert_array_equal(flatten(module), vector)
    torch.testing.assert_close(module[0].weight, frozen, rtol=0, atol=0)
    flatten(module)[:] = 0  # changes a copy
    np.testing.assert_array_equal(flatten(module), vector)


def test_buffers_survive_the_round_trip_with_integers():
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    module.register_buffer("mask", torch.tensor([True, False]))
    vector = flatten_buffers(module)
    assert (vector.dtype, len(vector)) == (np.float64, 2 + 2 + 2 + 1)
    names = [name for name, _ in module.named_buffers()]
    values = {
        "mask": [0, 1],
        "0.running_mean": [0.25, -3],
        "0.running_var": [2, 4],
        "0.num_batches_tracked": [2**40 + 1],
    }
    load_buffers(module, np.concatenate([np.array(values[name], np.float64) for name in names]))
    for name, buffer in module.named_buffers():
        assert buffer.flatten().tolist() == values[name]
    assert module[0].num_batches_tracked.dtype == torch.int64


def test_averaged_counters_are_rounded():
    module = nn.BatchNorm1d(1)
    load_buffers(module, np.array([0.5, 1.5, 6.6]))
    assert (module.running_mean.item(), module.num_batches_tracked.item()) == (0.5, 7)


def test_without_buffers_the_vector_is_empty():
    module = nn.Linear(1, 1)
    assert flatten_buffers(module).shape == (0,)
    load_buffers(module, flatten_buffers(module))
