"""The trials that a packed search proposes, from Tune's search algorithm, which sees them as it sees trials of Tune's.

The trial table is the truth of a resumed search. The search algorithm starts anew and proposes the points of the table
once more: random and grid searches by their seed, Optuna since it is given them. Those that have ended are completed
with their recorded values and not trained again.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.tune.experiment import Experiment, Trial
from ray.tune.search import SearchAlgorithm, Searcher
from ray.tune.search.search_generator import SearchGenerator

from fednar_ray.config import SearchSettings
from fednar_ray.tuning.strategy import build_search_algorithm, build_space
from fednar_ray.tuning.trial_plan import build_values_key, to_plain_values
from fednar_ray.tuning.trial_report import ROUNDS_KEY, clip_value
from fednar_ray.tuning.trial_table import RUNNING, TrialEntry, TrialTable


@dataclass(slots=True, kw_only=True, eq=False)
class Row:
    """A trial that is trained in a pack.

    Attributes:
        trial: What the recorder and the scheduler know it by. Tune itself does not run it.
        proposal_id: Its id in the search algorithm, which differs from the trial's if the search was resumed.
        limit: Maximum number of trials in its pack, after a pack with it has crashed.
        checkpoints: Whether there may be checkpoints of it.
        reports: Number of its reports.
    """

    trial: Trial
    proposal_id: str
    limit: int
    checkpoints: bool = False
    reports: int = 0


class Proposals:
    """Proposes trials, and tells the search algorithm their results.

    Args:
        search: The search section.
        table: The search's trials.
        trainable: The name of the trainable, which the search algorithm wants to know.
        width: Maximum number of trials per pack.
    """

    def __init__(self, search: SearchSettings, table: TrialTable, trainable: str, width: int) -> None:
        self._metric, self._width = search.metric, width
        self._earlier: dict[str, list[tuple[str, TrialEntry]]] = defaultdict(list)
        entries = sorted(table.trials.items(), key=lambda item: item[1].name)
        for trial_id, entry in entries:
            self._earlier[build_values_key(entry.initial_values)].append((trial_id, entry))
        self._algorithm = _build_algorithm(search, table, [entry for _, entry in entries], trainable)
        self._proposed = 0
        self._waiting: list[Row] = []
        self._waiting = self._repeat(len(entries))

    @property
    def left(self) -> int:
        """Maximum number of trials that are still to be proposed."""
        return len(self._waiting) + int(self._algorithm.total_samples) - self._proposed

    def propose(self) -> Row | None:
        """Returns the next trial; None if there is none."""
        if self._waiting:
            return self._waiting.pop(0)
        return self._draw() if self.left else None

    def _repeat(self, entries: int) -> list[Row]:
        """Draws until all trials of the table are found again, and returns those that are still to be trained."""
        rows: list[Row] = []
        while entries and self.left:
            row = self._draw()
            if row is None or row.checkpoints:
                entries -= 1
            rows += [] if row is None else [row]
        return rows

    def _draw(self) -> Row | None:
        """Draws one proposal; None if it has ended before, or if there is none after all."""
        self._proposed += 1
        proposed = self._algorithm.next_trial()
        if proposed is None:
            return None
        values = to_plain_values(proposed.config)
        earlier = self._earlier[build_values_key(values)]
        if not earlier:
            return self._build_row(proposed.trial_id, proposed.trial_id, values)
        trial_id, entry = earlier.pop(0)
        if entry.status == RUNNING:
            return self._build_row(trial_id, proposed.trial_id, entry.values, checkpoints=True)
        known = None if entry.value is None else {self._metric: clip_value(entry.value), ROUNDS_KEY: entry.rounds}
        self._algorithm.on_trial_complete(proposed.trial_id, known, error=known is None)
        return None

    def _build_row(
        self, trial_id: str, proposal_id: str, values: Mapping[str, Any], *, checkpoints: bool = False
    ) -> Row:
        trial = Trial("trial", config=dict(values), trial_id=trial_id, stub=True)
        return Row(trial=trial, proposal_id=proposal_id, limit=self._width, checkpoints=checkpoints)

    def tell(self, row: Row, result: Mapping[str, Any], *, ended: bool) -> None:
        """Tells the search algorithm the result of a trial."""
        if ended:
            self._algorithm.on_trial_complete(row.proposal_id, dict(result))
        else:
            self._algorithm.on_trial_result(row.proposal_id, dict(result))

    def tell_crash(self, row: Row) -> None:
        """Tells the search algorithm that a trial has crashed."""
        self._algorithm.on_trial_complete(row.proposal_id, error=True)


def _build_algorithm(
    search: SearchSettings, table: TrialTable, entries: Sequence[TrialEntry], trainable: str
) -> SearchAlgorithm:
    """Builds the search algorithm, which proposes the points of ``entries`` before all others."""
    points, space = table.points, build_space(search)
    if search.algorithm == "optuna" and entries:
        points = _put_first(entries, points)
        search = search.model_copy(update={"seed": _derive_seed(search.seed, len(entries))})
    algorithm = build_search_algorithm(search, points, 0, packed=True)
    if isinstance(algorithm, Searcher):
        algorithm = SearchGenerator(algorithm)
        algorithm.set_search_properties(None, None, space)
        space = {}
    directory = table.files.tune
    experiment = Experiment(
        directory.name, trainable, config=space, num_samples=search.trials, storage_path=str(directory.parent)
    )
    algorithm.add_configurations([experiment])
    return algorithm


def _put_first(entries: Sequence[TrialEntry], points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the values of the trials, then the points that none of them has."""
    tried = [build_values_key(entry.initial_values) for entry in entries]
    first = [dict(entry.initial_values) for entry in entries]
    return first + [dict(point) for point in points if build_values_key(point) not in tried]


def _derive_seed(seed: int, trials: int) -> int:
    """Derives a seed with which Optuna does not draw the points again that it has drawn before."""
    return int(np.random.SeedSequence([seed, trials]).generate_state(1)[0])
