"""The environment of the runs: a temporary folder with a tracking store, and the settings of each run."""

import os
import random
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from pathlib import Path

from evidence import Undisturbed
from processes import MARK, end_all_in
from runs import Run

PRESETS = (
    "scaffold", "feddyn", "fedavgm", "fedadam", "fedyogi",
    "fedadagrad", "fedadam_li2023", "fedexp", "fedavgm+exp", "scaffold+exp",
)  # fmt: skip
"""The presets that keep state beside the model, on the server or for each client."""

ROUNDS, QUICK_ROUNDS = 120, 60
KILLS_PER_RUN = 2  # a client group that loses three actors trains in halves: equal to rounding, not to the bit
OPTIONS = (
    "model.hidden=256",
    "execution.placement=pooled",
    "execution.actors=2",
    "execution.vectorize=3",  # four client groups per round, so that one also waits where an actor dies
    "checkpoint.every=1",  # so that one is being written most of the time
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a disturbed run."""

    preset: str
    hits: tuple[str, ...]  # what the run was doing at each disturbance
    problems: tuple[str, ...]  # empty: same bytes and history as undisturbed, and MLflow has every point once
    rounds_redone: int = 0
    seconds_lost: float = 0.0


class Stage:
    """Creates runs, and knows how they end undisturbed."""

    def __init__(self, folder: Path, seed: int, *, quick: bool) -> None:
        self.folder, self.seed = folder, seed
        self.presets = PRESETS[:1] if quick else PRESETS
        self._rounds = QUICK_ROUNDS if quick else ROUNDS
        self._made = 0
        for name in ("store", "logs"):
            (folder / name).mkdir()
        self.environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | {
            MARK: str(folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/store/mlflow.db",
        }
        self.undisturbed = cache(self._undisturbed)

    def random(self, kind: str) -> random.Random:
        """Returns a generator for one kind of disturbance, independent of the other kinds."""
        return random.Random(f"{self.seed} {kind}")

    @contextmanager
    def run(self, preset: str, *options: str, folder: Path | None = None) -> Iterator[Run]:
        """Yields a run that is not started yet. None of its processes is left afterwards."""
        self._made += 1
        if folder is None:
            folder = self.folder / f"run-{self._made}"
            folder.mkdir()
        options = (f"federation.rounds={self._rounds}", *OPTIONS, *options)
        try:
            yield Run(preset, options, folder, self.folder / "logs" / f"run-{self._made}", self.environment)
        finally:
            end_all_in(folder)

    def spread(self, kills: int, disturb: Callable[[str, int], Outcome]) -> Iterator[Outcome]:
        """Disturbs runs of all presets in turn, at most ``KILLS_PER_RUN`` times each, until there were ``kills``."""
        left = kills
        for preset in islice(cycle(self.presets), 3 * kills):
            if left:
                outcome = disturb(preset, min(KILLS_PER_RUN, left))
                left -= len(outcome.hits)
                yield outcome

    def _undisturbed(self, preset: str) -> Undisturbed:
        with self.run(preset) as run:
            run.start()
            found = Undisturbed.of(run, run.finish())
        text = f"{found.seconds:5.1f} s, {found.training_seconds:.1f} s of them rounds"
        print(f"{'undisturbed':12}{preset:16}{text}", flush=True)
        return found
