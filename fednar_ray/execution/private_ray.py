"""Keeps the files of a local Ray private to its user: its directory, its token, and logs of limited size.

Ray makes its session directories writable for everyone, writes a new token to ``~/.ray/auth_token`` so that everyone
can read it, and leaves its logs behind. A Ray that a session starts works in a directory that only its user can enter,
with a token that is only in the environment of its processes. The directory is removed when that Ray ends.
"""

import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from fednar_ray.core.errors import RayUnavailable

PREFIX = "fednar-"
LOCK = "in-use"
MAX_PATH_BYTES = 107  # of a socket
ADDED_PATH_BYTES = len("/12345678/r/session_2026-11-27_02-55-47_463414_12345678/sockets/plasma_store.1")
"""The length that this module and Ray add to the path of the directory for temporary files."""
LOG_VARIABLES = {"RAY_ROTATION_MAX_BYTES": "10000000", "RAY_ROTATION_BACKUP_COUNT": "1"}
"""An actor prints to a file of at most this size, and one older file is kept. By default the file grows forever."""
REMNANT_SECONDS = 3600.0  # a younger directory without a lock may be in the making, or a dying Ray recreated it
ENDING_SECONDS = 5.0  # for processes of Ray to end; they may write until then
MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


class PrivateRay:
    """The directory and the environment of a local Ray, from before it starts until ``close``.

    Environment variables that the user has set are not changed.

    Raises:
        RayUnavailable: No directory for temporary files is suitable.
    """

    def __init__(self) -> None:
        remove_abandoned()
        self._directory, self._lock = _make_directory()
        before = dict(os.environ)
        self._variables = {name: value for name, value in LOG_VARIABLES.items() if name not in before}
        if before.get(MODE, "token").lower() == "token" and not {TOKEN, TOKEN_PATH} & before.keys():
            self._variables[TOKEN] = secrets.token_hex(32)
        os.environ.update(self._variables)
        if MODE not in before:
            self._variables[MODE] = "token"  # Ray sets it, and never removes it
        _forget_token()

    @property
    def temp_dir(self) -> str:
        """The directory for Ray, which opens it to everyone. The directory around it stays closed."""
        return str(self._directory / "r")

    def list_processes(self) -> list[psutil.Process]:
        """Returns the processes of this Ray: their commands name the directory, or start as Ray's workers do."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                command = process.cmdline()
                if any(self.temp_dir in word or word.startswith("ray::") for word in command):
                    found.append(process)
        return found

    def close(self, processes: Sequence[psutil.Process] = ()) -> None:
        """Waits for Ray's processes to end, removes the directory and restores the environment.

        Args:
            processes: Processes of Ray that were asked to end. Those that do not end in time are killed.
        """
        _, alive = psutil.wait_procs(processes, timeout=ENDING_SECONDS)
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, timeout=ENDING_SECONDS)
        for name, value in self._variables.items():
            if os.environ.get(name) == value:
                del os.environ[name]
        self._variables = {}
        _forget_token()
        shutil.rmtree(self._directory, ignore_errors=True)
        with suppress(OSError):
            os.close(self._lock)
        self._lock = -1


def remove_abandoned() -> None:
    """Removes the directories of processes that were killed before they could do so."""
    for parent in dict.fromkeys(_list_temporary_directories()):
        with suppress(OSError):
            for directory in parent.glob(f"{PREFIX}????????"):
                _remove_unless_in_use(directory)


def _remove_unless_in_use(directory: Path) -> None:
    with suppress(OSError):
        status = directory.lstat()
        if status.st_uid != os.getuid() or directory.is_symlink():
            return
        try:
            lock = os.open(directory / LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            if time.time() - status.st_mtime > REMNANT_SECONDS and set(os.listdir(directory)) <= {"r"}:
                shutil.rmtree(directory, ignore_errors=True)
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        finally:
            os.close(lock)


def _make_directory() -> tuple[Path, int]:
    """Makes a directory that only this user can enter. Returns it with the descriptor of its lock."""
    problem = "there is no directory for temporary files"
    for parent in _list_temporary_directories():
        if len(os.fsencode(parent)) + len(PREFIX) + ADDED_PATH_BYTES > MAX_PATH_BYTES:
            problem = f"the path of {parent} is too long for Ray's sockets; set RAY_TMPDIR to a shorter one"
            continue
        try:
            directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))  # with mode 0700
            lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            problem = f"{parent} cannot be written: {error.strerror}"
            continue
        return directory, lock
    raise RayUnavailable(f"Ray does not start here: {problem}")


def _list_temporary_directories() -> Iterator[Path]:
    """Yields the directories for temporary files: that of the user's choice first, then those of the system."""
    if "RAY_TMPDIR" in os.environ:
        yield Path(os.environ["RAY_TMPDIR"]).absolute()
    yield Path(tempfile.gettempdir()).absolute()
    yield from map(Path, ("/tmp", "/var/tmp", "/dev/shm"))  # noqa: S108 - mkdtemp makes a private directory inside


def _forget_token() -> None:
    """Makes Ray read its mode and token again. Otherwise a process keeps those of its first cluster."""
    with suppress(ImportError, AttributeError):
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        AuthenticationTokenLoader.instance().reset_cache()
        Config.initialize("")
