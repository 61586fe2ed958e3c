"""Models that fail while they train one client, and the runs that train them."""

import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch._C import _functorch

import fednar_ray as fr
from fednar_ray.core.errors import RoundAborted
from fednar_ray.core.messages import GroupTask
from tests.conftest import build_small_federation

SIZES = (7, 30, 12, 3, 21, 9, 16)
BAD, SENTINEL = 4, 77.0  # the client whose examples hold this number


def build_tasks(*groups: tuple[int, ...]) -> list[GroupTask]:
    return [GroupTask(client_ids=group, states=None) for group in groups]


def unwrap_group(x: torch.Tensor) -> torch.Tensor:
    """Returns the examples of the whole client group within ``torch.func.vmap``."""
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x


class Leaves(BaseException):
    """An exception that, like ``SystemExit``, does not inherit from ``Exception``."""


class Trap(torch.nn.Module):
    """A model that does ``what`` with the bad client's examples: once if it has a ``marker`` file, or always."""

    def __init__(self, what: str, marker: Path | None, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.what, self.marker = what, marker
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, width), torch.nn.ReLU(), torch.nn.Linear(width, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.what and bool((unwrap_group(x) == SENTINEL).any()) and self._is_triggered():
            if self.what == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.what == "hang":
                time.sleep(3600)
            if self.what == "exit":
                sys.exit(3)
            if self.what == "interrupt":
                raise KeyboardInterrupt
            if self.what == "leave":
                raise Leaves("for good")
            raise ArithmeticError("this client cannot be trained")
        return self.layers(torch.where(x == SENTINEL, 0.0, x))

    def _is_triggered(self) -> bool:
        if self.marker is None:
            return True
        try:
            self.marker.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class Crowded(Trap):
    """A model that runs out of memory if more than two clients train together."""

    def __init__(self) -> None:
        super().__init__("", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if unwrap_group(x).ndim > 2 and len(unwrap_group(x)) > 2:
            raise MemoryError
        return super().forward(x)


def build_federation(sizes: tuple[int, ...] = SIZES, bad: int = BAD) -> fr.Federation:
    whole = build_small_federation(sizes)
    start, stop = whole.shards.offsets[bad : bad + 2]
    whole.shards.examples.x[start:stop, 0] = SENTINEL
    return whole


def build_experiment(execution: dict[str, Any], preset: str = "fedavg", **more: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "federation": {"rounds": 3, "local_epochs": 1, "batch_size": 4, **more.pop("federation", {})},
            "algorithm": {"name": preset, "local_lr": 0.1},
            "regularizer": {"name": "fednar", "weight_decay": 0.1, "clip_bound": 0.5},
            "execution": {"gpus_per_actor": 0, "cpus_per_actor": 0.5, "vectorize": 1, **execution},
            **more,
        }
    )


POOLED = {"placement": "pooled", "actors": 2}


def train(
    settings: fr.Experiment, model: torch.nn.Module, session: fr.RaySession | None = None
) -> list[fr.RoundReport]:
    return list(fr.iter_rounds(settings, federation=build_federation(), model=model, session=session))


def train_undisturbed(preset: str = "fedavg", **more: Any) -> bytes:
    return train(build_experiment({"placement": "serial"}, preset, **more), Trap("", None))[-1].parameters.tobytes()


def train_without_bad_client(rounds: int = 3) -> bytes:
    others = [[i for i in range(len(SIZES)) if i != BAD]] * rounds
    return train_undisturbed(federation={"participation": others, "rounds": rounds})


def check_halves_after_running_out_of_memory(
    placement: str, caplog: pytest.LogCaptureFixture, session: fr.RaySession | None = None
) -> None:
    """Trains a model that runs out of memory in groups of more than two, in groups of seven."""
    settings = build_experiment({"placement": placement, "vectorize": 7})
    with caplog.at_level(logging.WARNING, "fednar_ray"):
        reports = train(settings, Crowded(), session)
    assert not any(report.exclusions for report in reports)
    assert "MemoryError; training its two halves separately (the sum is the same up to rounding" in caplog.text
    expected = train(build_experiment({"placement": "serial", "vectorize": 2}), Trap("", None))[-1]
    np.testing.assert_allclose(reports[-1].parameters, expected.parameters, rtol=1e-4, atol=1e-6)


def check_abort_with_cause(placement: str, session: fr.RaySession | None = None) -> None:
    """Trains a client that always fails in rounds that need every client."""
    settings = build_experiment({"placement": placement, "min_clients": 7, "retries": 0})
    text = (
        "6 of 7 clients remain, at least 7 required; client 4 excluded: training failed: ArithmeticError: this client"
    )
    with pytest.raises(RoundAborted, match=text):
        train(settings, Trap("raise", None), session)
