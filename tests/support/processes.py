"""Processes that start at once: they are forked from one that has imported torch, Ray, MLflow and the package.

A new interpreter takes seconds to import them. A forked process has its own environment, working directory, output and
signals, like one that a shell starts. What an interpreter does before ``main`` is tested with ``subprocess``.
"""

import atexit
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from tests.support import forked_programs, forked_workers
from tests.support.servers import PATIENCE_SECONDS

FEDNAR = str(Path(sys.executable).parent / "fednar")
ROOT = Path(__file__).parents[2]


@cache
def start_worker_server() -> str:
    """Starts the server from which the workers of Ray are forked, once, and returns its address."""
    folder = tempfile.mkdtemp(prefix="workers-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = str(Path(folder, "socket"))
    forked_workers.write_executables(Path(folder))
    _start_server().Process(target=forked_workers.serve, args=(address,), daemon=True).start()
    return address


@cache
def _start_server() -> ForkServerContext:
    """Starts this process's fork server, once."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.support.preloaded"])
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)  # for the import of the module to preload
        for name, value in forked_workers.READ_ONCE.items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    atexit.register(_end_server)
    return context


class ForkedProcess:
    """A function that runs in a forked process, with those methods of ``subprocess.Popen`` that tests use."""

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        start_new_session: bool = False,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="forked-")
        self._out, self._err = Path(self._folder.name, "out"), Path(self._folder.name, "err")
        place = (str(Path.cwd() if cwd is None else cwd), dict(os.environ if env is None else env))
        arguments = (function, arguments, *place, str(self._out), str(self._err), start_new_session)
        self._process = _start_server().Process(target=_call, args=arguments, daemon=False)
        self._process.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.kill()
        self.close()

    def close(self) -> None:
        """Waits for the end, and removes the output."""
        self._process.join()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the number of the signal that ended the process; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def read_output(self) -> str:
        """Returns what was printed so far."""
        return self._out.read_text(encoding="utf-8") if self._out.exists() else ""

    def read_errors(self) -> str:
        """Returns what was written to the standard error so far."""
        return self._err.read_text(encoding="utf-8") if self._err.exists() else ""

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = PATIENCE_SECONDS) -> tuple[str, str]:
        """Waits for the end, and returns the output and the errors."""
        self._process.join(timeout)
        assert self.returncode is not None, f"still running after {timeout} s: {self.read_errors()}"
        return self.read_output(), self.read_errors()


def _end_server() -> None:
    """Ends the server without waiting for it: its own way to end waits for all who hold its pipe."""
    pid = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if pid is not None:
        os.kill(pid, signal.SIGKILL)


def _call(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    cwd: str,
    env: Mapping[str, str],
    out: str,
    err: str,
    start_new_session: bool,
) -> None:
    """Calls a function in the forked process, with the surroundings that were asked for."""
    if start_new_session:
        os.setsid()
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), number)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", line_buffering=True)  # type: ignore[union-attr]
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    forked_programs.forget_parent()
    forked_workers.fork_workers()
    try:
        function(*arguments)
    finally:
        atexit._run_exitfuncs()


def _run_command(words: tuple[str, ...]) -> None:
    from fednar_ray.cli.main import main

    sys.executable = forked_workers.get_executable()  # of the processes that the command starts
    sys.argv = [FEDNAR, *words]
    main()


def run_command_of_ray(words: tuple[str, ...]) -> None:
    """Runs ``ray`` with these words, in a forked process."""
    from ray.scripts.scripts import main

    sys.argv = ["ray", *words]
    main()


def _run_script(path: str, words: tuple[str, ...], paths: tuple[str, ...]) -> None:
    sys.argv = [path, *words]
    sys.path[:0] = [str(Path(path).parent), *paths]
    runpy.run_path(path, run_name="__main__")


def run_script(path: Path, *words: object, cwd: Path, paths: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Runs a Python file like a command. ``paths`` are searched for its imports, after its own folder."""
    return finish(ForkedProcess(_run_script, str(path), tuple(map(str, words)), paths, cwd=cwd))


def start_fednar(
    *words: str,
    cwd: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    start_new_session: bool = False,
) -> ForkedProcess:
    """Starts a ``fednar`` command."""
    return ForkedProcess(_run_command, words, cwd=cwd, env=env, start_new_session=start_new_session)


def finish(process: ForkedProcess) -> subprocess.CompletedProcess[str]:
    """Waits for the end of a process, as ``subprocess.run`` does."""
    with process:
        out, err = process.communicate()
        assert process.returncode is not None
        return subprocess.CompletedProcess(process.pid, process.returncode, out, err)
