"""The state of a search, stored in ``searches/<name>/search.json`` so that it outlives the process."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from fednar_ray.core.errors import BadInput, RunFailed
from fednar_ray.tracking.file_writes import make_directory, replace_file
from fednar_ray.tracking.run_directory import SEARCHES, SearchDirectory
from fednar_ray.tracking.searches import FAILED, FINISHED, STOPPED, compute_place
from fednar_ray.tuning.trial_report import Lineage, TrialReport

__all__ = ["FAILED", "FINISHED", "RUNNING", "STOPPED", "TrialEntry", "TrialTable"]

NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]*")
RUNNING = "running"
FIELDS_OF_EARLIER_VERSIONS = ("runs", "cohort_width", "begun", "changes")  # of the search and of its trials


@dataclass(slots=True, kw_only=True)
class TrialEntry:
    """One trial.

    Attributes:
        name: ``trial-0007``, numbered in the order in which trials start.
        values: Its value of each searched key. Population-based training changes them on the way.
        run_id: Its run in MLflow; None until MLflow has answered.
        status: RUNNING, FINISHED (all rounds are trained, or a callback has ended it), STOPPED (early) or FAILED.
        rounds: Number of rounds that it has reported.
        value: The search's metric in the last report.
        seconds: Training time of its process.
        failure: Why it failed.
        ended: Why a callback has ended it before all rounds were trained.
        group_size: Number of clients that are trained as one matrix.
        compiled: Whether local steps are compiled.
        lineage: The origin of its federation; None if its settings never changed.
    """

    name: str
    values: dict[str, Any]
    run_id: str | None = None
    status: str = RUNNING
    rounds: int = 0
    value: float | None = None
    seconds: float = 0.0
    failure: str | None = None
    group_size: int | None = None
    compiled: bool | None = None
    lineage: Lineage | None = None
    ended: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the entry as ``search.json`` has it."""
        lineage = None if self.lineage is None else asdict(self.lineage)
        return {**{each.name: getattr(self, each.name) for each in fields(self)}, "lineage": lineage}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "TrialEntry":
        """Reads an entry of ``search.json``."""
        lineage = fields.get("lineage")
        return cls(**{**fields, "lineage": None if lineage is None else Lineage(**lineage)})

    @property
    def initial_values(self) -> Mapping[str, Any]:
        """The values that the trial's federation started with."""
        return self.values if self.lineage is None else self.lineage.initial_values

    def update(self, report: TrialReport, values: dict[str, Any]) -> None:
        """Updates the entry with a new report of the trial."""
        self.values, self.value, self.rounds, self.failure = values, report.value, report.rounds, report.failure
        self.seconds += report.train_seconds
        self.group_size, self.compiled = report.group_size, report.compiled
        self.lineage = report.lineage or self.lineage
        self.ended = report.ended


@dataclass(slots=True, kw_only=True)
class TrialTable:
    """A search and its trials.

    Attributes:
        name: The search's name.
        tracking_uri: The MLflow store that records it.
        experiment_id: The MLflow experiment of its runs.
        search_id: A tag of the parent run in MLflow, which identifies the run before its id is written here.
        run_id: The parent run; None until MLflow has answered.
        described: Whether the search's settings are queued for MLflow.
        pack: Number of trials that one process trains together; 1: they are not packed.
        gpu: Whether the processes of packed trials train on GPUs.
        points: The values that are tried before all others, if trials are packed.
        trials: The trials by Tune's ids.
    """

    name: str
    tracking_uri: str
    experiment_id: str
    search_id: str = ""
    run_id: str | None = None
    described: bool = False
    pack: int = 1
    gpu: bool = False
    points: list[dict[str, Any]] = field(default_factory=list)
    trials: dict[str, TrialEntry] = field(default_factory=dict)

    @property
    def files(self) -> SearchDirectory:
        """The search's directory, which names its files."""
        return SearchDirectory.named(self.name)

    @property
    def directory(self) -> Path:
        """The absolute path of ``searches/<name>``."""
        return self.files.path

    def get_trial_directory(self, entry: TrialEntry) -> Path:
        """Returns the directory of a trial's journal."""
        return self.files.trial(entry.name).path

    def create(self, search_file: str) -> None:
        """Creates the search's directory with ``search_file`` as the text of its search file.

        The directory appears in one step, with all that it needs. A process that is killed before that leaves no
        search, and the next search of that name overwrites what it left.

        Raises:
            RunFailed: The directory cannot be created.
        """
        new = self.files.under_construction
        shutil.rmtree(new, ignore_errors=True)
        make_directory(new)
        replace_file(SearchDirectory(new).search_yaml, search_file)
        replace_file(SearchDirectory(new).trial_table, self._to_json())
        try:
            os.rename(new, self.directory)
        except OSError as error:
            raise RunFailed(f"{self.directory} cannot be created: {error.strerror}") from error

    def save(self) -> None:
        """Writes the table atomically, so that a crash leaves the previous one intact."""
        make_directory(self.directory)
        replace_file(self.files.trial_table, self._to_json())

    def _to_json(self) -> str:
        """Returns the table as JSON with one line per trial, since it is written after each event of a search."""
        about = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "trials"}
        lines = (f"  {json.dumps(key)}: {json.dumps(entry.to_json())}" for key, entry in self.trials.items())
        joined = ",\n".join(lines)
        return f'{json.dumps(about, indent=1)[:-2]},\n "trials": {{\n{joined}\n }}\n}}'

    @classmethod
    def load(cls, name: str) -> "TrialTable":
        """Loads the search ``name`` of this directory.

        Raises:
            BadInput: There is no such search, its table cannot be read, or an earlier version has written it.
        """
        if not NAME.fullmatch(name):
            raise BadInput(f"{name}: not the name of a search, which may contain only letters, digits, '.', '_', '-'")
        path = SearchDirectory.named(name).trial_table
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            _check_version(fields, path)
            trials = {trial_id: TrialEntry.from_json(entry) for trial_id, entry in fields.pop("trials").items()}
            table = cls(trials=trials, **fields)
        except (FileNotFoundError, NotADirectoryError):
            names = ", ".join(list_searches()) or "none"
            raise BadInput(f"{name}: no such search; searches here: {names}") from None
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadInput(f"{path} is damaged, so the search {name!r} cannot be read: {error}") from None
        if table.name != name:
            raise BadInput(
                f"{path.parent} holds the search {table.name!r}, which cannot be resumed as {name!r}; "
                f"rename it to {table.directory}, or if that exists, give its name: {table.name}"
            )
        return table

    @property
    def parent_id(self) -> str:
        """The parent run in MLflow, of a search that has one."""
        assert self.run_id is not None
        return self.run_id

    def find_best(self, mode: str) -> TrialEntry | None:
        """Finds the trial with the highest value (lowest, for ``min``) among those that trained all rounds.

        The first one wins a tie. None if no trial has trained all rounds.
        """
        first = next(iter(self.rank(mode)), None)
        return first if first is not None and first.status == FINISHED and first.value is not None else None

    def rank(self, mode: str) -> list[TrialEntry]:
        """Sorts the trials best first; see ``compute_place``."""
        return sorted(self.trials.values(), key=lambda each: compute_place(each.name, each.status, each.value, mode))

    def count(self, status: str) -> int:
        """Counts the trials with this status."""
        return sum(entry.status == status for entry in self.trials.values())

    def build_results(self, mode: str) -> list[Mapping[str, Any]]:
        """Builds the table of results for MLflow: one row per trial, best first.

        Searched keys are written with slashes, since MLflow's UI shows no column whose name has a dot.
        """
        return [
            {
                "trial": entry.name,
                "status": entry.status,
                "rounds": entry.rounds,
                "value": entry.value,
                "seconds": round(entry.seconds, 3),
                **{key.replace(".", "/"): entry.values[key] for key in sorted(entry.values)},
                "failure": entry.failure,
            }
            for entry in self.rank(mode)
        ]


def _check_version(fields: Mapping[str, Any], path: Path) -> None:
    """Raises BadInput if an earlier version of fednar_ray has written this table."""
    names = {*fields, *(name for entry in fields["trials"].values() for name in entry)}
    old = [name for name in FIELDS_OF_EARLIER_VERSIONS if name in names]
    if old:
        raise BadInput(
            f"{path} was written by an earlier version of fednar_ray (it has {', '.join(old)}), so the search cannot "
            f"be resumed; start it again under another name: "
            f"fednar tune {SearchDirectory(path.parent).search_yaml} search.name={path.parent.name}-2"
        )


def check_name_is_free(name: str) -> None:
    """Raises BadInput if the directory of a new search ``name`` already holds a search or other files."""
    files = SearchDirectory.named(name)
    directory = files.path
    if files.trial_table.exists():
        raise BadInput(
            f"search.name: {name!r} is in use; resume that search with: fednar tune --resume {name}; "
            "or set search.name to another name"
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise BadInput(
            f"search.name: {directory} exists and is not a search; move it, or set search.name to another name"
        )


def find_tracking_uri(name: str) -> str | None:
    """Finds the MLflow store of the search ``name``; None if there is no such search here."""
    try:
        return TrialTable.load(name).tracking_uri
    except BadInput:
        return None


def list_searches() -> Iterator[str]:
    """Lists the names of the searches in this directory, sorted."""
    names = (path.parent.name for path in Path(SEARCHES).glob(str(SearchDirectory(Path("*")).trial_table)))
    yield from sorted(name for name in names if not name.startswith("."))  # a dot: one that is being created
