"""Callbacks, which observe a run from before its first round until after its last one."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from fednar_ray.core.reports import RoundRecord, RoundReport


class StopRun(Exception):
    """Raised by a callback in ``on_round_end`` to end the run after this round.

    The run ends as after its last round: it is saved and recorded as finished, with the reason.

    Args:
        reason: Why the run ends, as a clause: "validation accuracy is above 0.9".
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class RunInfo:
    """What a callback is told about a run before anything is started.

    Attributes:
        name: The experiment's name.
        rounds: The number of rounds, T.
        primary: The metric that counts, without its split, such as ``accuracy``.
        metrics: The metrics of held-out and of clients' examples that evaluated rounds report.
    """

    name: str
    rounds: int
    primary: str
    metrics: tuple[str, ...]


class RoundCallback:
    """Observes a run. Each method does nothing unless a subclass overrides it.

    ``fr.run(…, callbacks=[…])`` takes instances of subclasses.  A callback can end the run by raising ``StopRun``.

    A callback owns what it opens: ``on_run_start`` opens it, and ``on_run_end`` or ``on_error`` closes it.  Exactly one
    of these two is called for every callback whose ``on_run_start`` returned.  A callback is also a context manager:
    entering it starts it, and leaving it ends it.

    Examples:
        >>> class PrintLoss(RoundCallback):
        ...     def on_round_end(self, report):
        ...         print(report.round_index, report.metrics["train_loss"])
    """

    def on_prepare(self, run: RunInfo) -> None:
        """Called before anything is started. Raise BadInput here if the callback does not fit the run."""

    def on_resume(self, history: Sequence[RoundRecord]) -> None:
        """Called after ``on_run_start`` of a resumed run, with the rounds that were trained before."""

    def on_run_start(self) -> None:
        """Called once, before the first round."""

    def on_round_end(self, report: RoundReport) -> None:
        """Called after each round. An exception ends the run: StopRun as a finished one, others as a failed one."""

    def on_run_end(self) -> None:
        """Called once, after the last round of a run that trained all its rounds or was ended by StopRun."""

    def on_error(self, error: BaseException) -> None:
        """Called once, instead of ``on_run_end``, if an exception ended the run.

        ``error`` may also be KeyboardInterrupt, SystemExit or GeneratorExit.  It propagates further in any case.
        """

    def __enter__(self) -> Self:
        self.on_run_start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.on_run_end()
        else:
            self.on_error(error)


Callback = TypeVar("Callback", bound=RoundCallback)


class CallbackList:
    """The callbacks of one run; a context manager that ends them.

    Rounds reach the callbacks in the order in which these were started.  They end in the reverse order, so that a
    callback may use those that were started before it until its own end.  An exception that a callback raises at its
    end is the error of those that end after it.
    """

    def __init__(self) -> None:
        self._callbacks: list[RoundCallback] = []
        self._started = ExitStack()

    def start(self, callback: Callback) -> Callback:
        """Starts a callback, appends it to the list, and returns it."""
        self._started.enter_context(callback)
        self._callbacks.append(callback)
        return callback

    def on_round_end(self, report: RoundReport) -> str | None:
        """Calls every callback, in the order of the list, also after one that stops the run.

        Returns:
            Why the run ends with this round; None if it continues.
        """
        reasons = []
        for callback in self._callbacks:
            try:
                callback.on_round_end(report)
            except StopRun as stop:
                reasons.append(stop.reason)
        return "; ".join(reasons) or None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._started.__exit__(kind, error, trace)
