"""What the forked processes of ``tests.support.forked_workers`` run: scripts of Ray, ``fednar``, modules and code."""

import atexit
import logging
import os
import runpy
import sys
import tempfile
import threading
import traceback
from pathlib import Path

from tests.support.forked_workers import SERVER, SETUP, WORKER, fork_workers, get_executable

PROCESSES, IDS_OF_EACH = 512, 8
"""Processes with successive numbers that draw different ids, and how many ids each draws before it meets the next."""


def run_script_of_ray(script: str, *words: str) -> None:
    """Runs a worker of Ray or an agent."""
    if Path(script).name == SETUP:
        script, *words = _set_up_worker(list(words))  # type: ignore[assignment]
    elif Path(script).name != WORKER and "RAY_RAYLET_PID" in os.environ:
        os.environ["RAY_RAYLET_PID"] = str(os.getppid())  # an agent ends when this is no longer its parent
    forget_parent()
    _search_modules(str(Path(script).parent))
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")


def _set_up_worker(words: list[str]) -> list[str]:
    """Enters the worker's runtime environment, as ``setup_worker.py`` does, and returns its command."""
    import shlex

    import ray._private.workers.setup_worker as setup
    from ray._private.runtime_env.context import RuntimeEnvContext, update_envs

    known, words = setup.parser.parse_known_args(words)
    context = RuntimeEnvContext.deserialize(known.serialized_runtime_env_context or "{}")
    update_envs(context.env_vars)
    match context.command_prefix:
        case []:
            pass
        case ["cd", folder, "&&"]:  # the environment has a working_dir
            os.chdir(*shlex.split(folder))
        case other:
            raise NotImplementedError(f"{other} before a forked worker; start it without {SERVER}")
    return words


def run_program(kind: str, *words: str) -> int:
    """Runs ``fednar``, a module (``-m``) or code (``-c``) like a new interpreter, and returns the exit code."""
    _open_streams()
    forget_parent()
    fork_workers()
    sys.executable = get_executable()  # of the processes that the program starts
    try:
        code = _run(kind, list(words))
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _open_streams() -> None:
    """Opens the standard streams that the program was given, which are not those of the server."""
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115 - they stay open
        for number, mode in enumerate("rww")
    )


def forget_parent() -> None:
    """Forgets what a forked process inherits and an interpreter that starts does not have."""
    from fednar_ray.execution.private_ray import _forget_token

    logging.getLogger().handlers.clear()  # a command sets up its own
    _forget_token()  # of a Ray that this process's parent has read
    tempfile.tempdir = None  # so that TMPDIR is read
    sys.modules.pop("mlflow.server", None)  # it reads the environment when it is imported
    _skip_ids_of_others()


def _skip_ids_of_others() -> None:
    """Moves on in Ray's sequence of random ids, of which each forked process inherits the same place.

    A worker's first random id is that of an object with which it tries the object store. Of two workers that would try
    the same one at once, Ray aborts one, and waits for it forever.
    """
    from ray import ObjectID

    for _ in range(os.getpid() % PROCESSES * IDS_OF_EACH):
        ObjectID.from_random()


def _search_modules(*first: str) -> None:
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [*first, *paths]


def _run(kind: str, words: list[str]) -> int:
    """Runs a program and returns its exit code, as the interpreter finds it."""
    try:
        match kind:
            case "fednar":
                from fednar_ray.cli.main import main

                _search_modules()
                sys.argv = ["fednar", *words]
                main()
            case "-m":
                _search_modules(os.getcwd())
                sys.argv = words
                runpy.run_module(words[0], run_name="__main__", alter_sys=True)
            case "-c":
                _search_modules("")
                sys.argv = ["-c", *words[1:]]
                exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 - as the test wrote it
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter prints it
        traceback.print_exc()
        return 1
    return 0
