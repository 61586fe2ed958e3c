"""scripts/gpu_check, run whole in this process on a CPU, where all its sizes are tiny."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from fednar_ray.federated.model_traits import ModelTraits
from fednar_ray.federated.vectorization import CPU, GPU, StepCosts, _estimate_step_seconds

ROOT = Path(__file__).parents[2]
Import = Any


@pytest.fixture(name="load")
def load_scripts(monkeypatch: pytest.MonkeyPatch) -> Import:
    """Returns a function that imports a module of the scripts."""
    for folder in ("scripts", "scripts/benchmarks"):
        monkeypatch.syspath_prepend(ROOT / folder)

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


@pytest.mark.usefixtures("long_computation")
def test_every_part_runs_on_a_cpu_and_the_page_has_its_results(load: Import, tmp_path: Path) -> None:
    check, page, iter_rows = load("gpu_checks.check"), load("gpu_checks.page"), load("gpu_checks.part").iter_rows
    results: dict[str, Any] = {"machine": check.describe("cpu"), "parts": {}}
    for part in check.PARTS:
        rows = [json.loads(json.dumps(row)) for row in iter_rows(part, torch.device("cpu"), 600.0, tmp_path)]
        results["parts"][part] = {"rows": rows}
    assert not check.has_failed(results), results
    tests = [row for part in ("tests", "resume") for row in results["parts"][part]["rows"]]
    assert (
        sum(row["passed"] is True for row in tests) == 4 + 1 + 3 * 2
    )  # precisions; a pack; repeated, as on the CPU, resumed
    systems = [row.get("system") for row in results["parts"]["W1"]["rows"]]
    assert systems[1:] == ["plain loop, float32", "fednar_ray", "fednar_ray, bfloat16"]
    packs = [row for row in results["parts"]["packs"]["rows"] if "round_seconds" in row]
    assert [row["system"] for row in packs] == ["one after the other", "in a pack of 80 rows"]
    text = page.build_page(results)
    for wanted in (
        "tiny sizes: these figures say nothing",
        "the same bits after a resume in another process: MLP",
        "| plain loop, float32 | 1 |",
        "StepCosts(\n",
        "- ray: not used",
    ):
        assert wanted in text, wanted


def test_what_broke_or_was_left_out_is_said_and_fails_the_check(load: Import) -> None:
    check, page = load("gpu_checks.check"), load("gpu_checks.page")
    machine = {"versions": {"torch": "2.6"}, "python": "3.12", "date": "today", "compiler": False}
    parts = {
        "tests": {"rows": [{"test": "as on the CPU: MLP", "passed": False, "found": "0.5"}]},
        "W1": {"rows": [{"system": "fednar_ray", "failed": "OutOfMemoryError: CUDA | 2 GB"}], "failed": "Killed"},
        "W4": {"rows": [], "skipped": "3 s were left, 20 are needed"},
    }
    assert [check.has_failed({"parts": {name: parts[name]}}) for name in parts] == [True, True, False]
    text = page.build_page({"machine": machine, "parts": parts})
    for wanted in (
        "| as on the CPU: MLP | **failed** | 0.5 |",
        "OutOfMemoryError: CUDA / 2 GB",
        "It failed:\n\n    Killed",
        "- W4: 3 s were left",
        "- no C++ compiler was found",
        "- ray: not used (not installed)",
    ):
        assert wanted in text, wanted


def test_a_part_gets_its_share_and_what_the_others_do_not_need(load: Import) -> None:
    share, seconds = load("gpu_checks.check").share, load("gpu_checks.check").SECONDS
    assert sum(seconds.values()) <= 480
    assert share("tests", ["W1"], 480) == 480 - seconds["W1"]
    assert share("W1", ["large"], 100) == seconds["W1"]
    assert share("W1", ["large"], 30) == 30


def build_traits() -> list[ModelTraits]:
    shapes = [(9e3, 2, 0, 2e4, 0), (4e5, 3, 0, 8e5, 0), (3e4, 9, 0, 6e4, 0), (2e4, 2, 2, 5e4, 1e6),
              (9e5, 2, 2, 1.6e6, 1.5e7), (4e6, 2, 4, 1e7, 5e7)]  # fmt: skip
    names = ("parameters", "matmuls", "convolutions", "matmul_flops", "convolution_flops")
    fixed: dict[str, Any] = {"changed_buffers": (), "alone_because": None}
    return [ModelTraits(**fixed, **dict(zip(names, shape, strict=True))) for shape in shapes]


@pytest.mark.parametrize("costs", [CPU, GPU])
def test_the_costs_that_steps_were_predicted_with_are_found_again(load: Import, costs: StepCosts) -> None:
    steps = load("steps")
    measured = [
        steps.MeasuredStep("", traits, batch, width, _estimate_step_seconds(traits, batch, costs, width))
        for traits in build_traits()
        for batch in (4, 32)
        for width in steps.WIDTHS
    ]
    found = steps.fit_costs(measured)
    for name in StepCosts.__slots__:
        np.testing.assert_allclose(getattr(found, name), getattr(costs, name), rtol=1e-6)
    assert eval(steps.format_costs(found), {"StepCosts": StepCosts}) == costs  # noqa: S307 - it is pasted into a module


def test_no_fitted_cost_is_negative(load: Import) -> None:
    steps = load("steps")
    solved = steps.solve_nonnegative(np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]]), np.array([3.0, 2.0, 1.0]))
    np.testing.assert_allclose(solved, [2.0, 0.0])  # the unrestricted solution is 4 − x


def test_means_of_nvidia_smi_leave_out_what_it_does_not_know(load: Import) -> None:
    read = load("gpu_checks.runs").read_utilization
    assert read("10, 60.5\n30, 61.5\n[N/A], 50\n5") == {"utilization": 20.0, "watts": 61.0}
    assert read("") == {}


def test_a_wheel_is_unpacked_only_for_its_python_and_if_it_is_missing(load: Import) -> None:
    packages = load("gpu_checks.packages")
    here = f"cp{load('sys').version_info.major}{load('sys').version_info.minor}"
    assert packages.fits(f"pydantic_core-2.50.5-{here}-{here}-manylinux2014_x86_64.manylinux_2_17_x86_64.whl")
    assert packages.fits("psutil-7.2.2-cp36-abi3-manylinux2010_x86_64.whl")
    assert packages.fits("pydantic-2.14.4-py3-none-any.whl")
    assert not packages.fits("numpy-2.5.5-cp39-cp39-manylinux_2_27_x86_64.whl")
    assert packages.get_distribution("pydantic_core-2.50.5-cp311.whl") == "pydantic-core"
    assert packages.find_missing() == []
