"""Tests of results on a device: those of the CPU up to rounding, the same bits in every run, and after a resume."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gpu_checks.packs import Trials
from gpu_checks.runs import Run, build_run, list_variants
from torch import nn

from fednar_ray.checkpoint.locations import open_storage
from fednar_ray.checkpoint.store import CheckpointStore
from fednar_ray.config.execution import Precision
from fednar_ray.core.flat_params import flatten
from fednar_ray.data.federation import Federation
from fednar_ray.experiments.iter_rounds import build_initial_state
from fednar_ray.federated.pack_trainer import PackTrainer
from fednar_ray.federated.precision import autocast, use_precision
from fednar_ray.federated.server_state import FederationState

Row = dict[str, Any]
CPU = torch.device("cpu")
CLIENTS, ROUNDS, STOPPED_AFTER = 6, 4, 2
TOLERANCE = 1e-3
"""Largest difference between two devices, relative to how far training moves the parameters. Rounding in float32 gives
about 1e-5 per step."""


def build_mlp(*, dropout: float = 0.0) -> nn.Module:
    """Builds an MLP for vectors of 64."""
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, 10))


def build_cnn(norm: nn.Module) -> nn.Module:
    """Builds two convolutions with ``norm`` for 8 channels, for images [3, 16, 16]."""
    first = (nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*first, nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 10))


@dataclass(frozen=True)
class Case:
    """A small run whose results are compared."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    algorithm: str
    vectorize: int

    def build_run(self, device: torch.device, **execution: Any) -> Run:
        """Builds the case's run of a few rounds on a device, with settings of the section ``execution``."""
        rng = np.random.default_rng(0)
        x = rng.random((CLIENTS, 16, *self.shape), dtype=np.float32)
        y = rng.integers(10, size=(CLIENTS, 16))
        torch.manual_seed(0)
        sections = {
            "federation": {"rounds": ROUNDS, "clients_per_round": 5, "local_steps": 4, "batch_size": 8},
            "algorithm": {"name": self.algorithm, "local_lr": 0.05},
            "regularizer": {"name": "fednar", "weight_decay": 0.01, "clip_bound": 1.0},
        }
        federation = Federation([*zip(x, y, strict=True)], test=(x[0], y[0]))
        return build_run(sections, federation, self.build(), device, vectorize=self.vectorize, **execution)


CASES = {
    "MLP, groups of 4": Case(build_mlp, (64,), "fedavg", 4),
    "MLP, SCAFFOLD, groups of 4": Case(build_mlp, (64,), "scaffold", 4),
    "MLP with dropout, groups of 4": Case(lambda: build_mlp(dropout=0.3), (64,), "fedavg", 4),
    "CNN with GroupNorm, groups of 4": Case(lambda: build_cnn(nn.GroupNorm(2, 8)), (3, 16, 16), "fedexp", 4),
    "CNN with GroupNorm, one by one": Case(lambda: build_cnn(nn.GroupNorm(2, 8)), (3, 16, 16), "scaffold", 1),
    "CNN with BatchNorm, one by one": Case(lambda: build_cnn(nn.BatchNorm2d(8)), (3, 16, 16), "fedavg", 1),
}

ON_A_CPU = ("MLP, SCAFFOLD, groups of 4", "CNN with BatchNorm, one by one")


def iter_cases(device: torch.device) -> Iterator[tuple[str, Case, dict[str, Any]]]:
    """Yields each case with each variant of ``execution``: its name, the case, and the settings."""
    cases = CASES if device.type == "cuda" else {name: CASES[name] for name in ON_A_CPU}
    for variant, settings in list_variants(device).items():
        for name, case in cases.items():
            yield f"{name}, {variant}" if variant else name, case, dict(settings)


def check_results(device: torch.device, directory: Path) -> Iterator[Row]:
    """Compares each case with the CPU and with itself, and leaves half of a run behind for ``check_resumed``."""
    yield from check_precisions(device)
    yield from check_packs(device)
    for name, case, execution in iter_cases(device):
        run = case.build_run(device, **execution)
        final, again = train(run), train(run)
        yield {"test": f"the same bits in two runs: {name}", "passed": final.tobytes() == again.tobytes()}
        place = directory / name.replace(" ", "-").replace(",", "")
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / "final.npy", final)
        save_half(run, place)
        started = flatten(run.prepared.model)
        distance = compute_distance(final, train(case.build_run(CPU)), started)
        text = f"{distance:.1e} of the way that training goes"
        yield {"test": f"as on the CPU: {name}", "passed": distance < TOLERANCE, "found": text}


def check_packs(device: torch.device) -> Iterator[Row]:
    """Trains four trials of each case as rows of one matrix, and compares them with their own runs, bit for bit."""
    for name, case in CASES.items():
        if case.vectorize == 1 or (device.type != "cuda" and name not in ON_A_CPU):
            continue
        trials, pack = Trials(case.build_run(device, compile="off"), 4), PackTrainer.on(device)
        same = trials.train(pack) == trials.train(None)
        row: Row = {"test": f"trials of a pack have the bits of their own runs: {name}", "passed": same}
        if same and pack.is_refused:
            row |= {"passed": None, "found": "rows of a matrix have other bits here: trained one after another"}
        yield row


def check_resumed(device: torch.device, directory: Path) -> Iterator[Row]:
    """Resumes the runs that another process has left after half of their rounds."""
    for name, case, execution in iter_cases(device):
        place = directory / name.replace(" ", "-").replace(",", "")
        run = case.build_run(device, **execution)
        checkpoint = CheckpointStore(open_storage(str(place / "checkpoints")), keep=1).load()
        assert checkpoint is not None, place
        state = FederationState.from_checkpoint(checkpoint, build_initial_state(run.prepared))
        same = train(run, state).tobytes() == np.load(place / "final.npy").tobytes()
        yield {"test": f"the same bits after a resume in another process: {name}", "passed": same}


def train(run: Run, state: FederationState | None = None) -> npt.NDArray[np.float32]:
    """Returns the parameters after the last round."""
    *_, last = run.train(state)
    return last.parameters.copy()


def save_half(run: Run, place: Path) -> None:
    """Trains the first rounds, and saves a checkpoint."""
    state = build_initial_state(run.prepared)
    for report in run.train(state):
        if report.round_index + 1 == STOPPED_AFTER:
            break
    snapshot = state.take_snapshot(["{}"] * STOPPED_AFTER, {})
    CheckpointStore(open_storage(str(place / "checkpoints")), keep=1).save(snapshot)


def compute_distance(a: npt.NDArray[Any], b: npt.NDArray[Any], started: npt.NDArray[Any]) -> float:
    """Returns ‖a − b‖ relative to ‖b − started‖."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b - started))


LARGEST_ERRORS: dict[Precision, tuple[float, float]] = {
    "float32": (0.0, 2e-5),
    "tf32": (5e-5, 3e-3),
    "bfloat16": (3e-4, 3e-2),
}
"""Smallest and largest error of a product in each precision, relative to float64. TF32 only allows cuDNN to round, so a
convolution's may be smaller."""


def check_precisions(device: torch.device) -> Iterator[Row]:
    """Checks that each precision rounds as it should: float32 is not TF32, and TF32 is not float32."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    x, kernel = torch.randn(8, 32, 16, 16, generator=generator), torch.randn(32, 32, 3, 3, generator=generator)
    for precision, (least, most) in LARGEST_ERRORS.items():
        if precision == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
            yield {"test": f"{precision}", "passed": None, "found": "skipped: this device has none"}
            continue
        for what, function, inputs in (("product", torch.mm, (a, b)), ("convolution", conv2d, (x, kernel))):
            exact = function(*(each.double() for each in inputs))
            with use_precision(precision, device), autocast(precision, device):
                found = function(*(each.to(device) for each in inputs)).double().cpu()
            error = float((found - exact).norm() / exact.norm())
            enough = error >= least or (precision == "tf32" and what == "convolution")
            yield {"test": f"{precision}: {what}", "passed": enough and error <= most, "found": f"error {error:.1e}"}


def conv2d(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Convolves images with a kernel."""
    return nn.functional.conv2d(x, kernel)
