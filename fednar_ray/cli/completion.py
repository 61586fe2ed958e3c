"""Shell completion: of the keys and values of settings, and of the names of runs, comparisons and searches.

Nothing here imports what takes long: a shell waits for each answer.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import click
from click.shell_completion import BashComplete, CompletionItem, ZshComplete, add_completion_class, split_arg_string

from fednar_ray.cli.completion_keys import Values, load_keys
from fednar_ray.tracking.run_directory import RUNS, SEARCHES, RunDirectory, SearchDirectory

EXPERIMENT_FILES = (".yaml", ".yml")

Complete = Callable[[click.Context, click.Parameter, str], list[str]]

STARTED_LIST = re.compile(r"(\[(?:.*[,\s])?)([^,\s]*)")  # what is complete of a list, and its last word


def complete_arguments(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Completes ``[FILE] [key=value …]``."""
    key, equals, value = incomplete.partition("=")
    if equals:
        values = load_keys().get(key, Values(()))
        found = _complete_list(values.words, value) if values.listed else _complete_word(values.words, value)
        return [f"{key}={each}" for each in found]
    return [*_list_files(incomplete), *_complete_key(load_keys(), incomplete)]


def _complete_word(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


def _complete_list(words: Sequence[str], incomplete: str) -> list[str]:
    """Completes the last word of a list, ``[fednar,dec``, each with what may follow it: another one, or the end."""
    match = STARTED_LIST.fullmatch(incomplete or "[")
    if match is None:
        return []
    before, last = match.groups()
    left = [word for word in words if word not in re.split(r"[\[,\s]+", before)]
    ends = ",]" if len(left) > 1 else "]"
    return [f"{before}{word}{end}" for word in _complete_word(left, last) for end in ends]


def _complete_key(keys: Iterable[str], incomplete: str) -> list[str]:
    """Completes a key up to its next dot; if only one section is left, with all of its keys."""
    depth = incomplete.count(".") + 1
    found = [f"{key}=" for key in keys if key.startswith(incomplete)]
    sections = dict.fromkeys(".".join(key.split(".")[:depth]) for key in found)
    if len(sections) < 2:
        return found
    return [name if name.endswith("=") else f"{name}." for name in sections]


def _list_files(incomplete: str) -> Iterator[str]:
    """Yields the experiment files and the folders whose paths begin like this; of a whole folder, only useful ones."""
    folder, _, start = incomplete.rpartition("/")
    try:
        entries = sorted(os.scandir(f"{folder}/" if "/" in incomplete else "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        path = f"{folder}/{entry.name}" if "/" in incomplete else entry.name
        if not entry.name.startswith(start) or (entry.name.startswith(".") and not start):
            continue
        if entry.is_dir():
            if start or _has_files(path):
                yield f"{path}/"
        elif entry.name.endswith(EXPERIMENT_FILES):
            yield path


def _has_files(folder: str) -> bool:
    """Returns whether a folder itself contains experiment files."""
    try:
        return any(name.endswith(EXPERIMENT_FILES) for name in os.listdir(folder))
    except OSError:
        return False


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


class _Bash(BashComplete):
    """Bash, which takes ``=`` as a word of its own, and adds a space to a completed word."""

    source_template = BashComplete.source_template.replace(
        "COMPREPLY+=($value)",
        'value=${completion#*,}; COMPREPLY+=("$value"); [[ $value == *[.=/,] ]] && compopt -o nospace',
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
        "local -a open=(${(M)completions:#*[.=/,]}) closed=(${completions:#*[.=/,]})\n"
        "        compadd -U -V unsorted -S '' -a open\n"
        "        compadd -U -V unsorted -a closed",
    )


add_completion_class(_Bash)
add_completion_class(_Zsh)
