"""When local steps are compiled follows from the run alone, and what cannot be compiled trains without."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import fednar_ray as fr
from fednar_ray.algorithms.client_corrections import plain
from fednar_ray.algorithms.presets import Algorithm
from fednar_ray.algorithms.server_optimizers import mean
from fednar_ray.federated.model_traits import ModelTraits
from fednar_ray.federated.vectorization import CPU, even_out, is_compiling_worthwhile
from tests.conftest import build_small_federation


def build_experiment(compile: str = "on", **sections: Any) -> fr.Experiment:
    values = {
        "federation": {"rounds": 2, "local_steps": 3, "batch_size": 8},
        "algorithm": {"local_lr": 0.1},
        "execution": {"placement": "serial", "compile": compile},
    }
    return fr.Experiment.model_validate({**values, **sections})


def build_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(2, 3)


def train_to_bytes(experiment: fr.Experiment, model: torch.nn.Module) -> bytes:
    *_, last = fr.iter_rounds(experiment, federation=build_small_federation((8, 10, 12)), model=model)
    return last.parameters.tobytes()


@pytest.mark.parametrize(("written", "read"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("'on'", "on")])
def test_yaml_reads_on_and_off_as_booleans_and_the_setting_takes_them(written: str, read: str, tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(
        f"experiment:\n  data: {{source: digits}}\n  model: {{name: mlp}}\n  execution: {{compile: {written}}}\n"
    )
    assert fr.load(file).execution.compile == read
    assert fr.load("digits", overrides=[f"execution.compile={written}"]).execution.compile == read


def test_without_a_compiler_training_goes_on_without_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        without = train_to_bytes(build_experiment(), build_model())
    assert "the local steps are not compiled: there is no C++ compiler (no-such-compiler; set CXX" in caplog.text
    assert without == train_to_bytes(build_experiment("off"), build_model())


def own_algorithm() -> Algorithm:
    return Algorithm(client=plain(), server=mean(1.0))


@pytest.mark.parametrize(
    ("model", "sections", "reason"),
    [
        (torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)), {}, "running"),
        (
            torch.nn.Linear(2, 3),
            {"algorithm": {"function": f"{__name__}:own_algorithm", "local_lr": 0.1}},
            "an own algorithm|a function of your own",
        ),
    ],
    ids=["running statistics", "own algorithm"],
)
def test_what_cannot_be_compiled_trains_without_and_the_log_says_why(
    model: torch.nn.Module, sections: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        train_to_bytes(build_experiment(**sections), model)
    (line,) = (record.getMessage() for record in caplog.records if "not compiled" in record.getMessage())
    assert any(part in line for part in reason.split("|"))


def test_auto_does_not_compile_a_short_run(caplog: pytest.LogCaptureFixture) -> None:
    train_to_bytes(build_experiment("auto", execution={"placement": "serial"}), build_model())
    assert "compil" not in caplog.text


def build_traits(convolutions: int = 0) -> ModelTraits:
    return ModelTraits(
        changed_buffers=(),
        alone_because=None,
        parameters=9610,
        matmuls=2,
        convolutions=convolutions,
        matmul_flops=2e4,
        convolution_flops=1e6 * convolutions,
    )


def test_auto_compiles_only_runs_that_gain_more_than_compiling_takes() -> None:
    traits = build_traits()
    worthwhile = [is_compiling_worthwhile(traits, 10, 32, planned, CPU) for planned in (4e3, 4e5, 4e6, 4e8)]
    assert worthwhile == sorted(worthwhile)
    assert (worthwhile[0], worthwhile[-1]) == (False, True)
    assert not is_compiling_worthwhile(build_traits(convolutions=2), 10, 32, 4e8, CPU)


@pytest.mark.parametrize(("clients", "most", "height"), [(20, 15, 10), (20, 10, 10), (7, 3, 3), (5, 8, 5), (9, 4, 3)])
def test_groups_are_as_high_as_the_largest_of_equal_groups(clients: int, most: int, height: int) -> None:
    assert even_out(clients, most) == height
