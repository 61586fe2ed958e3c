"""The caller's callbacks in a trial: each of its federations has its own."""

from collections.abc import Sequence

from fednar_ray.core.callbacks import CallbackList
from fednar_ray.core.reports import RoundRecord, RoundReport
from fednar_ray.experiments.callbacks import prepare_callbacks
from fednar_ray.experiments.given import Given
from fednar_ray.experiments.prepared import Prepared

TRIAL_SPLITS = ("validation",)  # a trial is not evaluated on the test set


class TrialCallbacks:
    """The callbacks of one federation, which are started when an instance is created.

    Args:
        prepared: What the federation trains.
        given: Has the callbacks.
        history: The rounds that were trained before, if the federation continues from a checkpoint.
    """

    def __init__(self, prepared: Prepared, given: Given, history: Sequence[RoundRecord]) -> None:
        self.reason: str | None = None  # why a callback has ended the trial; None as long as none has
        self._started = CallbackList()
        callbacks = given.build_callbacks()
        prepare_callbacks(prepared, callbacks, TRIAL_SPLITS)
        try:
            for callback in callbacks:
                self._started.start(callback)
                if history:
                    callback.on_resume(history)
        except BaseException as error:
            self.close(error)
            raise

    def on_round_end(self, report: RoundReport) -> None:
        """Calls the callbacks, and remembers why the first of them ended the trial."""
        reason = self._started.on_round_end(report)
        self.reason = self.reason or reason

    def close(self, error: BaseException | None = None) -> None:
        """Ends the callbacks; ``error`` is what ended the training, if it did not end normally."""
        started, self._started = self._started, CallbackList()
        started.__exit__(None if error is None else type(error), error, None)
