"""``fednar jobs``: the table, and the same for programs. tests/cluster/test_jobs.py lists the jobs of a cluster."""

import json
import re
from dataclasses import replace
from datetime import datetime

import pytest
from click.testing import CliRunner

import fednar_ray.cluster.jobs as cluster_jobs
from fednar_ray.cli.main import cli
from fednar_ray.cluster.jobs import JobSummary

START = datetime(2026, 11, 27, 14, 5, 9)
DONE = JobSummary(
    job_id="mine-1a2b3c4d",
    status="succeeded",
    exit_code=0,
    command="fednar run mine.yaml federation.rounds=1000 execution.placement=pooled --json",
    started=int(START.timestamp() * 1000),
    ended=int(START.timestamp() * 1000) + 200_400,
)
FAILED = replace(DONE, job_id="raysubmit_ABCDEFGHJKLMNPQR", status="failed", exit_code=143)
PENDING = replace(DONE, job_id="tune-5e6f7a8b", status="pending", exit_code=None, started=None, ended=None)


def list_jobs(monkeypatch: pytest.MonkeyPatch, found: list[JobSummary], *words: str) -> str:
    """Runs ``fednar jobs`` on a terminal of 80 columns, as if a cluster had these jobs."""

    class FewJobs:
        def __init__(self, address: str | None) -> None:
            self.list_jobs = lambda: found

    monkeypatch.setattr(cluster_jobs, "Jobs", FewJobs)
    monkeypatch.setattr("fednar_ray.cli.output.PIPE_COLUMNS", 80)
    result = CliRunner().invoke(cli, ["jobs", *words])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_table_fits_80_columns_and_shows_whole_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = list_jobs(monkeypatch, [DONE, FAILED, PENDING]).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines == [line.rstrip() for line in lines]
    cells = [re.split(" {2,}", line.strip()) for line in lines]
    ids = (DONE.job_id, FAILED.job_id, PENDING.job_id)
    done, failed, pending = (row for row in cells if row[0] in ids and len(row) > 2)  # commands are in a second table
    assert done[:4] == [DONE.job_id, "succeeded", "11-27 14:05", "3m20s"]
    assert failed[:2] == [FAILED.job_id, "failed (143)"]
    assert pending[:4] == [PENDING.job_id, "pending", "–", "–"]
    command = "".join(DONE.command.removeprefix("fednar ").split())  # is shown whole, in lines below each other
    shown = "".join(row[-1].replace(" ", "") for row in cells if row[-1] not in ("3m20s", "–"))
    assert shown.count(command) == 3, lines


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0m00s"), (59.9, "0m59s"), (3600, "1h00m"), (86_399, "23h59m"), (180_000, "2d02h")]
)
def test_a_duration_has_two_units(seconds: float, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert DONE.started is not None
    job = replace(DONE, ended=DONE.started + int(seconds * 1000))
    assert shown in list_jobs(monkeypatch, [job])


def test_a_command_with_brackets_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "run a[b].yaml" in list_jobs(monkeypatch, [replace(DONE, command="run a[b].yaml")])


def test_programs_get_the_same_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = json.loads(list_jobs(monkeypatch, [DONE], "--json"))
    assert row["ended"] - row["started"] == 200_400
    assert (row["job_id"], row["status"], row["exit_code"], row["command"]) == (
        DONE.job_id,
        "succeeded",
        0,
        DONE.command,
    )


def test_no_jobs_are_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list_jobs(monkeypatch, []) == "no jobs\n"
