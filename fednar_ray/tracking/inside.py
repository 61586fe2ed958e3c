"""Ensures that a path that a run directory names lies inside it: the directory may come from a stranger."""

import stat
from pathlib import Path

from fednar_ray.core.errors import BadInput


def resolve_inside(directory: Path, name: str) -> Path:
    """Returns the path of ``name`` below ``directory``, after checking it and every file below it.

    Raises:
        BadInput: One of these files lies outside the directory (because of ``..``, an absolute path, or a link), or is
            neither a file nor a directory.
    """
    home, path = directory.resolve(), directory / name
    try:
        entries = [(each, each.resolve(), _mode(each)) for each in (path, *path.rglob("*"))]
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; a null in a name
        raise BadInput(f"{name!r} cannot be read, and is not sent: {error}") from None
    for each, target, mode in entries:
        if not target.is_relative_to(home):
            raise BadInput(f"{name!r} is not sent: {each} lies outside {directory}, or leads there")
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise BadInput(f"{name!r} is not sent: {each} is neither a file nor a directory")
    return path


def _mode(path: Path) -> int:
    """Returns the mode of a file, following links; that of an ordinary file if there is none."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return stat.S_IFREG
