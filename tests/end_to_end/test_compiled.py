"""Compiled local steps: as without to rounding, the same bytes on every placement, and compiled only once."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fednar_ray as fr
from tests.conftest import build_small_federation
from tests.support.stores import create_store

SIZES = (7, 30, 12, 3, 21, 9, 16)


@pytest.fixture(scope="module", autouse=True)
def programs(tmp_path_factory: pytest.TempPathFactory, local_ray: str) -> Iterator[Path]:
    """Keeps the programs of these tests in a directory of their own, also those of Ray's workers."""
    directory = tmp_path_factory.mktemp("programs")
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(directory)
    yield directory / "fednar_ray"
    if before is None:
        del os.environ["TORCHINDUCTOR_CACHE_DIR"]
    else:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = before


def build_experiment(compile: str, preset: str = "fedavg", **sections: Any) -> fr.Experiment:
    values = {
        "seed": 3,
        "federation": {"rounds": 4, "local_epochs": 1, "batch_size": 4, "clients_per_round": 5},
        "algorithm": {"name": preset, "local_lr": 0.1},
        "regularizer": {"name": "fednar", "weight_decay": 0.1, "clip_bound": 0.5},
        "execution": {"gpus_per_actor": 0, "cpus_per_actor": 0.5, "vectorize": 3, "compile": compile},
    }
    values["execution"] |= sections.pop("execution", {})
    return fr.Experiment.model_validate({**values, **sections})


def build_model() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Dropout(0.4), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3)
    model = torch.nn.Sequential(*layers)
    model[3].bias.requires_grad_(False)  # a constant of the program
    return model


def train(experiment: fr.Experiment, session: fr.RaySession | None = None) -> list[fr.RoundReport]:
    reports = fr.iter_rounds(experiment, federation=build_small_federation(SIZES), model=build_model(), session=session)
    return list(reports)


@pytest.mark.parametrize("preset", ["fedavg", "scaffold"])
def test_compiled_steps_compute_the_same_in_every_placement_and_compile_once(
    preset: str, session: fr.RaySession, programs: Path
) -> None:
    known = set(programs.glob("*.pt2"))
    serial = {"placement": "serial"}
    compiled = train(build_experiment("on", preset, execution=serial))
    plain = train(build_experiment("off", preset, execution=serial))
    for one, other in zip(compiled, plain, strict=True):
        np.testing.assert_allclose(one.parameters, other.parameters, rtol=1e-4, atol=2e-6)
        assert one.metrics.keys() == other.metrics.keys()
        for name in ("clip_fraction", "effective_weight_decay", "train_loss"):
            np.testing.assert_allclose(one.metrics[name], other.metrics[name], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(one.norm_quantiles, other.norm_quantiles, rtol=1e-3)
    assert any(
        one.parameters.tobytes() != other.parameters.tobytes() for one, other in zip(compiled, plain, strict=True)
    )
    (program,) = set(programs.glob("*.pt2")) - known
    written = program.stat().st_mtime_ns
    for actors in (1, 2):
        pooled = train(build_experiment("on", preset, execution={"placement": "pooled", "actors": actors}), session)
        assert pooled[-1].parameters.tobytes() == compiled[-1].parameters.tobytes()
    assert set(programs.glob("*.pt2")) - known == {program}
    assert program.stat().st_mtime_ns == written


def test_a_compiled_run_is_resumed_compiled_with_the_same_bytes(tmp_path: Path, programs: Path) -> None:
    """Its model and data are those of the test above, whose program it finds."""

    def run(compile: str, rounds: int, **resume: Any) -> fr.Result:
        experiment = build_experiment(
            compile, tracking={"uri": create_store(tmp_path / "mlflow.db")}, execution={"placement": "serial"}
        )
        federation = experiment.federation.model_copy(update={"rounds": rounds})
        experiment = experiment.model_copy(update={"federation": federation})
        return fr.run(experiment, federation=build_small_federation(SIZES), model=build_model(), **resume)

    whole = run("on", 4)
    assert whole.compiled
    first = run("on", 2)
    with pytest.raises(fr.ConfigError, match=r"execution\.compile"):
        run("off", 4, resume=first.directory)
    resumed = run("on", 4, resume=first.directory)
    assert resumed.compiled
    assert resumed.resumed_from_round == 2
    assert resumed.parameters.tobytes() == whole.parameters.tobytes()
