"""A journal keeps every whole line: when it is cut or damaged, when the disk is full, and when rounds are replaced."""

import dataclasses
import logging
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import fednar_ray as fr
from fednar_ray.core.errors import RunFailed
from fednar_ray.core.exclusion import Exclusion, ExclusionReason
from fednar_ray.core.reports import RoundRecord
from fednar_ray.tracking.journal import Journal, load_records, parse_line
from tests.support.drawn import draw
from tests.support.journals import build_record, limit_disk

EXPERIMENT = fr.Experiment(name="kept")

records = st.builds(
    RoundRecord,
    round_index=st.just(0),
    metrics=st.dictionaries(st.text(max_size=20), st.floats(allow_infinity=False), max_size=5),
    client_ids=st.lists(st.integers(0, 10**6), max_size=5).map(tuple),
    exclusions=st.dictionaries(
        st.integers(0, 10**6), st.builds(Exclusion, st.sampled_from(ExclusionReason), st.text(max_size=20)), max_size=3
    ),
)


@draw(20)
@hypothesis.given(drawn=st.lists(records, max_size=10))
def test_rounds_are_read_back_unchanged(drawn: list[RoundRecord], tmp_path_factory: pytest.TempPathFactory) -> None:
    history = [dataclasses.replace(record, round_index=index) for index, record in enumerate(drawn)]
    directory = tmp_path_factory.mktemp("journal")
    with Journal(directory, EXPERIMENT) as journal:
        for record in history:
            journal.log(record)
        back = [
            journal.get_records(),
            load_records(directory),
            [parse_line(line) for line in journal.get_lines(len(history))],
        ]
    for read in back:
        np.testing.assert_equal([*map(dataclasses.asdict, read)], [*map(dataclasses.asdict, history)])  # NaN is NaN


def test_infinite_values_become_null_in_the_journal(tmp_path: Path) -> None:
    with Journal(tmp_path, EXPERIMENT) as journal:
        journal.log(build_record(0, loss=float("-inf")))
        assert np.isnan(journal.get_records()[0].metrics["train_loss"])


@pytest.mark.parametrize("cut", [1, 40, 10**6])
def test_a_journal_cut_anywhere_keeps_its_complete_lines(
    cut: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="fednar_ray")
    path = tmp_path / "metrics.jsonl"
    with Journal(tmp_path, EXPERIMENT) as journal:
        for index in range(3):
            journal.log(build_record(index))
        lines = journal.get_lines(3)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)])
    kept = 2 if cut < len(lines[2]) else 0
    assert load_records(tmp_path) == tuple(build_record(index) for index in range(kept))
    with Journal(tmp_path, EXPERIMENT) as journal:
        assert journal.rounds == kept
        assert caplog.text.count("are not a valid line") == (kept > 0)
        for index in range(3):
            journal.log(build_record(index))
        assert journal.get_lines(kept) == lines[:kept]
        assert journal.get_records() == tuple(build_record(index) for index in range(3))


def test_a_damaged_line_ends_the_journal_and_a_checkpoint_restores_it(tmp_path: Path) -> None:
    with Journal(tmp_path, EXPERIMENT) as journal:
        for index in range(4):
            journal.log(build_record(index))
        lines = journal.get_lines(4)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"round": 1', b'"round": \x00', 1))
    with Journal(tmp_path, EXPERIMENT, lines=lines[:3]) as journal:
        assert journal.get_lines(journal.rounds) == lines[:3]


def test_a_journal_replaces_rounds_that_are_trained_differently(tmp_path: Path) -> None:
    with Journal(tmp_path, EXPERIMENT) as journal:
        for index in range(4):
            journal.log(build_record(index))
        journal.log(build_record(1, loss=9.0))  # the round is already recorded, so it is unchanged
        assert journal.get_records()[1] == build_record(1)
        journal.truncate(1)
        journal.log(build_record(1, loss=9.0))
        assert journal.get_records() == (build_record(0), build_record(1, loss=9.0))
        with pytest.raises(AssertionError, match="round 5 after 2 rounds"):
            journal.log(build_record(5))


def test_a_full_disk_fails_the_run_and_leaves_whole_lines(tmp_path: Path) -> None:
    with Journal(tmp_path, EXPERIMENT) as journal:
        journal.log(build_record(0))
        room, message = (
            (tmp_path / "metrics.jsonl").stat().st_size + 10,
            r"metrics.jsonl cannot be written: .*; what was",
        )
        with limit_disk(room), pytest.raises(RunFailed, match=message):
            journal.log(build_record(1))
        assert load_records(tmp_path) == (build_record(0),)
        journal.log(build_record(1))
        assert journal.get_records() == (build_record(0), build_record(1))
