"""Finds and ends the processes that the chaos starts. All of them work in its folder, and most carry its mark."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

MARK = "RAY_TMPDIR"  # keeps Ray's files in our folder; child processes inherit it
ACTOR = "ray::TrainingActor"
PAUSE_SECONDS = 0.02


def find_processes(folder: Path) -> list[psutil.Process]:
    """Returns our processes that work in ``folder``; a shell that somebody opened there is not ours."""
    return [process for process in psutil.process_iter() if _is_ours(process, folder)]


def _is_ours(process: psutil.Process, folder: Path) -> bool:
    try:
        if process.pid == os.getpid() or not Path(process.cwd()).is_relative_to(folder):
            return False
        return process.name().startswith("ray::") or MARK in process.environ()  # Ray's titles overwrite environments
    except psutil.Error:
        return False


def end_all_in(folder: Path) -> None:
    """Kills what still works in ``folder``, and what it starts in the meantime."""
    while processes := find_processes(folder):
        kill(processes)


def kill(processes: list[psutil.Process]) -> None:
    """Sends SIGKILL to each, and waits for those that are our children."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=5)


def list_tree(pid: int) -> list[psutil.Process]:
    """Returns a process and its descendants, itself first; nothing if it has ended."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def list_actors(pid: int) -> list[psutil.Process]:
    """Returns the training actors among the descendants of a process."""
    return [process for process in list_tree(pid) if read_title(process).startswith(ACTOR)]


def read_title(process: psutil.Process) -> str:
    """Returns the title of a process: ``ray::TrainingActor.train``, or without a method when idle."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 180.0) -> None:
    """Waits until ``condition`` holds. Exits after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {seconds:g} s")
        time.sleep(PAUSE_SECONDS)
