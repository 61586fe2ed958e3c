"""Behavior that all commands share: bad input is refused before anything is created, and help imports no torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import run_fednar, type_fednar

pytestmark = pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)

BAD_CONFIG = {
    "a missing file": (["run", "missing.yaml"], "missing.yaml: cannot be read: No such file or directory"),
    "two files": (["run", "a.yaml", "b.yaml"], "only one FILE can be given, not a.yaml b.yaml"),
    "an unknown key": (["run", "regularizer.clip_bond=1"], "regularizer.clip_bond: 1: unknown key; did you mean clip_"),
    "several problems": (["run", "seed=x", "federation.rounds=0"], "federation.rounds: 0 should be"),
    "no YAML": (["run", "broken.yaml"], "broken.yaml, line 2, column 1: invalid YAML"),
    "no UTF-8": (["run", "latin.yaml"], "latin.yaml: cannot be read: it is not UTF-8 text"),
    "no data": (["run", "no_data.yaml"], "data: missing; set a data section"),
    "a wrong override": (["run", "seed=["], "seed: '[': the value is not YAML"),
    "a wrong comparison": (["compare", "compare.seeds=0"], "compare.seeds: 0 should be greater than or equal to 1"),
    "a file after --resume": (
        ["run", "--resume", "a.yaml"],
        "'--resume': a.yaml is a FILE, not a name; write it before --resume: fednar run a.yaml --resume",
    ),
    "an override after --resume": (
        ["compare", "--resume", "compare.seeds=5"],
        "compare.seeds=5 is an override, not a name; write it before --resume: fednar compare compare.seeds=5 --resume",
    ),
    "may change without --resume": (["run", "--may-change", "seed"], "--may-change can only be given with --resume"),
    "a search and a file": (["tune", "a.yaml", "--resume", "small"], "it takes no FILE and no key=value"),
    "an unknown option": (["run", "--jsn"], "No such option"),
    "an unknown command": (["rnu"], "No such command"),
    "no evaluation at all": (["run", "evaluation.every=0"], "evaluation.every: 0 should be greater than or equal to 1"),
    "true for a count": (["run", "evaluation.every=true"], "evaluation.every: True should be a number, not true or"),
    "a word for a count": (["run", "evaluation.every=x"], "evaluation.every: 'x' should be a valid integer"),
    "a word for a switch": (["run", "evaluation.federated=x"], "evaluation.federated: 'x' should be a valid boolean"),
    "a port that is none": (["ui", "--port", "99999"], "99999 is not in the range"),
}


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("case", BAD_CONFIG)
def test_bad_input_is_refused_before_anything_is_created(case: str, tmp_path: Path) -> None:
    arguments, words = BAD_CONFIG[case]
    (tmp_path / "broken.yaml").write_text("experiment:\n\tseed: 1\n", encoding="utf-8")
    (tmp_path / "latin.yaml").write_bytes("experiment: {name: é}".encode("latin-1"))
    (tmp_path / "no_data.yaml").write_text("experiment: {name: a}", encoding="utf-8")
    files = {path.name for path in tmp_path.iterdir()}
    done = run_fednar(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == files


HELP = """
import sys
from click.testing import CliRunner
from fednar_ray.cli.main import cli

for name in sorted(cli.commands):
    shown = CliRunner().invoke(cli, [name, "--help"])
    assert shown.exit_code == 0, shown.output
    assert shown.output.startswith(f"Usage: cli {name} "), shown.output
print(*sorted({"torch", "ray", "mlflow"} & set(sys.modules)))
"""


FIRST_LINES = """
import sys
from click.testing import CliRunner
from fednar_ray.cli.main import cli
from fednar_ray.core.stages import open_lines

class Said(Exception):
    pass

def stop(line):
    raise Said(line)

WORDS = {"predict": ["a", "b"], "report": ["a"], "logs": ["a"], "stop": ["a"], "data": ["inspect"]}
for name in cli.commands:
    with open_lines(stop, repeat=False):
        done = CliRunner().invoke(cli, [name, *WORDS.get(name, [])])
    assert isinstance(done.exception, Said), (name, done.output, done.exception)
print(*sorted({"torch", "ray", "mlflow", "pydantic", "numpy", "pandas", "rich"} & set(sys.modules)))
"""


@pytest.mark.usefixtures("processes")
def test_every_command_prints_a_line_before_it_imports_what_takes_long(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_LINES], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("processes")
def test_help_is_printed_without_importing_torch(tmp_path: Path) -> None:
    done = type_fednar("--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: fednar")
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "fednar_ray.cli.main" in imported
    assert not imported & {"torch", "ray", "mlflow"}
    done = subprocess.run([sys.executable, "-c", HELP], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")


@pytest.mark.usefixtures("processes")
def test_a_typed_command_exits_with_the_code_of_bad_input(tmp_path: Path) -> None:
    arguments, words = BAD_CONFIG["several problems"]
    done = type_fednar(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
