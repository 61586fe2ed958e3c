"""Arrays are copied to a device without being written to; staging buffers are reused; freed memory is kept."""

import platform
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fednar_ray.core import freed_memory
from fednar_ray.core.transfers import StagingBuffer, as_tensor, on_device

CPU = torch.device("cpu")


@pytest.fixture
def _torch_warns_always() -> Iterator[None]:
    """Makes torch warn about every read-only array, not only about the first one in the process."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


def read_only(dtype: str = "float32") -> np.ndarray[Any, Any]:
    array = np.arange(12).astype(dtype)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
@pytest.mark.usefixtures("_torch_warns_always")
def test_a_read_only_array_becomes_a_tensor_over_its_own_memory_without_a_warning(dtype: str) -> None:
    array = read_only(dtype)
    with pytest.warns(UserWarning, match="not writable"):
        torch.from_numpy(array)
    for tensor in (as_tensor(array), on_device(array, CPU)):  # warnings are errors here
        assert tensor.data_ptr() == array.ctypes.data
        assert tensor.numpy().dtype == dtype
        np.testing.assert_array_equal(tensor.numpy(), array)


@pytest.mark.usefixtures("_torch_warns_always")
def test_the_warning_is_suppressed_only_for_that_array() -> None:
    as_tensor(read_only())
    with pytest.raises(UserWarning, match="not writable"):  # the suite's filter is active again
        torch.from_numpy(read_only())


def test_a_staging_buffer_reuses_its_memory() -> None:
    buffer, room = StagingBuffer(3, CPU), np.arange(8, dtype=np.float32)
    filled = [buffer.fill(room[start : start + 3]) for start in range(5)]  # for every alignment
    assert {tensor.data_ptr() for tensor in filled} == {filled[0].data_ptr()}
    np.testing.assert_array_equal(filled[-1].numpy(), [4, 5, 6])
    assert StagingBuffer(3, CPU).fill(room[:3]).data_ptr() != filled[0].data_ptr()  # each trainer has its own


def test_a_staged_copy_does_not_change_with_its_source() -> None:
    buffer, source = StagingBuffer(4, CPU), np.array([1, 2, 3, 4], dtype=np.float32)
    landed = buffer.fill(source)
    source[:] = -1
    np.testing.assert_array_equal(landed.numpy(), [1, 2, 3, 4])


@pytest.mark.usefixtures("_torch_warns_always")
def test_writing_to_a_staged_copy_does_not_change_a_read_only_source() -> None:
    source = read_only()
    buffer = StagingBuffer(len(source), CPU)
    buffer.fill(source).mul_(2).add_(1)
    np.testing.assert_array_equal(source, np.arange(12))
    np.testing.assert_array_equal(buffer.fill(source).numpy(), np.arange(12))


# ——— freed memory ———

FAULTS = """
import resource
from fednar_ray.core.freed_memory import keep_freed_memory

def faults(blocks):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for i in range(blocks):
        block = bytes([i]) * 2**27
        assert block[0] == block[-1] == i
        del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = faults(3)
keep_freed_memory(ARGUMENTS)
faults(1)
print(default, faults(3))
"""


@pytest.mark.usefixtures("processes")
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("arguments", ["", "2**28, 2**27"])
def test_a_process_that_keeps_freed_memory_asks_the_kernel_for_no_fresh_pages(arguments: str) -> None:
    program = FAULTS.replace("ARGUMENTS", arguments)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    default, kept = map(int, done.stdout.split())
    assert kept < default / 10


def test_without_glibc_nothing_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """``CDLL(None)`` raises on Windows."""
    monkeypatch.setattr(freed_memory, "sys", SimpleNamespace(platform="win32"))
    monkeypatch.setattr("fednar_ray.core.freed_memory.ctypes.CDLL", lambda name: pytest.fail("no such library"))
    freed_memory.keep_freed_memory()
