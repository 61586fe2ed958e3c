"""Shell completion: of the keys and values of settings, and of the names of runs, comparisons and searches.

Nothing here imports what takes long: a shell waits for each answer.
"""

import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, ZshComplete, add_completion_class, split_arg_string

from fednar_ray.tracking.run_directory import RUNS, SEARCHES, RunDirectory, SearchDirectory

EXPERIMENT_FILES = (".yaml", ".yml")

Complete = Callable[[click.Context, click.Parameter, str], list[str]]

Keys = Mapping[str, tuple[str, ...]]
"""The keys of an experiment file, each with the values that it takes if these are words."""


def complete_arguments(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Completes ``[FILE] [key=value …]``."""
    key, equals, value = incomplete.partition("=")
    if equals:
        return [f"{key}={each}" for each in load_keys().get(key, ()) if each.startswith(value)]
    return [*_complete_key(load_keys(), incomplete), *_list_files(incomplete)]


def _complete_key(keys: Iterable[str], incomplete: str) -> list[str]:
    """Completes a key up to its next dot; if only one section is left, with all of its keys."""
    depth = incomplete.count(".") + 1
    found = [f"{key}=" for key in keys if key.startswith(incomplete)]
    sections = dict.fromkeys(".".join(key.split(".")[:depth]) for key in found)
    if len(sections) < 2:
        return found
    return [name if name.endswith("=") else f"{name}." for name in sections]


def _list_files(incomplete: str) -> Iterator[str]:
    """Yields the experiment files and the folders whose paths begin like this."""
    folder, _, start = incomplete.rpartition("/")
    try:
        entries = sorted(os.scandir(f"{folder}/" if "/" in incomplete else "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        path = f"{folder}/{entry.name}" if "/" in incomplete else entry.name
        if not entry.name.startswith(start) or (entry.name.startswith(".") and not start):
            continue
        if entry.is_dir() and start:
            yield f"{path}/"
        elif entry.name.endswith(EXPERIMENT_FILES):
            yield path


def complete_key(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Completes the name of a key or of a section."""
    keys = load_keys()
    sections = (key.rpartition(".")[0] for key in keys if "." in key)
    return [name for name in dict.fromkeys([*sections, *keys]) if name.startswith(incomplete)]


def _build_completion(*folders: tuple[str, Callable[[Path], Path]]) -> Complete:
    """Builds the completion of names of folders: those within the given ones that have a certain file."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        paths = (path for folder, find_mark in folders for path in Path(folder).glob("*") if find_mark(path).exists())
        return sorted(path.name for path in paths if path.name.startswith(incomplete))

    return complete


_RUN = (RUNS, lambda path: RunDirectory(path).identity)
_COMPARISON = (RUNS, lambda path: RunDirectory(path).comparison_yaml)
_SEARCH = (SEARCHES, lambda path: SearchDirectory(path).trial_table)

complete_run = _build_completion(_RUN)
complete_comparison = _build_completion(_COMPARISON)
complete_search = _build_completion(_SEARCH)
complete_any = _build_completion(_RUN, _SEARCH)


def load_keys() -> Keys:
    """Loads the keys from a cache of this user. It is written when the settings have changed, which takes a second."""
    settings = Path(__file__).parents[1] / "config"
    newest = max(path.stat().st_mtime_ns for path in settings.glob("*.py"))
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fednar"
    cache = folder / f"keys-{zlib.crc32(bytes(settings)):08x}-{newest}.json"
    with suppress(OSError, ValueError):
        return {key: tuple(values) for key, values in json.loads(cache.read_text(encoding="utf-8")).items()}
    keys = _list_keys()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{cache.name}.{os.getpid()}"
        unfinished.write_text(json.dumps(keys), encoding="utf-8")
        unfinished.replace(cache)
    return keys


def _list_keys() -> dict[str, tuple[str, ...]]:
    """Lists the keys, each with the values that it takes if these are words. Kinds of a section may share a key."""
    from fednar_ray.config.describe import list_sections

    found: dict[str, dict[str, None]] = {}
    for key in (key for section in list_sections() for key in section.list_keys()):
        words = ("true", "false") if key.values == "true, false" else re.findall("`([^`]+)`", key.values)
        found.setdefault(key.name, {}).update(dict.fromkeys(words))
    return {name: tuple(words) for name, words in found.items()}


class _Bash(BashComplete):
    """Bash, which takes ``=`` as a word of its own, and adds a space to a completed word."""

    source_template = BashComplete.source_template.replace(
        "COMPREPLY+=($value)", "COMPREPLY+=($value); [[ $value == *[.=/] ]] && compopt -o nospace"
    )

    def get_completion_args(self) -> tuple[list[str], str]:
        """Returns the words before the one that is completed, and that one, whose part after ``=`` bash replaces."""
        words, position = split_arg_string(os.environ["COMP_WORDS"]), int(os.environ["COMP_CWORD"])
        given = [*words[1:position], words[position] if position < len(words) else ""]
        joined: list[str] = []
        for word, previous in zip(given, ["", *given], strict=False):
            if joined and "=" in (word, previous):
                joined[-1] += word
            else:
                joined.append(word)
        key, equals, _ = joined[-1].rpartition("=")
        self._kept = key + equals if "=" in given[-2:] else ""
        return joined[:-1], joined[-1]

    def format_completion(self, item: CompletionItem) -> str:
        """Returns a completion without the part of the word that bash keeps."""
        return f"{item.type},{str(item.value).removeprefix(self._kept)}"


class _Zsh(ZshComplete):
    """Zsh, which adds a space to a completed word."""

    source_template = ZshComplete.source_template.replace(
        "compadd -U -V unsorted -a completions",
        "local -a open=(${(M)completions:#*[.=/]}) closed=(${completions:#*[.=/]})\n"
        "        compadd -U -V unsorted -S '' -a open\n"
        "        compadd -U -V unsorted -a closed",
    )


add_completion_class(_Bash)
add_completion_class(_Zsh)
