"""What a search has come to, kept in ``searches/<name>/search.json`` so that it survives its driver."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fednar_ray.core.errors import BadInput, RunFailed
from fednar_ray.tracking.lines import make_directory, replace
from fednar_ray.tracking.run_directory import SEARCHES, SearchDirectory

NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*")
RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped early", "failed"


@dataclass(slots=True, kw_only=True)
class TrialEntry:
    """One trial."""

    name: str  # trial-0007, in the order of their starts
    values: dict[str, Any]  # by searched key, as they are now: population-based training changes them
    run_id: str | None = None  # MLflow's, once it has answered
    status: str = RUNNING
    rounds: int = 0  # reported
    value: float | None = None  # of the metric, in the last report
    seconds: float = 0.0  # that its process trained
    failure: str | None = None
    group_size: int | None = None  # C, as it was resolved
    begun: dict[str, Any] | None = None  # the values that its federation began with, where they are others now
    changes: dict[str, dict[str, float]] | None = None  # and since which rounds, as ``Experiment.changes``


@dataclass(slots=True, kw_only=True)
class TrialTable:
    """A search."""

    name: str
    tracking_uri: str
    experiment_id: str
    search_id: str = ""  # a tag of the parent run in MLflow, by which it is found before its id is written here
    run_id: str | None = None  # of the parent in MLflow; None until MLflow has answered
    described: bool = False  # the search's settings are on their way to MLflow
    trials: dict[str, TrialEntry] = field(default_factory=dict)  # by Tune's id
    runs: dict[str, str] = field(default_factory=dict)  # best, baseline → MLflow's run id, once they have finished

    @property
    def files(self) -> SearchDirectory:
        """The names of the search's files."""
        return SearchDirectory.named(self.name)

    @property
    def directory(self) -> Path:
        """``searches/<name>``, absolute."""
        return self.files.path

    def create(self, search_file: str) -> None:
        """Bring the search into being, with the text of its search file.

        Its directory appears with all that it needs, by renaming a finished one: a process that is killed here leaves
        no search, and what it left is overwritten by the next.
        """
        new = self.files.under_construction
        shutil.rmtree(new, ignore_errors=True)
        make_directory(new)
        replace(SearchDirectory(new).search_yaml, search_file)
        replace(SearchDirectory(new).trial_table, self._as_text())
        try:
            os.rename(new, self.directory)
        except OSError as error:
            raise RunFailed(f"{self.directory} cannot be created: {error.strerror}") from error

    def save(self) -> None:
        """Write it; a crash leaves the previous one whole."""
        make_directory(self.directory)
        replace(self.files.trial_table, self._as_text())

    def _as_text(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def load(cls, name: str) -> "TrialTable":
        """A kept search. Raises BadInput where there is none, or its record cannot be read."""
        if not NAME.fullmatch(name):
            raise BadInput(f"{name}: not the name of a search, which has letters, digits, '.', '_' and '-' only")
        path = SearchDirectory.named(name).trial_table
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            trials = {trial_id: TrialEntry(**entry) for trial_id, entry in fields.pop("trials").items()}
            ledger = cls(trials=trials, **fields)
        except (FileNotFoundError, NotADirectoryError):
            names = ", ".join(searches()) or "none are kept in this directory"
            raise BadInput(f"{name}: no such search; searches here: {names}") from None
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadInput(f"{path} is damaged, so the search {name!r} cannot be read: {error}") from None
        if ledger.name != name:
            raise BadInput(
                f"{path.parent} is the search {ledger.name!r} under another name, by which it cannot be resumed; "
                f"rename it to {ledger.directory}, or if that one is there, name it: {ledger.name}"
            )
        return ledger

    @property
    def parent_id(self) -> str:
        """``run_id``, of a search whose parent run exists."""
        assert self.run_id is not None
        return self.run_id

    def best(self, mode: str) -> TrialEntry | None:
        """The highest last value (lowest, for ``min``) among the trials that ran all rounds; of equals the first."""
        finished = [entry for entry in self.trials.values() if entry.status == FINISHED and entry.value is not None]
        sign = 1 if mode == "max" else -1
        return max(finished, key=lambda entry: sign * (entry.value or 0.0), default=None)

    def ranked(self, mode: str) -> list[TrialEntry]:
        """All trials, those that ran all rounds first, each group best first."""
        sign = 1 if mode == "max" else -1

        def key(entry: TrialEntry) -> tuple[bool, float]:
            return entry.status != FINISHED, -sign * entry.value if entry.value is not None else float("inf")

        return sorted(self.trials.values(), key=key)

    def count(self, status: str) -> int:
        """How many trials have this status."""
        return sum(entry.status == status for entry in self.trials.values())


def trial_directory(ledger: TrialTable, entry: TrialEntry) -> Path:
    """Where a trial's journal is."""
    return ledger.files.trial(entry.name).path


def check_unused(name: str) -> None:
    """Raises BadInput where a search of that name, or anything else, lies in its directory."""
    files = SearchDirectory.named(name)
    directory = files.path
    if files.trial_table.exists():
        raise BadInput(
            f"search.name: {name!r} is in use: fednar tune --resume {name} goes on with it; "
            "or set search.name to another name"
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BadInput(f"search.name: {directory} exists and is no search; set search.name to another name, or move it")


def uri_of(name: str) -> str | None:
    """The tracking store of a search that is kept here; None where it is not."""
    try:
        return TrialTable.load(name).tracking_uri
    except BadInput:
        return None


def searches() -> Iterator[str]:
    """The names of the searches that are kept here, sorted."""
    names = (path.parent.name for path in Path(SEARCHES).glob(str(SearchDirectory(Path("*")).trial_table)))
    yield from sorted(name for name in names if not name.startswith("."))  # one that is being created has a dot
