"""The wheel is complete when it is installed outside of the checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fednar_ray"
TIMEOUT_SECONDS = 600.0


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds the wheel from a copy of the sources, without a network."""
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "source"
    shutil.copytree(PACKAGE, source / "fednar_ray", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    run_pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(directory), str(source))
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns an interpreter that has the wheel and the other packages of this environment, but not the checkout."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=TIMEOUT_SECONDS)
    interpreter = environment / "bin" / "python"
    run_pip("--python", str(interpreter), "install", "--no-deps", "--no-index", str(wheel))
    (packages,) = environment.glob("lib/python*/site-packages")
    paths = {sysconfig.get_path(kind) for kind in ("purelib", "platlib")}
    # .pth files in these paths are not processed
    (packages / "others.pth").write_text("".join(f"{path}\n" for path in sorted(paths)))
    return interpreter


def run_pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, timeout=TIMEOUT_SECONDS)


def run(*command: str | Path, directory: Path) -> str:
    """Runs a command outside of the checkout and returns its output."""
    kept = ("PATH", "HOME", "TMPDIR")
    environment = {name: os.environ[name] for name in kept if name in os.environ} | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    return done.stdout


def test_the_wheel_contains_every_file_of_the_package(wheel: Path) -> None:
    def of_python(path: str) -> bool:
        return path.endswith((".pyc", "/"))

    with ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.startswith("fednar_ray/")}
    files = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*") if path.is_file()}
    assert inside == {path for path in files if not of_python(path)}


def test_commands_find_their_default_files(python: Path, tmp_path: Path) -> None:
    code = """
import fednar_ray
from fednar_ray.config import load_embedded
assert load_embedded("digits", to_search=True).search.space and load_embedded("compare").compare.weight_decays
print(fednar_ray.__file__)
"""
    assert run(python, "-c", code, directory=tmp_path).startswith(str(python.parents[1]))


def test_an_experiment_runs_outside_of_the_checkout(python: Path, tmp_path: Path) -> None:
    fednar = python.with_name("fednar")
    printed = run(fednar, "run", "federation.rounds=1", "execution.placement=serial", "--json", directory=tmp_path)
    result = json.loads(printed)
    assert result["rounds"] == 1
    assert Path(result["directory"]).parent == tmp_path / "runs"
    assert (tmp_path / "mlflow.db").exists()
