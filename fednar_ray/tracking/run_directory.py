"""The names of all files of a run, a comparison and a search."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

RUNS = "runs"  # the directory of all runs and comparisons, below the working directory
SEARCHES = "searches"  # the directory of all searches, below the working directory


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The directory of one run, ``runs/<experiment>-<id>``. Trials and comparisons have one too.

    An instance only names files; nothing is read or created.

    Examples:
        >>> RunDirectory(Path("/work/runs/digits-7f3a09c1")).journal.name
        'metrics.jsonl'
    """

    path: Path

    @classmethod
    def of_run(cls, experiment_name: str, run_id: str) -> Self:
        """Returns ``runs/<experiment>-<id>`` in the working directory, absolute; ``run_id`` is MLflow's."""
        return cls(Path(RUNS).absolute() / f"{experiment_name}-{run_id[:8]}")

    @property
    def experiment_yaml(self) -> Path:
        """The experiment as it was run, in the form that ``fednar run`` reads."""
        return self.path / "experiment.yaml"

    @property
    def journal(self) -> Path:
        """One line of JSON per round."""
        return self.path / "metrics.jsonl"

    @property
    def identity(self) -> Path:
        """Which MLflow run this is, and which processes have written the directory."""
        return self.path / "run.json"

    @property
    def outbox(self) -> Path:
        """One line of JSON per thing that is to be sent to MLflow, rounds aside."""
        return self.path / "outbox.jsonl"

    @property
    def sent(self) -> Path:
        """How many lines of the outbox and how many rounds MLflow has confirmed."""
        return self.path / "outbox.sent"

    @property
    def lock(self) -> Path:
        """The lock that the process writing the directory holds."""
        return self.path / "lock"

    @property
    def finished_mark(self) -> Path:
        """An empty file that exists once the run and its last records are complete."""
        return self.path / "finished"

    @property
    def stop(self) -> Path:
        """After how many rounds a callback ended the run, and why, as JSON; absent if none did."""
        return self.path / "stop.json"

    @property
    def checkpoints(self) -> Path:
        """The directory of checkpoints, unless ``checkpoint.storage`` names another place."""
        return self.path / "checkpoints"

    @property
    def comparison_yaml(self) -> Path:
        """The settings and the runs of a comparison; only the directory of a comparison has it."""
        return self.path / "comparison.yaml"

    @property
    def model(self) -> Path:
        """The directory of the final model in MLflow's format."""
        return self.path / "model"

    @property
    def parameters(self) -> Path:
        """The state_dict of the final model, as ``torch.save`` writes it."""
        return self.path / "model.pt"

    @property
    def schema(self) -> Path:
        """The columns of the table that the model takes, as JSON; absent if inputs have no named columns."""
        return self.path / "schema.json"

    @property
    def report(self) -> Path:
        """The page of the run or comparison, which contains everything that it shows."""
        return self.path / "report.html"

    @property
    def facts(self) -> Path:
        """What the page shows and the journal does not have: how the run was made, and its data."""
        return self.path / "facts.json"

    @property
    def curves_plot(self) -> Path:
        """The plot of metrics over rounds."""
        return self.path / "curves.png"

    @property
    def comparison_plot(self) -> Path:
        """The curves of all variants of a comparison."""
        return self.path / "comparison.png"

    @property
    def comparison_table(self) -> Path:
        """The rows of a comparison, as a table that the MLflow UI shows."""
        return self.path / "comparison.json"

    @property
    def clients(self) -> Path:
        """The clients' names, by client id; absent if they have none."""
        return self.path / "clients.json"

    @property
    def suggestion_plot(self) -> Path:
        """Where a clip bound would bite: quantiles of the step norms over rounds."""
        return self.path / "clip_bound.png"

    @property
    def excluded_clients_table(self) -> Path:
        """Round, client and reason of every excluded client update; absent if none was excluded."""
        return self.path / "excluded_clients.json"

    @property
    def silo_privacy_table(self) -> Path:
        """Noise and ε of every silo; absent unless single examples are protected."""
        return self.path / "silo_privacy.json"

    @property
    def finished(self) -> bool:
        """Whether the run is complete, so that nothing is left to do."""
        return os.path.exists(self.finished_mark)  # False where the directory may not be read

    @property
    def marks(self) -> tuple[Path, ...]:
        """The files by which a directory is recognized as a run's; any one of them is enough."""
        return (self.experiment_yaml, self.journal, self.identity, self.checkpoints)


def has_searches() -> bool:
    """Returns whether there is a search in the working directory."""
    return any(Path(SEARCHES).glob(str(SearchDirectory(Path("*")).trial_table)))


@dataclass(frozen=True, slots=True)
class SearchDirectory:
    """The directory of one search, ``searches/<name>``. An instance only names files; nothing is read or created."""

    path: Path

    @classmethod
    def named(cls, name: str) -> Self:
        """Returns ``searches/<name>`` in the working directory, absolute."""
        return cls(Path(SEARCHES).absolute() / name)

    @property
    def search_yaml(self) -> Path:
        """The search file that the search was started with."""
        return self.path / "search.yaml"

    @property
    def trial_table(self) -> Path:
        """The state of every trial."""
        return self.path / "search.json"

    @property
    def tune(self) -> Path:
        """The directory in which Ray Tune keeps its state."""
        return self.path / "tune"

    @property
    def scheduler(self) -> Path:
        """The state of Tune's scheduler, which Tune itself does not restore."""
        return self.path / "scheduler.pickle"

    @property
    def stop_file(self) -> Path:
        """The stop rule that is met; it exists only while the search ends early."""
        return self.path / "stop"

    @property
    def best_yaml(self) -> Path:
        """The experiment with the values of the best trial."""
        return self.path / "best.yaml"

    @property
    def finished_mark(self) -> Path:
        """A file that exists once nothing is left to do; it says which stop rule ended the search, if one did."""
        return self.path / "finished"

    @property
    def results_table(self) -> Path:
        """The trials, as a table that the MLflow UI shows."""
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        """The directory of the report: a page, plots and tables."""
        return self.path / "report"

    @property
    def lock(self) -> Path:
        """The lock that the process running the search holds; it lies beside the directory, which may not exist yet."""
        return self.path.with_name(f".{self.path.name}.lock")

    @property
    def under_construction(self) -> Path:
        """The directory of a search that is being created; it is renamed to ``path`` when it is complete."""
        return self.path.with_name(f".{self.path.name}.new")

    def trial(self, name: str) -> RunDirectory:
        """Returns the run directory of a trial."""
        return RunDirectory(self.path / "trials" / name)
