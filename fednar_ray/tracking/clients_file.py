"""Writes and reads ``clients.json``: the clients' names, once per run, since its other records have ids."""

import json
from pathlib import Path

from fednar_ray.core.client_names import ClientNames, are_named
from fednar_ray.tracking.file_writes import replace_file
from fednar_ray.tracking.run_directory import RunDirectory


def write_client_names(directory: Path, names: ClientNames) -> Path | None:
    """Writes the names into a run directory. Raises RunFailed if the disk is full.

    Returns:
        The file; None if the clients have no names, so that there is nothing to write.
    """
    if not are_named(names):
        return None
    path = RunDirectory(directory).clients
    replace_file(path, json.dumps({"names": list(names)}, ensure_ascii=False))
    return path


def read_client_names(directory: Path) -> tuple[str, ...]:
    """Reads the names, by client id; empty if the clients have none, or if the file cannot be read."""
    try:
        names = json.loads(RunDirectory(directory).clients.read_text(encoding="utf-8"))["names"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()
