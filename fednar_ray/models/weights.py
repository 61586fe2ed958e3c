"""Loads a model's weights from a local file."""

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fednar_ray.core.errors import ModelError, first_line, format_value
from fednar_ray.core.postprocessing import append_saved_postprocessing, split_postprocessing
from fednar_ray.core.preprocessing import join_saved_preprocessing, split_state

SHOWN = 5  # names of a kind in an error
NOT_TENSORS_ALONE = (
    "it is damaged, or contains Python code or objects other than tensors, which are not loaded for safety; save only "
    "the weights, with torch.save(model.state_dict(), path) or as .safetensors"
)


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads the weights of ``model`` from a state dict.

    Args:
        model: The model, which is changed in place.
        path: A .safetensors file, or a file that ``torch.save`` wrote. Only tensors are read. Of a run's ``model.pt``
            only the network is used; the preprocessing is computed from the current data.

    Raises:
        ModelError: The file cannot be read, or its names and shapes are not exactly the model's.
    """
    state = _read(path, "model.weights")
    if set(state) != set(model.state_dict()):
        state = split_state(split_postprocessing(state)[1])[1]
    _fill(model, state, path, "model.weights")


def load_model(path: str | Path, network: nn.Module) -> nn.Module:
    """Loads the model of a finished run from its ``model.pt``. It equals the run's ``result.model``.

    Examples:
        >>> model = fr.load_model("runs/hospitals-1a2b3c4d", torch.nn.Linear(2, 1))
        >>> model(torch.tensor([[63.0, float("nan")]]))  # a raw row, with a missing value

    Args:
        path: The run's directory, or the file ``model.pt``.
        network: A module of the architecture that was trained. It is filled with the trained weights.

    Returns:
        A module that takes raw inputs, in evaluation mode: the run's preprocessing, the network, and for a regression
        with scaled labels the step back to the label's unit; the network itself if the run had no preprocessing.

    Raises:
        ModelError: The file cannot be read, or does not fit ``network``. The message names the file.
    """
    file = Path(path)
    file = file / "model.pt" if file.is_dir() else file
    postprocessing, state = split_postprocessing(_read(file, "model"))
    preprocessing, state = split_state(state)
    _fill(network, state, file, "model")
    return append_saved_postprocessing(postprocessing, join_saved_preprocessing(preprocessing, network)).eval()


def _fill(model: nn.Module, state: Mapping[str, Tensor], path: Path, place: str) -> None:
    problems = list(_find_mismatches(model.state_dict(), state))
    if problems:
        raise ModelError(f"{place}: {path}: does not fit the model: " + "; ".join(problems))
    model.load_state_dict(state)


def _read(path: Path, place: str) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(f"{place}: {path}: cannot be read: {NOT_TENSORS_ALONE}") from None
    except Exception as error:
        # a TorchScript archive, an outdated format, or bytes of something else
        if "weights_only" in str(error) or not isinstance(error, OSError | RuntimeError | SafetensorError):
            raise ModelError(f"{place}: {path}: cannot be read: {NOT_TENSORS_ALONE}") from None
        raise ModelError(f"{place}: {path}: cannot be read: {first_line(error)}") from error
    if not _is_state_dict(state):
        raise ModelError(f"{place}: {path}: is not a state dict (names with tensors){_explain_nesting(state)}")
    return dict(state)


def _is_state_dict(state: Any) -> bool:
    return isinstance(state, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    )


def _explain_nesting(state: Any) -> str:
    """Returns a hint where the weights are, if the file is a training checkpoint that contains more than weights."""
    entries = state.items() if isinstance(state, Mapping) else ()
    found = next((name for name, value in entries if _is_state_dict(value) and value), None)
    return "" if found is None else f"; its entry {format_value(found)} is one: save only that"


def _find_mismatches(own: Mapping[str, Any], state: Mapping[str, Any]) -> Iterator[str]:
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    shapes = [
        f"{name} {list(state[name].shape)}, not {list(own[name].shape)}"
        for name in own
        if name in state and not is_lazy(own[name]) and state[name].shape != own[name].shape
    ]
    kinds = [
        f"{name} is {_name_kind(state[name])}"
        for name in own
        if name in state and not is_lazy(own[name]) and _name_kind(state[name]) != _name_kind(own[name])
    ]
    for what, names in (
        ("missing", missing), ("not in the model", unknown), ("of another shape", shapes), ("of another kind", kinds),
    ):  # fmt: skip
        if names:
            yield f"{what}: {', '.join(names[:SHOWN])}" + (f" and {len(names) - SHOWN} more" if names[SHOWN:] else "")


def _name_kind(tensor: Tensor) -> str:
    """Returns the kind of a tensor. PyTorch cannot copy between kinds without loss."""
    if tensor.layout != torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return "quantized"
    return "complex" if tensor.is_complex() else "real"
