"""Whose a run directory is: the MLflow run and store that it belongs to, and the processes that have written it."""

import json
import re
import secrets
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from fednar_ray.core.errors import BadInput
from fednar_ray.tracking import lines
from fednar_ray.tracking.run_directory import RunDirectory

RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,256}")  # a part of it becomes the name of a directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What ``run.json`` says."""

    run_id: str  # MLflow's
    tracking_uri: str
    directory: str | None = None  # where it was last written; None: by a version that did not record it
    writers: tuple[str, ...] = ()  # one token per start, oldest first

    @property
    def writer(self) -> str | None:
        """The token of the last start."""
        return self.writers[-1] if self.writers else None

    def started_in(self, directory: Path) -> Self:
        """The identity with a new writer, in ``directory``."""
        writers = (*self.writers, secrets.token_hex(8))
        return replace(self, directory=str(directory.resolve()), writers=writers)

    def write(self, directory: Path) -> None:
        """Writes ``run.json``. Raises RunFailed."""
        lines.replace(RunDirectory(directory).identity, json.dumps(asdict(self)))


def identity_of(directory: Path) -> Identity:
    """Returns the MLflow run that a run directory belongs to. Raises BadInput where it does not say."""
    path = RunDirectory(directory).identity
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return _identity(fields)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BadInput(f"{path} does not say which MLflow run {directory.name} is: {reason}") from error


def _identity(fields: object) -> Identity:
    if not isinstance(fields, dict):
        raise TypeError("it is not a JSON object")
    run_id, uri, directory = fields["run_id"], fields["tracking_uri"], fields.get("directory")
    writers = fields.get("writers", [])
    if not (isinstance(run_id, str) and RUN_ID.fullmatch(run_id)):
        raise ValueError(f"run_id is {run_id!r}")
    if not (isinstance(uri, str) and uri):
        raise ValueError(f"tracking_uri is {uri!r}")
    if not (directory is None or isinstance(directory, str)):
        raise ValueError(f"directory is {directory!r}")
    if not (isinstance(writers, list) and all(isinstance(writer, str) for writer in writers)):
        raise ValueError(f"writers is {writers!r}")
    return Identity(run_id=run_id, tracking_uri=uri, directory=directory, writers=tuple(writers))


def original_of(directory: Path, identity: Identity) -> Path | None:
    """Returns the directory that ``directory`` was copied from; None where that one is gone, or it is no copy."""
    if identity.directory is None:
        return None
    original = Path(identity.directory)
    try:
        if original.samefile(directory) or identity_of(original).run_id != identity.run_id:
            return None
    except (OSError, ValueError, BadInput):  # it was moved, or its disk is elsewhere
        return None
    return original


def check_no_copy(directory: Path, what: str) -> None:
    """Raises BadInput where ``directory`` was copied from one that is still there; ``what`` says what it holds."""
    try:
        original = original_of(directory, identity_of(directory))
    except BadInput:
        return
    if original is not None:
        raise BadInput(
            f"{directory} is a copy of {original}, and both would record into one MLflow run; resume the {what} there, "
            f"or start one of another name"
        )
