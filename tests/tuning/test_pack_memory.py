"""A pack takes no more memory than ``search.pack: auto`` has computed for it, and 300 MB."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fednar_ray as fr
from fednar_ray.tuning.resources import TrialMatrix, plan_resources
from tests.support.searches import IGNORED_WARNINGS
from tests.support.trials import build_trial_search

pytestmark = [
    *IGNORED_WARNINGS,
    pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read in Linux's unit"),
]

ROOT = Path(__file__).parents[2]
MB = 10**6
PACK = """
import json, re, sys
import psutil
from dataclasses import replace
from pathlib import Path
from fednar_ray.tuning.pack import Assignment
from tests.support.packs import open_pack, step
from tests.support.trials import build_plan, build_trial_search
trials, values = int(sys.argv[1]), json.loads(sys.argv[2])
plan = build_plan(build_trial_search())
pack = open_pack(replace(plan, execution={**plan.execution, "vectorize": values["federation.clients_per_round"]}))
before = psutil.Process().memory_info().rss
pack.assign([Assignment(trial_id=f"{i}", values={**values, "regularizer.clip_bound": i + 1.0}) for i in range(trials)])
reports = [step(pack) for _ in range(3)]
assert not any(report.failure for each in reports for report in each.values()), reports
# not getrusage, which also counts what the parent had when it started this process
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
print(peak - before, pack._trainer.is_refused)
"""


def measure(values: dict[str, Any]) -> tuple[TrialMatrix, float]:
    """Returns what a trial was computed to take, and the memory of its parameters."""
    matrix = plan_resources(build_trial_search().build_variant(values), fr.RaySession()).matrix
    assert matrix is not None
    hidden = values["model.hidden"]
    return matrix, 4.0 * (64 * hidden + hidden + 10 * hidden + 10)


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize(
    ("trials", "values"),
    [
        (8, {"model.hidden": 7_000, "federation.clients_per_round": 2}),  # vectors of 2 MB, which fill a matrix
        (7, {"model.hidden": 1_333, "federation.clients_per_round": 4, "algorithm.name": "scaffold"}),
    ],
    ids=["a large model", "states of clients"],
)
def test_the_peak_of_a_pack_is_within_its_computed_need(trials: int, values: dict[str, Any], tmp_path: Path) -> None:
    matrix, vector_bytes = measure(values)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-c", PACK, str(trials), json.dumps(values)]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    growth, refused = done.stdout.split()
    assert refused == "False"
    assert int(growth) > 4 * vector_bytes * matrix.clients * trials  # x, g, v and Δ of each client
    assert int(growth) < trials * matrix.host_bytes + 300 * MB
