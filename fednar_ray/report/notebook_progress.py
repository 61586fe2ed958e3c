"""Shows the progress of calls from Python: in a notebook as HTML, elsewhere on the terminal if that was asked for."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Literal

from rich.console import Console

from fednar_ray.core.stages import open_lines
from fednar_ray.report.progress import PIPE_COLUMNS, ShowRound, format_test_metric, show_progress

UPDATE_SECONDS = 0.2  # between two changes of the display

Place = Literal["nowhere", "notebook", "terminal"]


def choose_place(progress: bool | None) -> Place:
    """Returns where progress is shown: in a notebook or IPython by default, and elsewhere only if asked for."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if progress is False or (progress is None and shell is None):
        return "nowhere"
    return "notebook" if hasattr(shell, "kernel") else "terminal"


def build_progress_console() -> Console:
    """Builds the console for progress: the standard error, so that a program's own output stays as it is."""
    return Console(stderr=True, width=None if sys.stderr.isatty() else PIPE_COLUMNS, highlight=False)


@contextmanager
def open_progress(progress: bool | None, rounds: int, every: int | None = None) -> Iterator[ShowRound]:
    """Yields a function that shows finished rounds.

    Args:
        progress: Whether to show them. None: in a notebook and in IPython.
        rounds: Number of rounds in all.
        every: As in ``show_progress``.
    """
    place = choose_place(progress)
    if place == "terminal":
        with show_progress(build_progress_console(), rounds, every) as show:
            yield show
        return
    if place == "nowhere":
        yield lambda done, label, metrics, primary: None
        return
    with NotebookDisplay() as display:
        last = ""

        def show_bar(done: int, label: str, metrics: Mapping[str, float], primary: str) -> None:
            nonlocal last
            last = format_test_metric(metrics, primary) or last
            text = "  ".join(part for part in (f"round {done}/{rounds}", label, last) if part)
            display.show(Bar(done=done, of=rounds, text=text))

        with open_lines(lambda line: display.announce(line, rounds), repeat=False):
            yield show_bar


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar with a line of text, as a notebook shows it."""

    done: int
    of: int
    text: str

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        """Returns the bar; a full one is only its text."""
        bar = "" if self.done >= self.of else f'<progress value="{self.done}" max="{self.of}"></progress> '
        return f"<div>{bar}{escape(self.text)}</div>"


class NotebookDisplay:
    """One output of a notebook's cell, which changes a few times per second at most."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown_at = -float("inf")
        self._last: Bar | None = None

    def announce(self, stage: str, of: int) -> None:
        """Shows the line of a stage at once, until the next bar."""
        done = 0 if self._last is None else self._last.done
        self._update(Bar(done=done, of=of, text=stage))
        self._shown_at = -float("inf")  # the next bar need not wait

    def show(self, bar: Bar) -> None:
        """Shows a bar in the place of what was shown before, now or with a later call."""
        self._last = bar
        if time.monotonic() - self._shown_at >= UPDATE_SECONDS:
            self._update(bar)

    def _update(self, bar: Bar) -> None:
        from IPython.display import display

        self._shown_at = time.monotonic()
        if self._handle is None:
            self._handle = display(bar, display_id=True)
        else:
            self._handle.update(bar)

    def __enter__(self) -> "NotebookDisplay":
        return self

    def __exit__(self, *_: object) -> None:
        """Leaves the text of the last bar, also of a run that ended early."""
        if self._last is not None:
            self._update(replace(self._last, done=self._last.of))
