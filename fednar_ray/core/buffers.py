"""A module's buffers. Those that training changes are averaged over clients; all others keep their given values."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fednar_ray.core.errors import BuffersChanged, ModelError
from fednar_ray.core.exclusion import Exclusion, ExclusionReason

LARGEST_INTEGER = 2**53
"""Up to this value, float64 holds every integer exactly. Buffers are averaged in float64."""


def copy_buffers(module: nn.Module) -> dict[str, Tensor]:
    """Returns a copy of every buffer by its name."""
    return {name: buffer.detach().clone() for name, buffer in module.named_buffers()}


def find_changed_buffers(before: Mapping[str, Tensor], module: nn.Module) -> tuple[str, ...]:
    """Returns the names of the buffers that differ from ``before``, in the module's order.

    Raises:
        ModelError: A changed buffer cannot be averaged over clients. The message names the buffer.
    """
    after = dict(module.named_buffers())
    if before.keys() != after.keys():
        names = ", ".join(sorted(before.keys() ^ after.keys()))
        raise ModelError(f"the forward pass adds or removes buffers ({names}); register every buffer in __init__")
    changed = tuple(name for name, buffer in after.items() if not have_same_bits(before[name], buffer))
    for name in changed:
        _check_can_be_averaged(name, before[name], after[name])
    return changed


def _check_can_be_averaged(name: str, before: Tensor, after: Tensor) -> None:
    if _describe(before) != _describe(after):
        text = f"the forward pass changes buffer {name} from {_describe(before)} to {_describe(after)}"
        raise ModelError(f"{text}; a buffer that is averaged over clients must keep its type and shape")
    if after.layout != torch.strided or after.is_quantized:
        raise ModelError(f"training changes buffer {name}, which is {_describe(after)}; only dense ones are averaged")
    if _exceeds_float64(before) or _exceeds_float64(after):
        text = f"training changes buffer {name}, whose {after.dtype} values exceed 2^53"
        raise ModelError(f"{text}; their average over clients is not exact, so keep such a state outside of buffers")


def _describe(buffer: Tensor) -> str:
    layout = "" if buffer.layout == torch.strided else f" {buffer.layout}"
    return f"{buffer.dtype}{layout} {list(buffer.shape)}"


def _exceeds_float64(buffer: Tensor) -> bool:
    if buffer.dtype not in (torch.int64, torch.uint64) or not buffer.numel():
        return False
    lowest, highest = (int(bound) for bound in buffer.view(torch.int64).aminmax())
    # viewed as int64, a uint64 beyond 2^63 is negative
    return highest > LARGEST_INTEGER or lowest < (0 if buffer.dtype == torch.uint64 else -LARGEST_INTEGER)


def find_buffer_exclusion(module: nn.Module, names: Sequence[str]) -> Exclusion | None:
    """Returns why a client's buffers cannot enter the average, naming the first such buffer; None if they can."""
    buffers = dict(module.named_buffers()) if names else {}
    for name in names:
        if not torch.isfinite(buffers[name]).all():
            return Exclusion(ExclusionReason.BUFFER_NOT_FINITE, name)
        if _exceeds_float64(buffers[name]):
            return Exclusion(ExclusionReason.BUFFER_TOO_LARGE, name)
    return None


def check_unchanged(module: nn.Module, given: Mapping[str, Tensor]) -> None:
    """Checks that the buffers named in ``given`` still have exactly these values.

    Raises:
        BuffersChanged: One has other values or was removed. The message names it.
    """
    if not given:
        return
    now = dict(module.named_buffers())
    changed = [name for name, buffer in given.items() if name not in now or not have_same_bits(buffer, now[name])]
    if changed:
        raise BuffersChanged(tuple(changed))


def restore_buffers(module: nn.Module, given: Mapping[str, Tensor]) -> None:
    """Restores the value of every buffer named in ``given``. A buffer with the same bits stays the same tensor."""
    now = dict(module.named_buffers())
    for name, buffer in given.items():
        if name not in now or not have_same_bits(buffer, now[name]):
            owner, _, own_name = name.rpartition(".")
            setattr(module.get_submodule(owner), own_name, buffer.clone())


def have_same_bits(first: Tensor, second: Tensor) -> bool:
    """Returns whether two tensors have the same type, shape and bits. NaN equals NaN of the same bits.

    Tensors on the meta device have no bits, so type and shape decide.
    """
    if first is second:
        return True
    if _describe(first) != _describe(second):
        return False
    if first.is_meta or second.is_meta:
        return first.is_meta == second.is_meta
    return all(
        torch.equal(_view_as_bytes(a), _view_as_bytes(b))
        for a, b in zip(_list_parts(first), _list_parts(second), strict=True)
    )


def _list_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """Returns the dense tensors that hold everything that ``tensor`` stores."""
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor.int_repr(), tensor.dequantize()) if tensor.is_quantized else (tensor,)


def _view_as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().resolve_conj().resolve_neg().reshape(-1).view(torch.uint8)
