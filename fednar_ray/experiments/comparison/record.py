"""The record of a comparison: its settings and planned runs in ``comparison.yaml``, from which it can be resumed.

The file is written before anything is trained, and again whenever one of the runs starts.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fednar_ray.config import CompareSettings, Document, Experiment, flatten_settings, yaml_text
from fednar_ray.config.loading import parse_document
from fednar_ray.core.errors import BadInput, ConfigError
from fednar_ray.experiments.resume import FIXED, FREE
from fednar_ray.report.run_plots import Variant
from fednar_ray.tracking.file_writes import replace_file
from fednar_ray.tracking.run_directory import RUNS, RunDirectory

log = logging.getLogger("fednar_ray")

RENAMED_KEYS = {"cohort_width": "group_size"}
"""The name of a key of a planned run in records of earlier versions → its name now."""


@dataclass(slots=True, kw_only=True)
class PlannedRun:
    """One run of a comparison, which may have been started."""

    weight_decay: float
    regularizer: str
    seed: int
    directory: str | None = None  # the name of its run directory, beside the comparison's; None: not started yet
    group_size: int | None = None  # C, how many clients are trained as one matrix; None: not started yet
    compiled: bool | None = None  # whether local steps are compiled; None: not started yet

    @property
    def variant(self) -> Variant:
        """The row that the run belongs to."""
        return Variant(self.weight_decay, self.regularizer)

    @property
    def label(self) -> str:
        """The name of the run in MLflow and in progress messages."""
        return f"{self.regularizer} λ={self.weight_decay:g} seed={self.seed}"

    def build_experiment(self, base: Experiment) -> Experiment:
        """Returns the experiment of this run, given the one that is compared."""
        changes = {"name": self.regularizer, "weight_decay": self.weight_decay}
        regularizer = base.regularizer.model_copy(update=changes)
        return base.model_copy(update={"regularizer": regularizer, "seed": self.seed})


def plan_runs(experiment: Experiment, settings: CompareSettings) -> list[PlannedRun]:
    """Returns all runs of a comparison in their order: by seed, then by weight decay, then by regularizer."""
    decays = settings.weight_decays or (experiment.regularizer.weight_decay,)
    return [
        PlannedRun(weight_decay=decay, regularizer=name, seed=experiment.seed + offset)
        for offset in range(settings.seeds)
        for decay in decays
        for name in settings.regularizers
    ]


@dataclass(slots=True, kw_only=True)
class ComparisonRecord:
    """A comparison that has been started."""

    directory: Path  # runs/<name>-<id>
    document: Document
    runs: list[PlannedRun]

    @property
    def name(self) -> str:
        """``<experiment>-<id>``, by which it is resumed."""
        return self.directory.name

    def find_directory(self, run: PlannedRun) -> Path | None:
        """Returns the directory of a run; None if the run has not started."""
        return None if run.directory is None else self.directory.parent / run.directory

    @property
    def finished_runs(self) -> int:
        """The number of finished runs."""
        return sum(d is not None and RunDirectory(d).finished for d in map(self.find_directory, self.runs))

    @property
    def finished(self) -> bool:
        """Whether the comparison itself came to its end."""
        return RunDirectory(self.directory).finished

    def save(self) -> None:
        """Writes the record in one step: a crash leaves the previous one whole. Raises RunFailed on a full disk."""
        fields = {**_dump_sections(self.document), "runs": [asdict(run) for run in self.runs]}
        replace_file(RunDirectory(self.directory).comparison_yaml, yaml_text.write(fields))

    @classmethod
    def load(cls, directory: Path) -> "ComparisonRecord":
        """Loads the record in a directory. Raises BadInput if there is none, or if it cannot be read."""
        path = RunDirectory(directory).comparison_yaml
        try:
            fields = yaml_text.parse(path.read_text(encoding="utf-8"))
            planned = fields.pop("runs")
            renamed = [
                f"runs.{i}.{old} is now {new}" for i, run in enumerate(planned) for old, new in _find_renamed_keys(run)
            ]
            document = _parse_settings(fields, path, renamed)
            runs = [PlannedRun(**run) for run in planned]
        except (OSError, ValueError, yaml_text.NotYaml, AttributeError, KeyError, TypeError) as error:
            raise BadInput(f"{path} is not the record of a comparison: {error}") from None
        return cls(directory=directory, document=document, runs=runs)


def _find_renamed_keys(run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Finds keys of a planned run by their names in an earlier version, and returns their current names."""
    return ((old, new) for old, new in RENAMED_KEYS.items() if old in run)


def _parse_settings(fields: Mapping[str, Any], path: Path, renamed: Sequence[str]) -> Document:
    """Parses the settings of a record. Raises BadInput if they, or its runs, are from another version."""
    problems, document = list(renamed), None
    try:
        document = parse_document(yaml_text.write(fields), str(path))
    except ConfigError as error:
        problems.extend(error.problems)
    if document is None or problems:
        hint = "resume the comparison with the version that wrote it, or start a new one"
        raise BadInput(f"{path} was written by another version, or edited: {'; '.join(problems)}; {hint}")
    return document


def _dump_sections(document: Document) -> dict[str, Any]:
    compare = document.compare.model_dump(mode="json", exclude_unset=True)
    return {"experiment": dict(document.raw), "compare": compare}


def explain_comparison(directory: Path) -> str:
    """Explains that a directory is a comparison's where one of its runs is wanted, and names its runs."""
    started = [run for run in ComparisonRecord.load(directory).runs if run.directory is not None]
    runs = "\n".join(f"  {run.directory}  {run.label}" for run in started) or "  none was started"
    return f"{directory.name} is a comparison; name one of its runs:\n{runs}"


def list_comparisons() -> Iterator[ComparisonRecord]:
    """Lists the comparisons in ``runs/``, newest first. Logs a warning for a record that cannot be read."""
    for directory in _list_directories():
        try:
            yield ComparisonRecord.load(directory)
        except BadInput as error:
            log.warning("%s", error)


def find(name: str) -> ComparisonRecord:
    """Finds a comparison by its name, id or directory. Raises BadInput if there is none."""
    directory = Path(name).absolute()
    if RunDirectory(directory).comparison_yaml.is_file():
        return ComparisonRecord.load(directory)
    known = list(_list_directories())
    found = [path for path in known if path.name == name or path.name.rpartition("-")[2] == name[:8]]
    if not found:
        names = ", ".join(path.name for path in known[:10]) or "none"
        raise BadInput(f"{name}: no such comparison; comparisons here: {names}")
    return ComparisonRecord.load(found[0])


def find_newest(document: Document) -> ComparisonRecord | None:
    """Finds the newest comparison of the same experiment and settings.

    Returns:
        The comparison; None if there is none of that name.

    Raises:
        ConfigError: All comparisons of that name have other settings.
    """
    name, refused = document.experiment.name, None
    for record in list_comparisons():
        if record.name.rpartition("-")[0] != name:
            continue
        different = list(_find_differences(record.document, document))
        if not different:
            return ComparisonRecord(directory=record.directory, document=document, runs=record.runs)
        refused = refused or _build_refusal(record, different)
    if refused is not None:
        raise refused
    return None


def _list_directories() -> Iterator[Path]:
    """Returns the directories of comparisons, newest first."""
    records = sorted(
        Path(RUNS).absolute().glob(str(RunDirectory(Path("*")).comparison_yaml)),
        key=lambda path: path.stat().st_ctime_ns,
        reverse=True,
    )
    return (path.parent for path in records)


def _find_differences(started: Document, wanted: Document) -> Iterator[str]:
    """Finds what differs, one line each. Where runs train, and how checkpoints are stored, may differ."""
    before, after = (
        {
            **flatten_settings(each.experiment),
            **{f"compare.{key}": value for key, value in each.compare.model_dump().items()},
        }
        for each in (started, wanted)
    )
    for key in {**before, **after}:
        free = key.startswith(FREE) and not key.startswith(FIXED)
        if before.get(key) != after.get(key) and not free:
            yield f"{key}: {after.get(key)!r}, and was {before.get(key)!r}"


def _build_refusal(record: ComparisonRecord, different: Sequence[str]) -> ConfigError:
    return ConfigError(
        (
            f"{record.name} was started with other settings, and cannot be resumed with these:",
            *different,
            f"resume it as it was started with: fednar compare --resume {record.name}",
        )
    )
