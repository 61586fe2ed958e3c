"""Workers of Ray that start at once: they are forked from a process that has imported torch, Ray and the package.

A raylet starts a worker as ``python setup_worker.py default_worker.py …``, which imports Ray twice, and then torch and
the package: six seconds of a core. ``fork_workers`` puts this file in the place of ``setup_worker.py``. Run by a raylet,
it hands the command, the environment and the output to a server, which forks; the child runs Ray's own
``default_worker.py`` with them. What the raylet has started waits for the child's end, and takes the child with it.
"""

import fcntl
import json
import os
import signal
import socket
import sys

SERVER = "FEDNAR_TEST_WORKER_SERVER"
"""The environment variable with the address of the server. Without it, a worker starts as always."""
READ_ONCE = {"RAY_JOB_ID": "ffffffff", "RAY_RAYLET_PID": "1"}
"""What Ray reads from the environment when it is imported, and never again: for the process that imports it for all.

A worker of no job serves any (Ray starts its first workers so). A worker ends when the raylet with this number does;
here it ends with the process that the raylet started, which watches the raylet.
"""
WATCH_SECONDS = 0.5


def fork_workers() -> None:
    """Makes the raylets that this process starts fork their workers, where ``SERVER`` is set."""
    import ray._private.ray_constants as constants

    constants.SETUP_WORKER_FILENAME = __file__  # joined to Ray's folder, of which an absolute path leaves nothing


def serve(address: str) -> None:
    """Forks a worker for each command that arrives, until the process that started this one ends."""
    from multiprocessing import connection, parent_process

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        while parent.sentinel not in connection.wait([parent.sentinel, listener]):
            client, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _become_worker(client)
            client.close()


def _become_worker(client: socket.socket) -> None:
    message, streams, _, _ = socket.recv_fds(client, 1 << 20, 3)
    while not message.endswith(b"\n"):
        message += client.recv(1 << 20)
    request = json.loads(message)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _die_with_peer(client)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    _run_worker(request["words"])


def _die_with_peer(client: socket.socket) -> None:
    """Asks the kernel to kill this process when the one that the raylet has started ends."""
    fcntl.fcntl(client, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(client, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(client, fcntl.F_SETFL, fcntl.fcntl(client, fcntl.F_GETFL) | os.O_ASYNC)


def _run_worker(words: list[str]) -> None:
    import logging
    import runpy

    import ray._private.workers.setup_worker as setup
    from ray._private.runtime_env.context import RuntimeEnvContext, update_envs

    from fednar_ray.execution.private_ray import _forget_token

    known, words = setup.parser.parse_known_args(words)
    update_envs(RuntimeEnvContext.deserialize(known.serialized_runtime_env_context or "{}").env_vars)
    _forget_token()
    logging.getLogger().handlers.clear()
    paths = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    sys.path[:0] = [os.path.dirname(words[0]), *paths]
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


def _ask_server(address: str, words: list[str]) -> None:
    """Runs a worker's command in a process of the server, and waits for its end."""
    raylet = os.getppid()
    request = {"words": words, "env": dict(os.environ), "cwd": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)
        message = json.dumps(request).encode() + b"\n"
        sent = socket.send_fds(client, [message], [0, 1, 2])
        client.sendall(message[sent:])
        client.settimeout(WATCH_SECONDS)
        while os.getppid() == raylet:
            try:
                client.recv(1)
                return
            except TimeoutError:
                continue


if __name__ == "__main__":
    if SERVER in os.environ:
        _ask_server(os.environ[SERVER], sys.argv[1:])
    else:
        import ray._private.workers.setup_worker as original

        os.execv(sys.executable, [sys.executable, original.__file__, *sys.argv[1:]])
