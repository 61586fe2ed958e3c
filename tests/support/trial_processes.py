"""Kills the process of a trial, or of a pack of trials, in the middle of a search."""

import os
import signal

import psutil

from fednar_ray.tuning.search_status import SearchStatus


class KillOnce:
    """Shows the state of a search, and kills one of its processes when a trial has trained two rounds.

    Args:
        trainable: The name of Tune's trainable, which is part of the process's title.
    """

    def __init__(self, trainable: str) -> None:
        self.killed: list[int] = []
        self._title = f"ray::{trainable}"

    def __call__(self, status: SearchStatus) -> None:
        if not self.killed and any(entry.rounds >= 2 for entry in status.running):
            processes = psutil.Process().children(recursive=True)
            self.killed = [each.pid for each in processes if _read_title(each).startswith(self._title)][:1]
            for pid in self.killed:
                os.kill(pid, signal.SIGKILL)


def _read_title(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""
