"""Reads and builds addresses of tracking stores as MLflow and SQLAlchemy do: the path is percent-encoded."""

import hashlib
import os
import re
import unicodedata
from pathlib import Path
from urllib.parse import unquote

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"  # MLflow's: the tracking store of a run whose settings name none
LONGEST_EXPERIMENT_NAME = 500  # MLflow's limit
LONGEST_PART_BYTES = 200  # file systems take 255
_SQLITE = re.compile(r"sqlite(?:\+\w+)?:///")
_DATABASE = re.compile(r"(?:sqlite|postgresql|mysql|mssql)(?:\+\w+)?:")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|databricks$")


def make_uri_absolute(uri: str) -> str:
    """Makes an address independent of the working directory.

    The path of a SQLite file becomes absolute. As little of it as possible is percent-encoded: SQLAlchemy decodes it,
    but MLflow creates the folder without decoding its name. A folder, given as a path or as ``file:…``, becomes a
    ``file:///…`` URI, since MLflow would decode a plain path. Other addresses are returned unchanged.
    """
    sqlite = _SQLITE.match(uri)
    if sqlite is not None:
        path, question, query = uri[sqlite.end() :].partition("?")
        return sqlite[0] + _encode(os.path.abspath(unquote(path))) + question + query if path else uri
    if uri.startswith("file:") and not uri.startswith("file:/"):
        return Path(os.path.abspath(unquote(uri.removeprefix("file:")))).as_uri()
    return uri if _SCHEME.match(uri) else Path(os.path.abspath(uri)).as_uri()


def _encode(path: str) -> str:
    """Percent-encodes a path for SQLAlchemy, but only the characters that would be misread."""
    encoded = path.replace("%", "%25") if unquote(path) != path else path
    return encoded.replace("?", "%3F")


def is_database(uri: str) -> bool:
    """Returns whether an address is that of a database, which MLflow writes to without a server."""
    return _DATABASE.match(uri) is not None


def find_sqlite_file(uri: str) -> Path | None:
    """Returns the file of an absolute SQLite address; None for other stores."""
    sqlite = _SQLITE.match(uri)
    return None if sqlite is None else Path(unquote(uri[sqlite.end() :].partition("?")[0]))


def split_off_folder(uri: str) -> tuple[str, Path | None]:
    """Splits an address for a program that would create the folder of a SQLite file without decoding its name.

    Returns:
        If the name of the folder is percent-encoded, an address relative to the folder, and the folder, in which the
        program must be started. Otherwise the address itself, and None.
    """
    file = find_sqlite_file(uri)
    if file is None or str(file.parent) in uri:
        return uri, None
    return f"sqlite:///{_encode(file.name)}", file.parent


def find_misread_folder(uri: str) -> str | None:
    """Returns the folder of a ``file:`` store if MLflow would misread it by decoding it twice; otherwise None."""
    folder = unquote(uri.removeprefix("file://"))
    return folder if uri.startswith("file:/") and unquote(folder) != folder else None


def find_name_problem(name: str) -> str | None:
    """Returns what is wrong with the name of an MLflow experiment; None if it is valid.

    Artifacts may be stored in a folder of that name, so the name must not lead out of its parent folder.
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


def build_artifact_folder(experiment_name: str) -> str:
    """Returns the folder below ``mlruns`` for a valid experiment name: the name itself if possible.

    A leading slash is dropped. A part that is too long for a file system is cut and gets a hash of the whole part.
    """
    return "/".join(_shorten(part) for part in experiment_name.split("/") if part not in ("", "."))


def _shorten(part: str) -> str:
    encoded = part.encode()
    if len(encoded) <= LONGEST_PART_BYTES:
        return part
    return encoded[:100].decode(errors="ignore") + "-" + hashlib.sha256(encoded).hexdigest()[:16]
