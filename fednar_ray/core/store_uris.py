"""Addresses of tracking stores, as MLflow and SQLAlchemy read them: what follows the scheme is percent-encoded."""

import hashlib
import os
import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote

LONGEST_EXPERIMENT_NAME = 500  # MLflow's limit
LONGEST_PART_BYTES = 200  # file systems take 255
_SQLITE = re.compile(r"sqlite(?:\+\w+)?:///")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|databricks$")


def absolute_uri(uri: str) -> str:
    """Returns an address that means the same store from every working directory.

    A SQLite file is made absolute, and no more of its path is percent-encoded than must be: SQLAlchemy decodes what it
    is given, but MLflow also makes the folder of that name without decoding it.  A folder, given as a path or as
    ``file:…``, becomes a ``file:///…`` URI: MLflow decodes a plain path as if it were one.  Everything else is returned
    as it is.
    """
    sqlite = _SQLITE.match(uri)
    if sqlite is not None:
        path, question, query = uri[sqlite.end() :].partition("?")
        return sqlite[0] + _encoded(os.path.abspath(unquote(path))) + question + query if path else uri
    if uri.startswith("file:") and not uri.startswith("file:/"):
        return Path(os.path.abspath(unquote(uri.removeprefix("file:")))).as_uri()
    return uri if _SCHEME.match(uri) else Path(os.path.abspath(uri)).as_uri()


def _encoded(path: str) -> str:
    """Returns a path as SQLAlchemy reads it: percent-encoded only where it would be taken for something else."""
    encoded = path.replace("%", "%25") if unquote(path) != path else path
    return encoded.replace("?", "%3F")


def sqlite_file(uri: str) -> Path | None:
    """Returns the file of an absolute SQLite address; None for every other store."""
    sqlite = _SQLITE.match(uri)
    return None if sqlite is None else Path(unquote(uri[sqlite.end() :].partition("?")[0]))


def within_its_folder(uri: str) -> tuple[str, Path | None]:
    """Returns an address for a program that makes the folder of a SQLite file without decoding its name.

    Where the name of the folder is encoded, that is an address relative to the folder, and the folder to start the
    program in; otherwise the address as it is, and None.
    """
    file = sqlite_file(uri)
    if file is None or str(file.parent) in uri:
        return uri, None
    return f"sqlite:///{_encoded(file.name)}", file.parent


def folder_misread_by_mlflow(uri: str) -> str | None:
    """Returns the folder of a ``file:`` store that MLflow decodes twice; None for every other store."""
    folder = unquote(uri.removeprefix("file://"))
    return folder if uri.startswith("file:/") and unquote(folder) != folder else None


def experiment_name_problem(name: str) -> str | None:
    """Returns what is wrong with the name of an MLflow experiment; None where nothing is.

    Artifacts may lie in a folder of that name, so a name must not lead out of a folder.
    """
    if not name.strip("/ "):
        return "it is empty"
    if len(name) > LONGEST_EXPERIMENT_NAME:
        return f"it has {len(name)} characters; MLflow takes at most {LONGEST_EXPERIMENT_NAME}"
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in name):
        return "it contains a control character"
    if ".." in name.split("/"):
        return "it contains '..', which would lead out of the folder of artifacts"
    return None


def artifact_folder(experiment_name: str) -> str:
    """Returns the folder below ``mlruns`` for a valid experiment name: the name itself wherever that is possible.

    A leading slash is dropped, and a part that is too long for a file system is cut, with a hash of the whole.
    """
    return "/".join(_fitting(part) for part in experiment_name.split("/") if part not in ("", "."))


def _fitting(part: str) -> str:
    encoded = part.encode()
    if len(encoded) <= LONGEST_PART_BYTES:
        return part
    return encoded[:100].decode(errors="ignore") + "-" + hashlib.sha256(encoded).hexdigest()[:16]
