"""The identity of a run directory: its MLflow run and store, and the processes that have written it."""

import json
import re
import secrets
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Self

from fednar_ray.core.errors import BadInput
from fednar_ray.tracking.file_writes import replace_file
from fednar_ray.tracking.run_directory import RunDirectory

RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,256}")  # restricted, because a part of it becomes the name of a directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The content of ``run.json``."""

    run_id: str  # of the MLflow run
    tracking_uri: str
    directory: str | None = None  # where it was last written; None if an older version wrote it
    writers: tuple[str, ...] = ()  # one token per start of the run, oldest first
    parent_id: str | None = None  # the MLflow run of the comparison or search that the run belongs to
    started: str | None = None  # the first start, in ISO format with its time zone; None if an older version wrote it

    @property
    def writer(self) -> str | None:
        """The token of the last start; None if there was none."""
        return self.writers[-1] if self.writers else None

    def add_writer(self, directory: Path) -> Self:
        """Returns the identity after one more start, in ``directory``."""
        writers = (*self.writers, secrets.token_hex(8))
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        started = self.started or (None if self.writers else now)
        return replace(self, directory=str(directory.resolve()), writers=writers, started=started)

    def write(self, directory: Path) -> None:
        """Writes ``run.json`` into a run directory. Raises RunFailed if it cannot be written."""
        replace_file(RunDirectory(directory).identity, json.dumps(asdict(self)))


def read_identity(directory: Path) -> Identity:
    """Reads the identity of a run directory. Raises BadInput if it has none, or a damaged one."""
    path = RunDirectory(directory).identity
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return _parse_identity(fields)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadInput(f"{path} does not say which MLflow run {directory.name} is: {reason}") from error


def _parse_identity(fields: object) -> Identity:
    if not isinstance(fields, dict):
        raise TypeError("it is not a JSON object")
    run_id, uri, directory = fields["run_id"], fields["tracking_uri"], fields.get("directory")
    writers, parent_id, started = fields.get("writers", []), fields.get("parent_id"), fields.get("started")
    if not (isinstance(run_id, str) and RUN_ID.fullmatch(run_id)):
        raise ValueError(f"run_id is {run_id!r}")
    if not (isinstance(uri, str) and uri):
        raise ValueError(f"tracking_uri is {uri!r}")
    if not (directory is None or isinstance(directory, str)):
        raise ValueError(f"directory is {directory!r}")
    if not (isinstance(writers, list) and all(isinstance(writer, str) for writer in writers)):
        raise ValueError(f"writers is {writers!r}")
    if not (parent_id is None or isinstance(parent_id, str)):
        raise ValueError(f"parent_id is {parent_id!r}")
    if started is not None:
        datetime.fromisoformat(started)
    return Identity(
        run_id=run_id,
        tracking_uri=uri,
        directory=directory,
        writers=tuple(writers),
        parent_id=parent_id,
        started=started,
    )


def find_original(directory: Path, identity: Identity) -> Path | None:
    """Returns the directory that ``directory`` was copied from; None if it is not a copy, or the original is gone."""
    if identity.directory is None:
        return None
    original = Path(identity.directory)
    try:
        if original.samefile(directory) or read_identity(original).run_id != identity.run_id:
            return None
    except (OSError, ValueError, BadInput):  # it was moved, or its disk is not mounted
        return None
    return original


def check_not_copied(directory: Path, what: str) -> None:
    """Raises BadInput if ``directory`` is a copy and the original still exists.

    Args:
        directory: A run directory.
        what: The word for its content in the message, such as "search".
    """
    try:
        original = find_original(directory, read_identity(directory))
    except BadInput:
        return
    if original is not None:
        raise BadInput(
            f"{directory} is a copy of {original}, and both would record into one MLflow run; resume the {what} there, "
            f"or start one of another name"
        )
