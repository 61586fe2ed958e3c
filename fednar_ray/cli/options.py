"""What commands have in common: at most one FILE, overrides ``key=value``, and ``--json``."""

from collections.abc import Sequence

import click

from fednar_ray.config import Document, embedded, load_document
from fednar_ray.core.errors import BadInput, shown_text

COMMANDS = {"run": "digits", "compare": "compare", "tune": "digits"}
"""What trains, with the embedded file that each takes where none is given."""

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")


def files_and_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words apart. Raises BadInput for a second FILE."""
    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise BadInput(f"one FILE at most: {shown_text(' '.join(files))}; overrides read key=value")
    return files, [word for word in words if "=" in word]


def document_of(words: Sequence[str], command: str) -> Document:
    """What one of ``COMMANDS`` is to do: the file, or its embedded one, with the overrides."""
    files, overrides = files_and_overrides(words)
    to_search = command == "tune"
    if files:
        return load_document(files[0], overrides, to_search=to_search)
    return embedded(COMMANDS[command], overrides, to_search=to_search)


def resume_or_file(words: tuple[str, ...], resume: str | None) -> tuple[tuple[str, ...], str | None]:
    """``--resume FILE`` and ``--resume key=value`` name no run: what follows the option is an argument then."""
    if resume and ("=" in resume.partition("?")[0] or resume.endswith((".yaml", ".yml"))):
        return (resume, *words), ""
    return words, resume
