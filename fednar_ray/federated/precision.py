"""The precision in which clients are trained and evaluated: ``execution.precision``. No other module sets it in torch.

torch's flags are set under the names that torch 2.6 knows. Later versions keep their ``fp32_precision`` consistent with
them, while code that sets ``fp32_precision`` makes every later read of the older flags fail, in torch's compiler too.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.backends import cuda, cudnn

from fednar_ray.config.execution import Precision


@contextmanager
def use_precision(precision: Precision, device: torch.device) -> Iterator[None]:
    """Sets torch's flags for training or evaluation in this process, and restores them at the end.

    float32 is truly float32: by itself, torch lets cuDNN's convolutions use TF32. On a GPU, cuDNN is also kept to
    algorithms that give the same bits in every run.

    Args:
        precision: tf32 lets matrix products and convolutions on a GPU round their inputs to 10 bits of mantissa. The
            others do not; for bfloat16 the forward pass needs ``autocast`` in addition.
        device: Where clients are trained or scored.
    """
    on_gpu = device.type == "cuda"
    restore = [*_set_matmul_precision("high" if on_gpu and precision == "tf32" else "highest")]
    if on_gpu:
        wanted = {"allow_tf32": precision == "tf32", "deterministic": True, "benchmark": False}
        restore += [action for name, value in wanted.items() for action in _set_cudnn_flag(name, value)]
    try:
        yield
    finally:
        for action in restore:
            action()


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Returns the context of a forward pass: for bfloat16 torch's autocast, otherwise one that does nothing.

    Parameters stay float32. Autocast keeps no converted copies of them, since they change between two steps.
    """
    if precision != "bfloat16":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def restore_float32(outputs: Tensor) -> Tensor:
    """Returns outputs of an autocast forward pass as float32, in which losses and predictions are computed."""
    return outputs.float() if outputs.dtype == torch.bfloat16 else outputs


def _set_matmul_precision(wanted: str) -> Iterator[Callable[[], None]]:
    """Sets the precision of float32 matrix products, on every device. Yields what restores it, if it was another."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # someone has set fp32_precision, which alone is right then
        yield partial(setattr, cuda.matmul, "fp32_precision", cuda.matmul.fp32_precision)
    else:
        if before == wanted:
            return
        yield partial(_set_quietly, torch.set_float32_matmul_precision, before)
    _set_quietly(torch.set_float32_matmul_precision, wanted)


def _set_cudnn_flag(name: str, wanted: bool) -> Iterator[Callable[[], None]]:
    """Sets a flag of cuDNN. Yields what restores it, if it was another."""
    try:
        before = getattr(cudnn, name)
    except RuntimeError:  # as above
        parts: Any = cudnn
        for part in (parts.conv, parts.rnn):
            yield partial(setattr, part, "fp32_precision", part.fp32_precision)
    else:
        if before == wanted:
            return
        yield partial(_set_quietly, setattr, cudnn, name, before)
    _set_quietly(setattr, cudnn, name, wanted)


def _set_quietly(set_flag: Callable[..., None], *arguments: object) -> None:
    """Calls ``set_flag`` without the advice of some versions of torch to use ``fp32_precision``."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Please use the new API settings")
        set_flag(*arguments)
