"""What Tune sees of a packed search: packs that are proposed, that report, and that crash."""

from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from fednar_ray.tuning.pack import REPORTS_KEY
from fednar_ray.tuning.packs import Packs
from fednar_ray.tuning.recorder import Recorder


class PackSearcher(Searcher):  # type: ignore[misc]
    """Proposes packs as long as trials are left. A pack has no settings: its trials have them."""

    def __init__(self, packs: Packs) -> None:
        super().__init__()
        self._packs = packs
        self._running: set[str] = set()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Proposes a pack, or none for now; the search is over when no pack runs that might give trials back."""
        if self._packs.has_trials_left:
            self._running.add(trial_id)
            return {}
        return None if self._running else str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Takes notice of the end of a pack."""
        self._running.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Saves nothing: a resumed search reads the trial table."""

    def restore(self, checkpoint_path: str) -> None:
        """Restores nothing."""


class PackScheduler(FIFOScheduler):  # type: ignore[misc]
    """Passes the reports of packs on to the trials' own scheduler, and assigns trials to packs.

    ``assign`` is sent to a pack's process before Tune sends the next ``train``: Ray keeps the order of one caller's
    calls.
    """

    def __init__(self, packs: Packs) -> None:
        super().__init__()
        self._packs = packs

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Records a pack's report, and stops the pack once it has no trials and there are none for it."""
        if result[REPORTS_KEY] is None:
            self._packs.greet(trial)
        else:
            self._packs.record(tune_controller, trial, result[REPORTS_KEY])
        assigned = self._packs.fill(tune_controller, trial)
        if not assigned:
            return str(TrialScheduler.STOP)
        trial.temporary_state.ray_actor.assign.remote(assigned)
        return str(TrialScheduler.CONTINUE)


class PackCallback(tune.Callback):  # type: ignore[misc]
    """Passes on the events of Tune that do not belong to a report."""

    def __init__(self, packs: Packs, recorder: Recorder) -> None:
        self._packs, self._recorder = packs, recorder

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Checks the time limit in each iteration of Tune's loop."""
        self._recorder.on_step_begin(iteration, trials)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Takes notice that a pack has crashed more often than ``search.retries`` allows."""
        self._packs.lose(trial)
