"""Shells complete keys, values, files and names; bash and its ``=`` are tried for real."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete, ShellComplete, ZshComplete, get_completion_class

from fednar_ray.cli import completion_keys
from fednar_ray.cli.main import cli
from fednar_ray.config import MODEL_SETTINGS, PRESET_SETTINGS, SOURCE_SETTINGS
from fednar_ray.config.describe import list_sections
from fednar_ray.config.scheduler import SCHEDULER_VARIANTS
from tests.support.commands import build_environment
from tests.support.processes import FEDNAR


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Changes to a folder with two runs, a comparison, a search and an experiment file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    for path in (
        "runs/digits-1/run.json", "runs/digits-2/run.json", "runs/digits-2/comparison.yaml", "runs/other/notes.txt",
        "searches/deep/search.json", "mine.yaml", "notes.txt", "files/yours.yml", ".hidden/x.yaml",
    ):  # fmt: skip
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    return tmp_path


def complete(*words: str) -> list[str]:
    """Returns what a shell offers for the last word."""
    found = ShellComplete(cli, {}, "fednar", "_FEDNAR_COMPLETE").get_completions(list(words[:-1]), words[-1])
    return [item.value for item in found]


def test_keys_are_completed_up_to_their_next_dot_and_then_whole() -> None:
    offered = complete("run", "")
    assert {"seed=", "federation.", "regularizer.", "mine.yaml"} <= set(offered)
    assert not {"notes.txt", "federation.rounds="} & set(offered)
    assert offered[:3] == ["files/", "mine.yaml", "name="]  # files first, and folders that have some
    assert {"federation.rounds=", "federation.local_steps="} < set(complete("run", "fed"))
    assert complete("tune", "mine.yaml", "federation.ro") == ["federation.rounds="]
    assert "search.scheduler." in complete("tune", "search.")
    assert complete("run", "search.scheduler.na") == ["search.scheduler.name="]
    assert "search.scheduler=" in complete("tune", "search.")


@pytest.mark.parametrize(
    ("key", "values"),
    [("algorithm.name", PRESET_SETTINGS), ("model.name", MODEL_SETTINGS), ("data.source", SOURCE_SETTINGS)],
)
def test_values_that_are_words_are_completed(key: str, values: object) -> None:
    offered = complete("compare", f"{key}=")
    assert {each.partition("=")[0] for each in offered} == {key}
    named = {each.partition("=")[2] for each in offered}
    assert named
    assert named <= set(values)  # type: ignore[call-overload]
    assert len(named) >= len(set(values)) - 2  # type: ignore[call-overload]  # without the function of one's own


def test_switches_and_numbers() -> None:
    assert complete("run", "evaluation.federated=") == ["evaluation.federated=true", "evaluation.federated=false"]
    assert complete("run", "regularizer.name=d") == ["regularizer.name=decoupled"]
    assert complete("run", "federation.rounds=") == []
    assert complete("run", "no.such.key=") == []


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("", "[fednar, [fednar] [decoupled, [decoupled] [coupled, [coupled] [none, [none]"),
        ("[fed", "[fednar, [fednar]"),
        ("[fednar,dec", "[fednar,decoupled, [fednar,decoupled]"),
        ("[fednar, decoupled, none,", "[fednar, decoupled, none,coupled]"),  # nothing is left after it
        ("[fednar]", ""),
        ("fed", ""),
    ],
)
def test_words_of_a_list_are_completed(typed: str, offered: str) -> None:
    key = "compare.regularizers="
    found = complete("compare", key + typed)
    assert " ".join(each.removeprefix(key) for each in found) == offered
    assert all(each.startswith(key) for each in found)


def test_the_short_form_of_a_section_is_completed() -> None:
    kinds = [f"search.scheduler={name}" for name in SCHEDULER_VARIANTS.by_name]
    assert complete("tune", "search.scheduler=") == kinds


def test_files_and_folders_are_completed_by_their_paths() -> None:
    assert complete("run", "mi") == ["mine.yaml"]
    assert complete("run", "files/") == ["files/yours.yml"]
    assert complete("run", "fil") == ["files/"]
    assert complete("run", "nowhere/") == []


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("run", "--resume", ""), ["digits-1", "digits-2"]),
        (("compare", "--resume", ""), ["digits-2"]),
        (("tune", "--resume", ""), ["deep"]),
        (("suggest", "d"), ["digits-1", "digits-2"]),
        (("predict", "digits-1"), ["digits-1"]),
        (("sync", "digits-1", "digits-2"), ["digits-2"]),
        (("report", "d"), ["deep", "digits-1", "digits-2"]),
        (("ui", "de"), ["deep"]),
        (("config", "regularizer.clip_bound"), ["regularizer.clip_bound", "regularizer.clip_bound_anneal"]),
        (("run", "--may-change", "federation.ro"), ["federation.rounds"]),
        (("submit", ""), ["run", "compare", "tune"]),
        (("submit", "run", "federation.ro"), ["federation.rounds="]),
    ],
)
def test_names_are_completed(words: tuple[str, ...], offered: list[str]) -> None:
    found = complete(*words)
    assert found[: len(offered)] == offered
    assert words[0] == "submit" or found == offered


def test_the_cache_is_written_once_and_has_every_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = completion_keys.load_keys()
    settable = {key.name for section in list_sections() for key in section.list_keys()}
    short = {section.name for section in list_sections() if section.short_form}  # their keys take a name alone, too
    assert {"search.scheduler", "privacy.bound"} <= short
    assert set(keys) == settable | short
    monkeypatch.setattr(completion_keys, "_list_keys", lambda: pytest.fail("the cache should be read"))
    assert completion_keys.load_keys() == keys
    (cache,) = (folder / ".cache/fednar").iterdir()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "mine.yaml"))  # not a folder: it works without a cache
    assert completion_keys.load_keys() == keys
    assert json.loads(cache.read_text())["seed"] == {"words": [], "listed": False}


@pytest.mark.parametrize(
    ("words", "position", "offered"),
    [
        (["fednar", "run", "algorithm.name", "=", "fedp"], 4, ["plain,fedprox", "plain,fedprox+exp"]),
        (
            ["fednar", "run", "regularizer.name", "="],
            3,
            ["plain,fednar", "plain,decoupled", "plain,coupled", "plain,none"],
        ),
        (["fednar", "run", "seed", "=", "1", "federation.ro"], 5, ["plain,federation.rounds="]),
        (
            ["fednar", "run", "algorithm.name=fedp"],
            2,
            ["plain,algorithm.name=fedprox", "plain,algorithm.name=fedprox+exp"],
        ),
        (["fednar", "tune", "--resume", ""], 3, ["plain,deep"]),
        (["fednar", "compare", "compare.regularizers", "=", "'[no"], 4, ["plain,[none,", "plain,[none]"]),
        (
            ["fednar", "compare", "'compare.regularizers=[none, dec"],
            2,
            ["plain,compare.regularizers=[none, decoupled,", "plain,compare.regularizers=[none, decoupled]"],
        ),
    ],
)
def test_bash_takes_the_equals_sign_as_a_word(
    words: list[str], position: int, offered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_WORDS", "\n".join(words))
    monkeypatch.setenv("COMP_CWORD", str(position))
    kind = get_completion_class("bash")
    assert kind is not None
    assert kind(cli, {}, "fednar", "_FEDNAR_COMPLETE").complete().splitlines() == offered


def test_no_space_follows_what_goes_on() -> None:
    """The scripts are Click's, with one line of each changed; if Click changes it, this notices."""
    for name, base, words in (("bash", BashComplete, "compopt -o nospace"), ("zsh", ZshComplete, "-S '' -a open")):
        kind = get_completion_class(name)
        assert kind is not None
        assert kind.source_template != base.source_template
        assert words in kind.source_template
    assert get_completion_class("fish") is not None


TYPED = """
eval "$(_FEDNAR_COMPLETE=bash_source {fednar})"
compopt() {{ :; }}
try() {{
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    _fednar_completion {fednar}
    echo "${{COMPREPLY[*]}}"
}}
try fednar run feder
try fednar run algorithm.name = scaf
try fednar ui de
try fednar compare compare.regularizers = "'[no"
"""

IMPORTED = """
import sys
from fednar_ray.cli import completion_keys
completion_keys.load_keys()
from fednar_ray.cli.main import cli
from click.shell_completion import ShellComplete
assert ShellComplete(cli, {}, "fednar", "_FEDNAR_COMPLETE").get_completions(["run"], "federation.ro")
print(*sorted({"torch", "ray", "mlflow", "numpy", "pydantic", "rich"} & set(sys.modules)))
"""


@pytest.mark.usefixtures("processes")
def test_bash_completes_what_is_typed(folder: Path) -> None:
    completion_keys.load_keys()
    done = subprocess.run(
        ["bash", "-c", TYPED.format(fednar=FEDNAR)],
        cwd=folder, env=build_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    keys, presets, names, words = done.stdout.splitlines()
    assert "federation.rounds=" in keys.split(), done.stderr
    assert presets.split() == ["scaffold", "scaffold+exp"]
    assert names == "deep"
    assert words == "[none, [none]"
    done = subprocess.run([sys.executable, "-c", IMPORTED], cwd=folder, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("\n", "")  # nothing that takes long
