"""A run's tags tell by which command it was started, but no program's arguments that may hold a secret."""

import sys
from pathlib import Path

import pytest

from fednar_ray.tracking.origin import build_origin_tags, find_command

TYPED = ["run", "my file.yaml", "seed=1"]


def test_the_command_is_recorded_as_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/fednar", *TYPED])
    assert build_origin_tags()["fednar.command"] == "fednar run 'my file.yaml' seed=1"


def test_a_command_with_a_secret_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fednar", "run", "tracking.uri=https://me:hush@host"])
    assert find_command() is None
    assert "fednar.command" not in build_origin_tags()


def test_the_arguments_of_another_program_are_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "--password", "hush"])
    assert find_command() is None
    tags = build_origin_tags()
    assert tags["mlflow.source.name"] == "train.py"
    assert not [value for value in tags.values() if "hush" in value]
    assert "mlflow.source.git.commit" not in tags  # the folder is not a checkout
