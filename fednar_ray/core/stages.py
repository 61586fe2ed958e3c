"""Says what a long call is doing: one line per stage, and one per minute while nothing else is printed.

A command opens the lines, and everything that takes long announces itself. Without open lines, as in a call from
Python, nothing is printed.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE_SECONDS = 60.0  # without a line, until one is repeated
CHECK_SECONDS = 1.0

Write = Callable[[str], None]
"""Prints one line."""


class ProgressLines:
    """Lines of progress, of which there is at least one per minute if ``beat`` is called often enough.

    Args:
        write: Prints the line of a stage.
        clock: Returns the time in seconds.
    """

    def __init__(self, write: Write, clock: Callable[[], float] = time.monotonic) -> None:
        self._write_stage, self._clock = write, clock
        self._lock = threading.RLock()
        self._said: set[str] = set()
        self._newest: tuple[str, Write, float] | None = None  # the line, and when it was new
        self._is_written = False  # whether the newest line was written
        self._written_at = clock()

    def announce(self, stage: str) -> None:
        """Writes the line of a stage, each only once: the runs of a comparison have the same stages."""
        self.show(f"{stage} …", self._write_stage, now=stage not in self._said)
        self._said.add(stage)

    def update(self, line: str) -> None:
        """Takes a new line of a stage."""
        self.show(line, self._write_stage, now=False)

    def show(self, line: str, write: Write, *, now: bool) -> None:
        """Takes a new line, and writes it if that is wanted, or if nothing was written for a minute."""
        with self._lock:
            self._newest, self._is_written = (line, write, self._clock()), False
            if now or self._is_overdue():
                self._write(line, write)

    def rest(self) -> None:
        """Ends the stage: until the next one, nothing goes on that should be repeated."""
        with self._lock:
            self._newest = None

    def beat(self) -> None:
        """Writes the newest line if nothing was written for a minute; if it was written, with the time since then."""
        with self._lock:
            if self._newest is None or not self._is_overdue():
                return
            line, write, since = self._newest
            minutes = round((self._clock() - since) / 60)
            self._write(f"still at work, {minutes} min after: {line}" if self._is_written else line, write)

    def _is_overdue(self) -> bool:
        return self._clock() - self._written_at >= PATIENCE_SECONDS

    def _write(self, line: str, write: Write) -> None:
        self._is_written, self._written_at = True, self._clock()
        write(line)


_open: ProgressLines | None = None


def announce(stage: str) -> None:
    """Says what begins now, such as ``starting Ray``; prints nothing if nobody has opened lines."""
    if _open is not None:
        _open.announce(stage)


def update(line: str) -> None:
    """Says how far the stage has come, in a line that is only written if nothing else is for a minute."""
    if _open is not None:
        _open.update(line)


def rest() -> None:
    """Says that the stage has ended and nothing goes on but waiting for the user."""
    if _open is not None:
        _open.rest()


@contextmanager
def open_lines(write: Write, *, repeat: bool) -> Iterator[ProgressLines]:
    """Opens the lines of this process until the block ends. Within open lines, these are yielded again.

    Args:
        write: Prints the line of a stage.
        repeat: Whether there is a line per minute at least. A terminal has bars instead.
    """
    global _open
    if _open is not None:
        yield _open
        return
    lines, ended = ProgressLines(write), threading.Event()
    _open = lines

    def beat_until_the_end() -> None:
        while not ended.wait(CHECK_SECONDS):
            lines.beat()

    if repeat:
        threading.Thread(target=beat_until_the_end, name="progress", daemon=True).start()
    try:
        yield lines
    finally:
        ended.set()
        _open = None
