"""The GPU memory that an actor needs, with cases derived by hand."""

import pytest

from fednar_ray.execution.gpu_memory import count_actors_per_gpu, estimate_gpu_bytes

MB, GB = 10**6, 10**9


@pytest.mark.parametrize(
    ("model_mb", "group_size", "batch", "activation", "stateful", "expected"),
    [
        (0, 1, 1, 0, False, 700 * MB),
        (100, 1, 1, 0, False, (700 + (5 + 3) * 100) * MB),
        (100, 4, 1, 0, False, (700 + (4 * 5 + 3) * 100) * MB),
        (100, 4, 1, 0, True, (700 + (4 * 7 + 3) * 100) * MB),
        (0, 4, 50, 1 * MB, False, (700 + 2 * 4 * 50) * MB),  # forward and backward
    ],
)
def test_estimated_gpu_bytes_match_numbers_by_hand(
    model_mb: int, group_size: int, batch: int, activation: float, stateful: bool, expected: float
) -> None:
    assert estimate_gpu_bytes(model_mb * MB, group_size, batch, activation, stateful=stateful) == expected


@pytest.mark.parametrize(
    ("each", "memory", "fits"),
    [
        (4 * GB, 40 * GB, 9),  # nine tenths of the memory are filled
        (4 * GB, 17 * GB, 3),
        (4 * GB, 3 * GB, 1),  # one actor always fits: it trains in halves if memory runs out
        (4 * GB, None, None),
    ],
)
def test_actors_per_gpu_match_numbers_by_hand(each: float, memory: float | None, fits: int | None) -> None:
    assert count_actors_per_gpu(each, memory) == fits
