"""Python processes that start at once: they are forked from one that has imported torch, Ray, MLflow and the package.

A new interpreter takes a second of a core to import Ray, twice for a worker of Ray, and five more for torch and the
package. ``write_executables`` writes a ``python`` and a ``fednar`` that hand their words, environment and streams to a
server, which forks. What the forked process does, and which words, ``tests.support.forked_programs`` says. The process
that was started waits for it, ends as it does, and takes it with it. ``fork_workers`` gives that ``python`` to Ray.

The executables run this file without site-packages, so at the top only the standard library is imported.
"""

import fcntl
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

SERVER = "FEDNAR_TEST_WORKER_SERVER"
"""The environment variable with the address of the server. Without it, processes start as always."""
READ_ONCE = {"RAY_JOB_ID": "ffffffff", "RAY_RAYLET_PID": "1"}
"""What Ray reads from the environment when it is imported, and never again: for the process that imports it for all.

A worker of no job serves any (Ray starts its first workers so). A worker ends when the raylet with this number does;
here it ends with the process that the raylet started, which watches the raylet.
"""
WATCH_SECONDS = 0.5
PASSED_ON = (signal.SIGINT, signal.SIGTERM)
"""The signals that a program's process passes on to the forked one. A process of Ray ends by itself, with that one."""
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
PROGRAMS = ("fednar", "-c", "-m")
"""The first words of the other programs that are forked."""


class _SystemOfRay:
    """The module ``sys`` as the part of Ray sees it that starts processes: with another executable."""

    def __init__(self, executable: str) -> None:
        self.executable = executable

    def __getattr__(self, name: str) -> object:
        return getattr(sys, name)


def write_executables(folder: Path) -> None:
    """Writes the executables ``python`` and ``fednar``."""
    for name in ("python", "fednar"):
        path = folder / name
        run = f"runpy.run_path({__file__!r}, {{'NAME': {name!r}}}, run_name='__main__')"
        path.write_text(f"#!{sys.executable} -IS\nimport runpy\n{run}\n")
        path.chmod(0o700)


def get_executable(name: str = "python") -> str:
    """Returns the executable that forks, or that of this environment without a server."""
    folder = Path(os.environ[SERVER]).parent if SERVER in os.environ else Path(sys.executable).parent
    return str(folder / name)


def fork_workers() -> None:
    """Lets the processes of Ray that this process starts be forked, if ``SERVER`` is set."""
    import ray._private.services as services

    if SERVER in os.environ:
        services.sys = _SystemOfRay(get_executable())  # type: ignore[attr-defined]


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
    """Runs, in the forked process, the command that the client sends, and ends with its exit code."""
    from tests.support import forked_programs

    message, streams, _, _ = socket.recv_fds(client, 1 << 20, 3)
    while not message.endswith(b"\n"):
        message += client.recv(1 << 20)
    request = json.loads(message)
    os.setpgid(0, 0)  # a raylet ends the whole process group of a worker that has died
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    client.sendall(b"%d\n" % os.getpid())
    _die_with_peer(client)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    if not _is_program(request["words"]):
        return forked_programs.run_script_of_ray(*request["words"])
    code = forked_programs.run_program(*request["words"])
    client.sendall(b"%d\n" % code)
    os._exit(code)


def _die_with_peer(client: socket.socket) -> None:
    """Asks the kernel to kill this process when the one that was started ends."""
    fcntl.fcntl(client, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(client, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(client, fcntl.F_SETFL, fcntl.fcntl(client, fcntl.F_GETFL) | os.O_ASYNC)


def _ask_server(address: str, words: list[str]) -> None:
    """Runs a command in a process of the server, until it ends or the parent of this process does."""
    parent, program = os.getppid(), _is_program(words)
    request = {"words": words, "env": dict(os.environ), "cwd": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        message = json.dumps(request).encode() + b"\n"
        if program:
            signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
        sent = socket.send_fds(client, [message], [0, 1, 2])
        client.sendall(message[sent:])
        answers = client.makefile()
        forked = int(answers.readline())
        if program:
            _pass_signals_on(forked)
            _end_like(answers.readline())
        client.settimeout(WATCH_SECONDS)
        while os.getppid() == parent:
            try:
                client.recv(1)
                return
            except TimeoutError:
                continue


def _pass_signals_on(process: int) -> None:
    def pass_on(number: int, _: Any) -> None:
        os.kill(process, number)

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)


def _end_like(code: str) -> None:
    """Ends this process with an exit code, or without one as the forked process: killed."""
    if code:
        os._exit(int(code))
    os.kill(os.getpid(), signal.SIGKILL)


def _is_program(words: list[str]) -> bool:
    return bool(words) and words[0] in PROGRAMS


def _is_forked(words: list[str]) -> bool:
    """Returns whether a command is forked. The dashboard with all its parts is not: they are interpreters as well."""
    whole_dashboard = words[0].endswith(DASHBOARD) and "--disable-frontend" not in words
    return _is_program(words) or (words[0].endswith(SCRIPTS) and not whole_dashboard)


def _main(name: str) -> None:
    """Runs the executable with this name."""
    fednar = name == "fednar"
    words = ["fednar", *sys.argv[1:]] if fednar else [word for word in sys.argv[1:] if word != "-u"]
    if SERVER in os.environ and words and _is_forked(words):
        _ask_server(os.environ[SERVER], words)
    else:
        program = [str(Path(sys.executable).with_name("fednar"))] if fednar else [sys.executable]
        os.execv(program[0], [*program, *sys.argv[1:]])


if __name__ == "__main__":
    _main(globals()["NAME"])
