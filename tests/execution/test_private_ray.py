"""A local Ray leaves no files behind, and no other user of the machine can access it."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fednar_ray.core.errors import RayUnavailable
from fednar_ray.execution import private_ray
from fednar_ray.execution.private_ray import PrivateRay, remove_abandoned
from tests.support.forked_workers import get_executable
from tests.support.servers import PATIENCE_SECONDS


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Returns the only directory for temporary files; its path is short enough for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.setattr(private_ray, "_list_temporary_directories", lambda: iter([folder]))
    for name in (private_ray.MODE, private_ray.TOKEN, private_ray.TOKEN_PATH, *private_ray.LOG_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    yield folder
    monkeypatch.undo()
    private_ray._forget_token()  # the suite's own Ray has another
    shutil.rmtree(folder)


def read_mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_directory_is_private_and_is_removed_with_ray(place: Path) -> None:
    before = dict(os.environ)
    private = PrivateRay()
    directory = Path(private.temp_dir).parent
    assert directory.parent == place
    assert read_mode(directory) == 0o700
    assert read_mode(directory / "in-use") == 0o600
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64
    assert int(os.environ["RAY_ROTATION_MAX_BYTES"]) <= 10**7
    os.environ["RAY_AUTH_MODE"] = "token"  # as Ray does
    remove_abandoned()
    assert directory.exists()
    private.close()
    private.close()
    assert not list(place.iterdir())
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    "variables",
    [
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_TOKEN": "mine"},
        {"RAY_AUTH_TOKEN_PATH": "/a", "RAY_AUTH_MODE": "token"},
    ],
)
def test_variables_set_by_the_user_are_kept(
    variables: dict[str, str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**variables, "RAY_ROTATION_MAX_BYTES": "5"}.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    private = PrivateRay()
    assert {name: os.environ.get(name) for name in before} == before
    assert os.environ.get("RAY_AUTH_TOKEN") == variables.get("RAY_AUTH_TOKEN")
    private.close()
    assert dict(os.environ) == before


def test_each_local_ray_has_its_own_token(place: Path) -> None:
    tokens = []
    for _ in range(2):
        private = PrivateRay()
        tokens.append(os.environ["RAY_AUTH_TOKEN"])
        private.close()
    assert tokens[0] != tokens[1]


@pytest.mark.usefixtures("processes")
def test_only_the_directory_of_a_killed_process_is_removed(place: Path, processes: None) -> None:
    code = (
        "import os, signal; from pathlib import Path; from fednar_ray.execution import private_ray\n"
        f"private_ray._list_temporary_directories = lambda: iter([Path({str(place)!r})])\n"
        "os.makedirs(private_ray.PrivateRay().temp_dir + '/session_1/logs'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([get_executable(), "-c", code], check=False, timeout=PATIENCE_SECONDS)
    assert done.returncode == -signal.SIGKILL
    (left,) = place.iterdir()
    others = [place / "fednar-12345678", place / "fednar-1234.lock", place / "other"]
    for other in others:
        other.mkdir()  # the first has no lock, so its owner is unknown
    linked = place / "fednar-abcdefgh"
    linked.symlink_to(left)
    private = PrivateRay()
    assert not left.exists()
    assert all(other.exists() for other in others)
    assert linked.is_symlink()
    private.close()


def test_a_directory_that_a_dying_process_recreated_is_removed_later(place: Path) -> None:
    again, strange, fresh = (place / f"fednar-{name * 8}" for name in "abc")
    for folder in (again, strange, fresh):
        (folder / "r" / "session_1").mkdir(parents=True)
    (strange / "mine.txt").touch()
    for folder in (again, strange):
        os.utime(folder, (1e9, 1e9))
    remove_abandoned()
    assert sorted(place.iterdir()) == [strange, fresh]


def test_a_path_that_is_too_long_for_sockets_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(private_ray, "_list_temporary_directories", lambda: iter([long]))
    with pytest.raises(RayUnavailable, match="too long for Ray's sockets; set RAY_TMPDIR"):
        PrivateRay()
    monkeypatch.undo()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    private = PrivateRay()
    assert len(private.temp_dir) < 40
    private.close()


SESSION = """
import glob, os, stat, sys
import ray
import fednar_ray as fr

with fr.RaySession() as session:
    session.connect()
    (directory,) = glob.glob(sys.argv[1] + "/fednar-*")
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    prints = ray.remote(lambda: [print("x" * 1000) for _ in range(50_000)] and None)
    ray.get(prints.remote())
    print(sum(os.path.getsize(file) for file in glob.glob(directory + "/r/session_2*/logs/worker*")))
assert not os.path.exists(directory)
assert "RAY_AUTH_TOKEN" not in os.environ
assert "RAY_AUTH_MODE" not in os.environ
"""


@pytest.mark.usefixtures("processes")
@pytest.mark.usefixtures("own_ray")
def test_a_local_ray_leaves_no_files_and_limits_its_logs(place: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_A")}
    done = subprocess.run(
        [sys.executable, "-c", SESSION, str(place)],
        env={**environment, "HOME": str(home), "TMPDIR": str(place)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert int(done.stdout) < 25e6  # of 50 MB
    assert not list(home.iterdir())  # no token is readable by others
    assert not list(place.iterdir())
