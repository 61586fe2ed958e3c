"""The device on which a process trains."""

import pytest

from fednar_ray.core.errors import DeviceError
from fednar_ray.execution.devices import check_precision, choose_device


def test_without_an_assigned_gpu_the_device_is_the_cpu() -> None:
    assert [choose_device([], devices) for devices in (0, 1, 8)] == ["cpu", "cpu", "cpu"]


@pytest.mark.parametrize("assigned", [["0"], ["7"], ["GPU-8b3f", "GPU-9c1d"]])
def test_an_assigned_gpu_is_the_first_cuda_device(assigned: list[str]) -> None:
    assert choose_device(assigned, len(assigned)) == "cuda:0"


def test_an_assigned_gpu_that_torch_cannot_use_is_an_error() -> None:
    with pytest.raises(DeviceError, match=r"assigned GPU 0, 3, .* no CUDA device; .*execution\.gpus_per_actor=0"):
        choose_device(["0", "3"], 0)


def test_tf32_and_bfloat16_need_a_gpu_that_computes_in_them():
    for precision in ("float32", "tf32", "bfloat16"):
        check_precision(precision, (8, 0), "NVIDIA A100")
    check_precision("float32", (7, 0), "Tesla V100")
    for precision in ("tf32", "bfloat16"):
        with pytest.raises(DeviceError, match=rf"{precision} needs a GPU .* V100 has 7\.0; use float32"):
            check_precision(precision, (7, 0), "Tesla V100")
