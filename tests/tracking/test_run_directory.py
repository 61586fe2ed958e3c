"""One module defines every file name of a run and a search, and another one defines every MLflow tag."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fednar_ray
from fednar_ray.tracking import tags
from fednar_ray.tracking.run_directory import RunDirectory, SearchDirectory

PACKAGE = Path(str(fednar_ray.__file__)).parent
OWNER = PACKAGE / "tracking" / "run_directory.py"
BELOW_TRACKING = {"models/weights.py": {"model.pt"}}  # this package must not import tracking
SHARED_WORDS = {
    "model",
    "checkpoints",
    "finished",
    "lock",
    "tune",
    "report",
    "trials",
    "stop",
}  # these words also have other meanings


def list_literals(path: Path) -> set[str]:
    """Returns the string constants of a module that are not documentation."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in documentation)
    return {node.value for node in constants if isinstance(node.value, str)}


def iter_modules(owner: Path) -> Iterator[Path]:
    return (path for path in PACKAGE.rglob("*.py") if path != owner)


def list_file_names() -> set[str]:
    found = set()
    for directory in (RunDirectory(Path("d")), SearchDirectory(Path("d"))):
        values = [getattr(directory, name) for name in dir(type(directory)) if not name.startswith("_")]
        found |= {value.name for value in values if isinstance(value, Path)}
    return found - SHARED_WORDS - {"d", ".d.lock", ".d.new"}


def test_no_other_module_contains_the_name_of_a_file() -> None:
    names = list_file_names()
    assert {"metrics.jsonl", "run.json", "outbox.sent", "comparison.yaml", "search.yaml", "best.yaml"} <= names
    for path in iter_modules(OWNER):
        known = names & list_literals(path) - BELOW_TRACKING.get(path.relative_to(PACKAGE).as_posix(), set())
        assert not known, path


def test_no_other_module_contains_the_name_of_a_tag() -> None:
    spelled = {value for name, value in vars(tags).items() if name.isupper()}
    assert len(spelled) > 15
    for path in iter_modules(PACKAGE / "tracking" / "tags.py"):
        assert not spelled & list_literals(path), path


def test_names_follow_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, search = RunDirectory.of_run("digits", "7f3a09c1" + "0" * 24), SearchDirectory.named("small")
    assert run.path == tmp_path / "runs" / "digits-7f3a09c1"
    assert search.lock == tmp_path / "searches" / ".small.lock"
    assert (
        search.trial("trial-0001").journal
        == tmp_path / "searches" / "small" / "trials" / "trial-0001" / "metrics.jsonl"
    )
    assert not list(tmp_path.iterdir())
