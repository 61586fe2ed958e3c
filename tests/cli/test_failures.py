"""With ``--json`` a command that fails prints one object for programs, beside the message for people."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import fednar_ray as fr
from fednar_ray.cli import failures
from fednar_ray.cli.failures import report_failure, split_problem
from fednar_ray.cli.main import cli
from fednar_ray.core.errors import Interrupted, RoundAborted
from tests.support.commands import run_in_process

FAILING = {
    "compare": ["compare.seeds=0"],
    "config": ["regularizer.clip_bond"],
    "data inspect": ["missing.yaml"],
    "doctor": ["--bad"],
    "jobs": ["--address", "http://127.0.0.1:1"],
    "report": ["nothing", "--uri", "gopher://a"],
    "run": ["federation.rounds=0"],
    "runs": ["--bad"],
    "suggest": ["nothing"],
    "sync": ["nothing"],
    "tune": ["--resume", "nothing"],
}
"""For each command with ``--json``, words with which it fails."""


def list_commands(group: click.Group = cli, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from list_commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def test_every_command_with_json_is_tried_here() -> None:
    with_json = [name for name, command in list_commands() if any("--json" in each.opts for each in command.params)]
    assert sorted(with_json) == sorted(FAILING)


def check_schema(found: dict[str, Any]) -> None:
    assert list(found) == ["error", "kind", "exit_code", "problems"]
    assert found["kind"] in ("bad input", "failed", "interrupted", "terminated", "bug")
    assert found["problems"]
    for problem in found["problems"]:
        assert list(problem) == ["place", "problem", "remedy"]
        assert problem["problem"]


@pytest.mark.parametrize("name", FAILING)
def test_an_error_is_one_object_on_the_standard_output(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*name.split(), *FAILING[name]]
    plain = run_in_process(monkeypatch, *words)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert run_in_process(monkeypatch, *words, "--json") == plain
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    check_schema(found)
    assert (found["exit_code"], found["kind"]) == (plain, "bad input")
    assert found["error"] in shown.err  # people read the same as before
    assert shown.err.replace(" --json", "") == printed.err


@pytest.mark.parametrize(
    ("text", "place", "problem", "remedy"),
    [
        ("seed: -1 should be positive", "seed", "-1 should be positive", None),
        ("search.name: 'a' is in use; resume it", "search.name", "'a' is in use", "resume it"),
        ("a.yaml, line 2, column 1: invalid YAML", "a.yaml, line 2, column 1", "invalid YAML", None),
        ("--csv KEY: no such key; use x; or y", "--csv KEY", "no such key", "use x; or y"),
        ("MLflow at http://a:1 does not answer", None, "MLflow at http://a:1 does not answer", None),
        ("no Ray answers at 127.0.0.1:1: refused", None, "no Ray answers at 127.0.0.1:1: refused", None),
    ],
)
def test_a_message_is_split_into_its_parts(text: str, place: str | None, problem: str, remedy: str | None) -> None:
    assert split_problem(text) == {"place": place, "problem": problem, "remedy": remedy}


def fail(error: BaseException, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    code = report_failure(error, ["run", "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    check_schema(found)
    assert code == (None if found["kind"] == "bug" else found["exit_code"])
    return found


def test_all_problems_of_the_settings_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    found = fail(fr.ConfigError(("seed: -1: too small; use 0", "model: missing")), capsys)
    assert [problem["place"] for problem in found["problems"]] == ["seed", "model"]
    assert [problem["remedy"] for problem in found["problems"]] == ["use 0", None]
    assert (found["kind"], found["exit_code"]) == ("bad input", 2)


def test_a_failed_run_says_how_to_resume_it(capsys: pytest.CaptureFixture[str]) -> None:
    error = RoundAborted(3, "0 of 3 client updates usable")
    error.add_note("once the cause is fixed, resume with: fednar run --resume digits-1")
    found = fail(error, capsys)
    assert (found["kind"], found["exit_code"]) == ("failed", 1)
    assert found["problems"][0]["remedy"] == "once the cause is fixed, resume with: fednar run --resume digits-1"


def test_an_interrupted_command_says_how_to_resume(capsys: pytest.CaptureFixture[str]) -> None:
    found = fail(Interrupted("resume it with: fednar run --resume digits-1"), capsys)
    assert (found["kind"], found["exit_code"]) == ("interrupted", 130)
    assert found["problems"][0]["remedy"] == "resume it with: fednar run --resume digits-1"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(28, "No space left on device", "runs/a"), "failed"),
        (ZeroDivisionError("division by zero"), "bug"),
        (click.BadParameter("is no number", param=click.Option(["--port"])), "bad input"),
        (click.NoSuchOption("--jsn"), "bad input"),
        (fr.RunFailed("it broke"), "failed"),
    ],
)
def test_other_errors_have_the_same_form(error: Exception, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = fail(error, capsys)
    assert found["kind"] == kind
    if isinstance(error, click.UsageError):
        assert found["problems"][0]["place"] in ("--port", "--jsn")


@pytest.mark.parametrize(
    ("words", "printed"), [(["run"], False), (["run", "--json"], True), (["submit", "--", "run", "--json"], False)]
)
def test_only_the_option_asks_for_json(words: list[str], printed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    report_failure(fr.BadInput("a: b"), words)
    assert bool(capsys.readouterr().out) == printed


def test_a_deleted_working_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def get_working_directory() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(failures.os, "getcwd", get_working_directory)
    assert "was deleted" in str(failures._find_disk_problem(ValueError("any")))
