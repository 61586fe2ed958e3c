"""What a local Ray leaves on this machine, kept to its user: a directory, a token, and logs of bounded size.

Ray makes its session directories writable for everyone, writes a new token to ``~/.ray/auth_token`` so that everyone
can read it, and leaves its logs behind.  A Ray that we start works within a directory that only its user can enter,
with a token that is in the environment of its processes alone, and the directory is removed with it.
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
PATH_BYTES = 107  # the longest path of a socket
BELOW = len("/12345678/r/session_2026-11-27_02-55-47_463414_12345678/sockets/plasma_store.1")
"""What Ray adds to the directory for temporary files, with what we add."""
LOGS = {"RAY_ROTATION_MAX_BYTES": "10000000", "RAY_ROTATION_BACKUP_COUNT": "1"}
"""An actor's prints go to a file of this size and the one before it; by default Ray lets that file grow."""
REMNANT_SECONDS = 3600.0  # a directory without a lock is being made, or a dying process of Ray made it again
ENDING_SECONDS = 5.0  # for processes of Ray that were told to end; they may write until then
MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


class PrivateRay:
    """The directory and the environment of a local Ray, from before it starts until ``close``.

    What the user has set in the environment is left as it is.  Raises RayUnavailable where there is no room.
    """

    def __init__(self) -> None:
        remove_abandoned()
        self._directory, self._lock = _make_directory()
        before = dict(os.environ)
        self._set = {name: value for name, value in LOGS.items() if name not in before}
        if before.get(MODE, "token").lower() == "token" and not {TOKEN, TOKEN_PATH} & before.keys():
            self._set[TOKEN] = secrets.token_hex(32)
        os.environ.update(self._set)
        if MODE not in before:
            self._set[MODE] = "token"  # Ray sets it, for good
        _forget_token()

    @property
    def temp_dir(self) -> str:
        """For Ray, which opens it to everyone; the directory around it stays closed."""
        return str(self._directory / "r")

    def processes(self) -> list[psutil.Process]:
        """The processes of this Ray, told by their command: it names the directory, or is what Ray calls it."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                command = process.cmdline()
                if any(self.temp_dir in word or word.startswith("ray::") for word in command):
                    found.append(process)
        return found

    def close(self, processes: Sequence[psutil.Process] = ()) -> None:
        """Remove the directory, and restore the environment, once the ``processes`` of Ray, told to end, have done so.

        Those that do not end in time are killed.
        """
        _, alive = psutil.wait_procs(processes, timeout=ENDING_SECONDS)
        for process in alive:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, timeout=ENDING_SECONDS)
        for name, value in self._set.items():
            if os.environ.get(name) == value:
                del os.environ[name]
        self._set = {}
        _forget_token()
        shutil.rmtree(self._directory, ignore_errors=True)
        with suppress(OSError):
            os.close(self._lock)
        self._lock = -1


def remove_abandoned() -> None:
    """Remove the directories whose processes were killed before they could do so."""
    for place in dict.fromkeys(_places()):
        with suppress(OSError):
            for directory in place.glob(f"{PREFIX}????????"):
                _remove_unless_in_use(directory)


def _remove_unless_in_use(directory: Path) -> None:
    with suppress(OSError):
        about = directory.lstat()
        if about.st_uid != os.getuid() or directory.is_symlink():
            return
        try:
            lock = os.open(directory / LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            if time.time() - about.st_mtime > REMNANT_SECONDS and set(os.listdir(directory)) <= {"r"}:
                shutil.rmtree(directory, ignore_errors=True)
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
        finally:
            os.close(lock)


def _make_directory() -> tuple[Path, int]:
    """A new directory that is ours alone, and the descriptor whose lock says that it is in use."""
    refused = "there is no directory for temporary files"
    for place in _places():
        if len(os.fsencode(place)) + len(PREFIX) + BELOW > PATH_BYTES:
            refused = f"the path of {place} is too long for Ray's sockets; set RAY_TMPDIR to a shorter one"
            continue
        try:
            directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))  # with mode 0700
            lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            refused = f"{place} cannot be written: {error.strerror}"
            continue
        return directory, lock
    raise RayUnavailable(f"Ray does not start here: {refused}")


def _places() -> Iterator[Path]:
    """Where temporary files may go: as the user says, then as the system does."""
    if "RAY_TMPDIR" in os.environ:
        yield Path(os.environ["RAY_TMPDIR"]).absolute()
    yield Path(tempfile.gettempdir()).absolute()
    yield from map(Path, ("/tmp", "/var/tmp", "/dev/shm"))  # noqa: S108 - within, what mkdtemp makes


def _forget_token() -> None:
    """Have Ray read its mode and its token anew: it keeps those of the first cluster for the whole process."""
    with suppress(ImportError, AttributeError):
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        AuthenticationTokenLoader.instance().reset_cache()
        Config.initialize("")
