"""What a client has promised holds after a restart, and for a second process of the same client."""

import stat
from pathlib import Path

import pytest

from fednar_ray.core.errors import SiloRefused
from fednar_ray.secure.records import SiloRecords
from tests.support.silos import build_plan, build_silos, start_attempt


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "run" / "0"


def test_keys_are_readable_by_their_owner_only_and_survive_a_restart(folder: Path) -> None:
    first = SiloRecords(folder)
    assert stat.S_IMODE((folder / "keys").stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert SiloRecords(folder).keys.public == first.keys.public
    first.forget()
    assert not folder.parent.exists()
    assert SiloRecords(folder).keys.public != first.keys.public


def test_damaged_keys_are_refused(folder: Path) -> None:
    SiloRecords(folder)
    (folder / "keys").write_bytes(b"short")
    with pytest.raises(ValueError, match="has 5 bytes instead of 64"):
        SiloRecords(folder)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_second_masked_vector_and_another_reveal_are_refused(
    tmp_path: Path, folder: Path, *, restarted: bool
) -> None:
    plan = build_plan(tmp_path)
    attempt = start_attempt(plan, build_silos(plan, 4))
    records = SiloRecords(folder)
    records.commit_update(attempt, "aa")
    records.commit_reveal(attempt, (0, 1, 2), (3,))
    again = SiloRecords(folder) if restarted else records
    again.commit_update(attempt, "aa")  # the same may be sent again
    again.commit_reveal(attempt, (2, 1, 0), (3,))
    with pytest.raises(SiloRefused, match="another masked update was sent"):
        again.commit_update(attempt, "bb")
    for arrived, vanished in [((0, 1, 2, 3), ()), ((0, 1, 3), (2,))]:
        with pytest.raises(SiloRefused, match="other shares were revealed"):
            again.commit_reveal(attempt, arrived, vanished)
    other = start_attempt(plan, build_silos(plan, 4), number=1)
    with pytest.raises(SiloRefused, match="no update was sent in this attempt"):
        again.commit_reveal(other, (0, 1, 2), (3,))
    again.commit_update(other, "cc")
    with pytest.raises(SiloRefused, match="other shares were revealed at round 2"):
        again.commit_reveal(other, (0, 1, 2), (3,))


def test_two_processes_of_one_client_keep_one_promise(tmp_path: Path, folder: Path) -> None:
    plan = build_plan(tmp_path)
    attempt = start_attempt(plan, build_silos(plan, 3))
    one, two = SiloRecords(folder), SiloRecords(folder)
    one.commit_update(attempt, "aa")
    with pytest.raises(SiloRefused, match="another masked update"):
        two.commit_update(attempt, "bb")


def test_a_changed_key_of_another_client_is_refused_after_a_restart(folder: Path) -> None:
    SiloRecords(folder).commit_peers({1: b"a" * 32, 2: b"b" * 32})
    SiloRecords(folder).commit_peers({2: b"b" * 32, 3: b"c" * 32})
    with pytest.raises(SiloRefused, match="the public key of client 2 has changed"):
        SiloRecords(folder).commit_peers({2: b"x" * 32})


def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path: Path, folder: Path) -> None:
    plan = build_plan(tmp_path)
    attempt = start_attempt(plan, build_silos(plan, 3))
    SiloRecords(folder).commit_update(attempt, "aa")
    with (folder / "records.jsonl").open("ab") as file:
        file.write(b'["reveal 2", "[[0,')
    again = SiloRecords(folder)
    again.commit_reveal(attempt, (0, 1, 2), ())
    with pytest.raises(SiloRefused, match="other shares were revealed"):
        SiloRecords(folder).commit_reveal(attempt, (0, 1), (2,))
