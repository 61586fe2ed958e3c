"""Python processes of Ray that start at once: they are forked from one that has imported torch, Ray and the package.

Ray starts its Python processes, workers and agents, with ``sys.executable``. A new interpreter takes a second of a core
to import Ray, twice for a worker, and five more for torch and the package. ``fork_workers`` gives Ray another
executable. It hands its command, environment and streams to a server, which forks; the child runs Ray's own script.
The process that Ray has started waits for the child's end, and takes the child with it.

Ray runs this file without site-packages, so at the top only the standard library is imported.
"""

import fcntl
import json
import os
import signal
import socket
import sys
from pathlib import Path

SERVER = "FEDNAR_TEST_WORKER_SERVER"
"""The environment variable with the address of the server. Without it, processes of Ray start as always."""
READ_ONCE = {"RAY_JOB_ID": "ffffffff", "RAY_RAYLET_PID": "1"}
"""What Ray reads from the environment when it is imported, and never again: for the process that imports it for all.

A worker of no job serves any (Ray starts its first workers so). A worker ends when the raylet with this number does;
here it ends with the process that the raylet started, which watches the raylet.
"""
WATCH_SECONDS = 0.5
SETUP, WORKER, DASHBOARD = "setup_worker.py", "default_worker.py", "dashboard/dashboard.py"
SCRIPTS = (
    f"_private/workers/{SETUP}",
    f"_private/workers/{WORKER}",
    "_private/log_monitor.py",
    "_private/runtime_env/agent/main.py",
    "autoscaler/_private/monitor.py",
    "dashboard/agent.py",
    DASHBOARD,
)
"""The scripts of Ray that are forked. Others are started."""


class _SystemOfRay:
    """The module ``sys`` as the part of Ray sees it that starts processes: with another executable."""

    def __init__(self, executable: str) -> None:
        self.executable = executable

    def __getattr__(self, name: str) -> object:
        return getattr(sys, name)


def write_executable(path: Path) -> None:
    """Writes the executable that ``fork_workers`` gives to Ray."""
    path.write_text(f"#!{sys.executable} -IS\nimport runpy\nrunpy.run_path({__file__!r}, run_name='__main__')\n")
    path.chmod(0o700)


def fork_workers() -> None:
    """Lets the processes of Ray that this process starts be forked, if ``SERVER`` is set."""
    import ray._private.services as services

    if SERVER in os.environ:
        services.sys = _SystemOfRay(str(Path(os.environ[SERVER]).with_name("python")))  # type: ignore[attr-defined]


def serve(address: str) -> None:
    """Forks a process for each command that arrives, until the process that started this one ends."""
    from multiprocessing import connection, parent_process

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        while parent.sentinel not in connection.wait([parent.sentinel, listener]):  # type: ignore[list-item]
            client, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _become(client)
            client.close()


def _become(client: socket.socket) -> None:
    """Runs, in the forked process, the command that the client sends."""
    message, streams, _, _ = socket.recv_fds(client, 1 << 20, 3)
    while not message.endswith(b"\n"):
        message += client.recv(1 << 20)
    request = json.loads(message)
    os.setpgid(0, 0)  # a raylet ends the whole process group of a worker that has died
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _die_with_peer(client)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    _run(*request["words"])


def _die_with_peer(client: socket.socket) -> None:
    """Asks the kernel to kill this process when the one that Ray has started ends."""
    fcntl.fcntl(client, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(client, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(client, fcntl.F_SETFL, fcntl.fcntl(client, fcntl.F_GETFL) | os.O_ASYNC)


def _run(script: str, *words: str) -> None:
    import logging
    import runpy

    from fednar_ray.execution.private_ray import _forget_token

    if Path(script).name == SETUP:
        script, *words = _set_up_worker(list(words))  # type: ignore[assignment]
    elif Path(script).name != WORKER and "RAY_RAYLET_PID" in os.environ:
        os.environ["RAY_RAYLET_PID"] = str(os.getppid())  # an agent ends when this is no longer its parent
    _forget_token()
    logging.getLogger().handlers.clear()
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [str(Path(script).parent), *paths]
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


def _ask_server(address: str, words: list[str]) -> None:
    """Runs a command in a process of the server, until it ends or the parent of this process does."""
    parent = os.getppid()
    request = {"words": words, "env": dict(os.environ), "cwd": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        message = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(client, [message], [0, 1, 2])
        client.sendall(message[sent:])
        client.settimeout(WATCH_SECONDS)
        while os.getppid() == parent:
            try:
                client.recv(1)
                return
            except TimeoutError:
                continue


def _is_whole_dashboard(words: list[str]) -> bool:
    """Returns whether a command is the dashboard with all its parts, which are interpreters of their own."""
    return words[0].endswith(DASHBOARD) and "--disable-frontend" not in words


def _main() -> None:
    words = [word for word in sys.argv[1:] if word != "-u"]
    if SERVER in os.environ and words and words[0].endswith(SCRIPTS) and not _is_whole_dashboard(words):
        _ask_server(os.environ[SERVER], words)
    else:
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])


if __name__ == "__main__":
    _main()
