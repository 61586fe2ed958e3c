"""Every placement reproduces the trajectories of the authors' program (tests/federated/golden/README.md)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fednar_ray as fr
from fednar_ray.core.flat_params import load_parameters

GOLDEN = np.load(Path(__file__).parent / "golden" / "authors_trajectories.npz")
RUNS: list[dict[str, Any]] = json.loads(str(GOLDEN["meta"]))
NAMES = [f"{r['alg']}-{'fednar' if r['nar'] else 'base'}-{'some' if r['sampled'] else 'all'}" for r in RUNS]


def build_federation() -> fr.Federation:
    clients = [(GOLDEN[f"x{i}"], GOLDEN[f"y{i}"]) for i in range(int(GOLDEN["n_clients"]))]
    return fr.Federation(clients, test=(GOLDEN["test_x"], GOLDEN["test_y"]))


def build_model() -> torch.nn.Module:
    hidden = int(GOLDEN["hidden"])
    module = torch.nn.Sequential(torch.nn.Linear(64, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 10))
    load_parameters(module, GOLDEN["init"])
    return module


def build_experiment(run: dict[str, Any], execution: dict[str, Any], rounds: int) -> fr.Experiment:
    decay = run["decay"]
    algorithm = {"name": run["alg"], "local_lr": run["eta_l"] * decay, "local_lr_anneal": decay}
    if run["alg"] == "fedadam":
        algorithm["name"] = "fedadam_li2023"
    if run["alg"] == "fedprox":
        algorithm["mu"] = run["mu"]
    if run["alg"] in ("fedadam", "fedexp"):
        algorithm |= {"epsilon": run["eps"] * decay**2, "epsilon_anneal": decay**2}
    if run["eta_g"] != "adaptive":
        algorithm["server_lr"] = run["eta_g"]
    return fr.Experiment.model_validate(
        {
            "federation": {
                "rounds": rounds,
                "local_steps": run["steps"],
                "batch_size": 10**6,
                "participation": run["sampled"],
            },
            "algorithm": algorithm,
            "regularizer": {
                "name": "fednar" if run["nar"] else "decoupled",
                "weight_decay": run["wd"],
                "clip_bound": run["max_norm"],
            },
            "execution": execution,
        }
    )


def assert_reproduced(index: int, execution: dict[str, Any], session: fr.RaySession | None = None) -> None:
    run, expected = RUNS[index], GOLDEN[f"traj{index}"]
    bound = 5e-3 if run["alg"] == "fedexp" else 2e-4
    settings = build_experiment(run, execution, len(expected))
    reports = fr.iter_rounds(settings, federation=build_federation(), model=build_model(), session=session)
    for report, reference in zip(reports, expected, strict=True):
        t = report.round_index
        moved = np.linalg.norm(reference - GOLDEN["init"])
        assert np.linalg.norm(report.parameters - reference) / moved < bound, f"round {t}"
        clipped = report.metrics["clip_fraction"] * len(report.client_ids) * run["steps"]
        assert round(clipped) == GOLDEN[f"clips{index}"][t]
        assert report.metrics["server_lr"] == pytest.approx(GOLDEN[f"eta{index}"][t], rel=bound)


@pytest.mark.parametrize("width", [1, 6])
@pytest.mark.parametrize("index", range(len(RUNS)), ids=NAMES)
def test_serial_training_reproduces_the_authors_trajectory(index: int, width: int) -> None:
    assert_reproduced(index, {"placement": "serial", "vectorize": width})


@pytest.mark.parametrize("index", range(len(RUNS)), ids=NAMES)
def test_pooled_training_reproduces_the_authors_trajectory(index: int, session: fr.RaySession) -> None:
    execution = {"placement": "pooled", "actors": 2, "vectorize": 2, "gpus_per_actor": 0}
    assert_reproduced(index, execution, session)
