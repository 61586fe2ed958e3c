"""A run's tags tell by which command it was started, but no program's arguments that may hold a secret."""

import sys
from pathlib import Path

import pytest

from fednar_ray.tracking.origin import build_origin_tags

TYPED = ["run", "my file.yaml", "seed=1"]


def test_the_command_is_recorded_as_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/local/bin/fednar", *TYPED])
    assert build_origin_tags()["fednar.command"] == "fednar run 'my file.yaml' seed=1"


def test_the_arguments_of_another_program_are_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "--password", "hush"])
    tags = build_origin_tags()
    assert tags["mlflow.source.name"] == "train.py"
    assert not [value for value in tags.values() if "hush" in value]
    assert "mlflow.source.git.commit" not in tags  # the folder is not a checkout
