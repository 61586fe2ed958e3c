"""A model's weights from a local file."""

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fednar_ray.errors import ModelError, first_line

SHOWN = 5  # names of a kind in an error
NOT_TENSORS_ALONE = (
    "it is damaged, or it holds Python code or objects other than tensors, which are never run or made here; save the "
    "weights alone, with torch.save(model.state_dict(), path) or as .safetensors"
)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill ``model`` from a state dict: .safetensors, else what ``torch.save`` wrote, of which only tensors are read.

    Raises ModelError, naming the file, where it cannot be read, or its names and shapes are not exactly the model's.
    """
    state, own = _read(path), model.state_dict()
    problems = list(_mismatches(own, state))
    if problems:
        raise ModelError(f"model.weights: {path}: does not fit the model: " + "; ".join(problems))
    model.load_state_dict(state)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(f"model.weights: {path}: cannot be read: {NOT_TENSORS_ALONE}") from None
    except Exception as error:
        if "weights_only" in str(error):  # an archive of TorchScript, or of a kind that no longer is written
            raise ModelError(f"model.weights: {path}: cannot be read: {NOT_TENSORS_ALONE}") from None
        raise ModelError(f"model.weights: {path}: cannot be read: {first_line(error)[:300]}") from error
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise ModelError(f"model.weights: {path}: is no state dict (names with tensors)")
    return dict(state)


def _mismatches(own: Mapping[str, Any], state: Mapping[str, Any]) -> Iterator[str]:
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    shapes = [
        f"{name} {list(state[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    for what, names in (("missing", missing), ("not in the model", unknown), ("of another shape", shapes)):
        if names:
            yield f"{what}: {', '.join(names[:SHOWN])}" + (f" and {len(names) - SHOWN} more" if names[SHOWN:] else "")
