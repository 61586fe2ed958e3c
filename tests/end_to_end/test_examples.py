"""The example programs run unchanged in this process, and reach the accuracy that they promise."""

import ast
import re
import runpy
from pathlib import Path

import pytest

from tests.support.stores import create_store

EXAMPLES = Path(__file__).resolve().parents[2] / "scripts" / "examples"
FLOORS = {"quickstart": 0.7, "own_data": 0.85, "own_model": 0.5, "own_algorithm": 0.7}
"""The test accuracy that the first line with one (quickstart) or the last one must reach."""


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning")
@pytest.mark.parametrize("name", FLOORS)
def test_an_example_runs_and_learns(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)  # as Python does for a script
    monkeypatch.setenv("MLFLOW_TRACKING_URI", create_store(tmp_path / "mlflow.db"))
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    accuracies = [float(found) for found in re.findall(r"test accuracy (\d\.\d+)", capsys.readouterr().out)]
    reached = accuracies[0] if name == "quickstart" else accuracies[-1]
    assert reached >= FLOORS[name]
    if name == "quickstart":
        assert accuracies[0] > accuracies[1], "FedNAR is ahead of the baseline where the decay is badly chosen"
        assert list(tmp_path.glob("runs/quickstart-*/finished"))


def test_examples_are_short_and_document_how_to_run_them() -> None:
    files = sorted(EXAMPLES.glob("*.py"))
    assert [file.stem for file in files] == sorted(FLOORS)
    for file in files:
        text = file.read_text()
        assert len(text.splitlines()) <= 60, file.name
        assert f"python scripts/examples/{file.name}" in (ast.get_docstring(ast.parse(text)) or "")
