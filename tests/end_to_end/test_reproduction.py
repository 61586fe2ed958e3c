"""The paper's experiments as files, and the command that runs tables of them."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fednar_ray as fr
from fednar_ray.config import flatten_settings
from tests.support.forked_workers import get_executable
from tests.support.processes import run_script

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "scripts"
PAPER = ROOT / "tune_configs" / "paper"
GAMMA = 0.998
COMMON: Mapping[str, Any] = {
    "federation.clients_per_round": 20,
    "algorithm.local_lr_anneal": GAMMA,
    "regularizer.name": "fednar",
    "regularizer.clip_bound": 10.0,
    "regularizer.clip_bound_anneal": 1.0,
    "regularizer.weight_decay_anneal": 1.0,
    "data.partition.clients": 100,
}
CIFAR10 = {
    "data.source": "cifar10", "data.partition.kind": "dirichlet_equal", "model.name": "resnet18_gn",
    "federation.local_steps": 20, "federation.batch_size": 50, "algorithm.local_lr": 0.01 * GAMMA,
}  # fmt: skip
SHAKESPEARE = {
    "data.source": "shakespeare", "data.crop": True, "model.name": "char_transformer", "model.layers": 6,
    "regularizer.weight_decay": 1e-4,
}  # fmt: skip
ADAM = {"algorithm.server_lr": 0.1, "algorithm.epsilon": 0.01 * GAMMA**2, "algorithm.epsilon_anneal": GAMMA**2}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "fedavg": {"algorithm.name": "fedavg", "federation.rounds": 1000},
    "fedprox": {"algorithm.name": "fedprox", "federation.rounds": 1000, "algorithm.mu": 0.001},
    "scaffold": {"algorithm.name": "scaffold", "federation.rounds": 1000},
    "fedexp": {"algorithm.name": "fedexp", "federation.rounds": 1000},
    "fedavgm": {"algorithm.name": "fedavgm", "federation.rounds": 1000, "algorithm.beta": 0.9},
    "fedadam": {"algorithm.name": "fedadam_li2023", "federation.rounds": 300, **ADAM},
}
SHAKESPEARE_RATES = {"fedavg": 0.1, "fedprox": 0.1, "scaffold": 0.1, "fedexp": 0.01, "fedavgm": 0.01, "fedadam": 0.01}


def assert_has(experiment: fr.Experiment, wanted: Mapping[str, Any]) -> None:
    settings = flatten_settings(experiment)
    for key, value in wanted.items():
        assert settings[key] == (pytest.approx(value, rel=1e-12) if isinstance(value, float) else value), key


@pytest.mark.parametrize("alpha", ["0.3", "1", "10"])
@pytest.mark.parametrize("preset", PRESETS)
def test_cifar10_has_the_authors_settings(preset: str, alpha: str) -> None:
    decay = 0.05 if preset in ("fedavg", "fedprox", "scaffold") else 0.01
    own = {"data.partition.alpha": float(alpha), "regularizer.weight_decay": decay}
    assert_has(fr.load(PAPER / f"cifar10_alpha{alpha}_{preset}.yaml"), {**COMMON, **CIFAR10, **PRESETS[preset], **own})


@pytest.mark.parametrize("preset", PRESETS)
def test_shakespeare_has_the_authors_settings(preset: str) -> None:
    steps, batch = (20, 500) if preset == "fedprox" else (100, 100)
    own = {
        "federation.local_steps": steps,
        "federation.batch_size": batch,
        "algorithm.local_lr": SHAKESPEARE_RATES[preset] * GAMMA,
    }
    assert_has(fr.load(PAPER / f"shakespeare_{preset}.yaml"), {**COMMON, **SHAKESPEARE, **PRESETS[preset], **own})


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("regularizer", ["fednar", "decoupled"])
def test_every_backbone_trains_one_round_at_reduced_size(preset: str, regularizer: str) -> None:
    small = ("federation.rounds=1", "federation.clients_per_round=2", "federation.local_steps=2",
             "federation.batch_size=2", "execution.placement=serial", "data=null", "model.name=logistic",
             "model.pooling=null", f"regularizer.name={regularizer}")  # fmt: skip
    experiment = fr.load(PAPER / f"cifar10_alpha0.3_{preset}.yaml", overrides=small)
    random = np.random.default_rng(0)
    clients = [(random.normal(size=(3, 3, 8, 8)).astype(np.float32), random.permutation(10)[:3]) for _ in range(2)]
    (report,) = fr.iter_rounds(experiment, federation=fr.Federation(clients, test=clients[0]))
    assert np.isfinite(report.parameters).all()


@pytest.fixture
def hospitals(tmp_path: Path) -> Path:
    random, directory = np.random.default_rng(0), tmp_path / "hospitals"
    x = random.normal(size=(90, 5)).astype(np.float32)
    x[::17, 2] = np.nan
    names = np.repeat(["a", "b", "c"], [40, 30, 20])
    degrees = np.where(x[:, 0] > 0, 1 + np.arange(90) % 4, 0)
    np.savez(tmp_path / "all.npz", x=x, y=degrees, hospital=names)
    split = SCRIPTS / "reproduction" / "split_by_hospital.py"
    done = run_script(split, tmp_path / "all.npz", directory, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return directory


def run_reproduce(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = SCRIPTS / "reproduction" / "reproduce.py"
    return run_script(command, *arguments, cwd=cwd, paths=(str(SCRIPTS),))  # as scripts/launch.sh sets them


def test_a_table_is_trained_and_written_and_not_trained_again(hospitals: Path, tmp_path: Path) -> None:
    assert sorted(file.name for file in hospitals.iterdir()) == ["a.npz", "b.npz", "c.npz"]
    command = ("heart_disease", "--scale", "small", "--data", f"heart_disease={hospitals}", "--output", tmp_path / "o")
    settings = ("federation.rounds=3", "execution.placement=serial", "execution.cpus_per_actor=1")
    first = run_reproduce(*command, *settings, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    assert len(results["cells"]) == 2 * 3
    assert all(len(cell["final"]) == 1 and 0 <= cell["final"][0] <= 100 for cell in results["cells"])
    table = (tmp_path / "o" / "table.md").read_text()
    assert "**Reduced form**" in table
    assert sum(line.startswith("| fedavg") for line in table.splitlines()) == 3
    for picture in ("curves.png", "decay_fedavg.png"):
        assert (tmp_path / "o" / picture).read_bytes().startswith(b"\x89PNG")
    runs = sorted((tmp_path / "o" / "runs").iterdir())
    again = run_reproduce(*command, *settings, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert sorted((tmp_path / "o" / "runs").iterdir()) == runs
    assert json.loads((tmp_path / "o" / "results.json").read_text()) == results


@pytest.mark.usefixtures("processes")
def test_published_values_are_shown_next_to_measured_ones() -> None:
    code = (
        "import json; from functools import partial; from tables import TABLES, load_cell; "
        "print(json.dumps({'/'.join(k): [[c.row, c.column, c.regularizer, c.published] "
        "for c in t.cells(partial(load_cell, {}, ()))] for k, t in TABLES.items()}))"
    )
    folder = SCRIPTS / "reproduction"
    done = subprocess.run([get_executable(), "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    tables = json.loads(done.stdout)
    assert len(tables["cifar10/full"]) == 6 * 3 * 2
    assert ["fedavg", "α = 0.3", "fednar", 87.57] in tables["cifar10/full"]
    assert ["fedavg", "0.1", "decoupled", 76.42] in tables["weight_decay/full"]
    assert ["scaffold", "test accuracy", "fednar", 49.99] in tables["shakespeare/full"]
    assert all(published is None for name in tables if name.endswith("small") for *_, published in tables[name])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("weight_decay",), "--scale small"),
        (("nothing",), "choose from"),
        (("weight_decay", "--scale", "small", "--data", "cifar=x"), "cifar=x"),
        (("weight_decay", "--scale", "small", "--data", "cifar10=nowhere.npz"), "nowhere.npz"),
        (("weight_decay", "--scale", "small", "federation.rounds=0"), "federation.rounds"),
    ],
)
def test_a_table_that_cannot_be_run_is_reported(arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
    done = run_reproduce(*arguments, cwd=tmp_path)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr
