"""Where runs play: a temporary folder with a tracking store, and what each run starts with."""

import os
import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from evidence import Undisturbed
from processes import MARK, end_all_in
from runs import Run

PRESETS = (
    "scaffold", "feddyn", "fedavgm", "fedadam", "fedyogi",
    "fedadagrad", "fedadam_li2023", "fedexp", "fedavgm+exp", "scaffold+exp",
)  # fmt: skip
"""Those that have state beside the model: the server's, or each client's."""

ROUNDS, QUICK_ROUNDS = 120, 60
OPTIONS = (
    "model.hidden=256",
    "execution.placement=pooled",
    "execution.actors=2",
    "execution.vectorize=3",  # four client groups a round: whoever dies leaves one that waits as well
    "checkpoint.every=1",  # one is being written nearly always
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A disturbed run, after its end."""

    preset: str
    hits: tuple[str, ...]  # what each disturbance met
    problems: tuple[str, ...]  # none: the undisturbed bytes and history, and everything is in MLflow once
    rounds_redone: int = 0
    seconds_lost: float = 0.0


class Stage:
    """Makes runs, and knows how they end undisturbed."""

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
        """Numbers for one kind of disturbance, whichever others there are."""
        return random.Random(f"{self.seed} {kind}")

    @contextmanager
    def run(self, preset: str, *options: str, folder: Path | None = None) -> Iterator[Run]:
        """A run that is yet to be started; in the end none of its processes is left."""
        self._made += 1
        if folder is None:
            folder = self.folder / f"run-{self._made}"
            folder.mkdir()
        options = (f"federation.rounds={self._rounds}", *OPTIONS, *options)
        try:
            yield Run(preset, options, folder, self.folder / "logs" / f"run-{self._made}", self.environment)
        finally:
            end_all_in(folder)

    def _undisturbed(self, preset: str) -> Undisturbed:
        with self.run(preset) as run:
            run.start()
            found = Undisturbed.of(run, run.finish())
        text = f"{found.seconds:5.1f} s, {found.training_seconds:.1f} s of them rounds"
        print(f"{'undisturbed':12}{preset:16}{text}", flush=True)
        return found
