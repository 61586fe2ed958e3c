"""Packs that tests run in their own process: what Tune does with them, step by step."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from fednar_ray.config import Document
from fednar_ray.tracking.store import Store
from fednar_ray.tuning.pack import REPORTS_KEY, PackTrainable
from fednar_ray.tuning.packs import Packs
from fednar_ray.tuning.proposals import Proposals
from fednar_ray.tuning.recorder import Recorder
from fednar_ray.tuning.strategy import build_scheduler, count_trials
from fednar_ray.tuning.trial import FederatedTrial
from fednar_ray.tuning.trial_plan import TrialPlan
from fednar_ray.tuning.trial_report import TrialReport
from fednar_ray.tuning.trial_table import TrialTable
from tests.support.trials import ROUNDS, build_plan


def open_pack(plan: TrialPlan) -> PackTrainable:
    """Returns a pack as it is in its own process."""
    pack = PackTrainable.__new__(PackTrainable)  # Tune's own __init__ needs a trial's directory
    pack.setup({}, plan=plan)
    return pack


def step(pack: PackTrainable, metric: str = "validation_accuracy") -> dict[str, TrialReport]:
    """Returns the reports of a pack's next step by trial."""
    return {trial_id: TrialReport.from_tune(report, metric) for trial_id, report in pack.step()[REPORTS_KEY]}


class LocalPacks:
    """The packs of a search with one pack at a time, which is trained here. Its methods are Tune's events."""

    def __init__(self, document: Document, table: TrialTable, recorder: Recorder, scheduler: TrialScheduler) -> None:
        assert document.search is not None
        self.plan, search = build_plan(document), document.search
        tune.register_trainable("trial", FederatedTrial)
        self.proposals = Proposals(search, table, "trial", table.pack)
        self.packs = Packs(
            table, search.metric, self.proposals, scheduler, recorder, width=table.pack, concurrent=table.pack
        )
        self.directory = table.files.tune
        self.checkpoints = 0
        self.start()

    def start(self) -> None:
        """Starts a pack in a new process, as Tune does after the last pack has ended."""
        self.trial = Trial("pack", stub=True)
        self.restart()

    def restart(self) -> None:
        """Starts a new process for the pack, as Tune does after a crash."""
        self.process = open_pack(self.plan)
        assert self.process.step()[REPORTS_KEY] is None
        self.packs.greet(self.trial)
        self.assign()

    def assign(self) -> None:
        """Assigns trials to the process."""
        self.assigned = self.packs.fill(None, self.trial)
        self.process.assign(self.assigned)

    def step(self) -> Mapping[str, Any]:
        """Trains one step, records its reports, assigns the next trials, and saves a checkpoint if it is due."""
        result = self.process.step()
        self.packs.record(None, self.trial, result[REPORTS_KEY])
        self.assign()
        if result["should_checkpoint"]:
            self.checkpoints += 1
            folder = self.directory / self.trial.trial_id / f"checkpoint_{self.checkpoints:06d}"
            self.process.save_checkpoint(str(folder))
        return result

    def finish(self, interrupt: Callable[[int], None] = lambda number: None) -> None:
        """Trains to the end. ``interrupt`` is called after each step, with its number."""
        number = 0
        while self.assigned:
            self.step()
            number += 1
            interrupt(number)
        self.process.cleanup()


@contextmanager
def open_packs(document: Document, table: TrialTable, store: Store) -> Iterator[LocalPacks]:
    """Yields the packs of a search that is started, or resumed if its table has trials."""
    assert document.search is not None
    plan, scheduler = build_plan(document), build_scheduler(document.search, ROUNDS)
    trials = count_trials(document.search)
    with Recorder(table, store, plan, scheduler, trials, lambda status: None) as recorder:
        yield LocalPacks(document, table, recorder, scheduler)
