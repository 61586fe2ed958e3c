"""Ctrl-C and SIGTERM while a command runs."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fednar_ray.cli import signals
from tests.support.commands import TINY, build_environment, load_journal, open_store
from tests.support.processes import start_fednar
from tests.support.servers import PATIENCE_SECONDS, wait_for
from tests.support.stores import create_store

pytestmark = pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_the_exit_code_follows_from_the_signal(
    number: int, code: int, word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the exception is Ray's own KeyboardInterrupt, which it raises while it waits for an actor."""
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(signals, "_received", None)
    signals.handle_signals()
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    message, found = signals.describe_interrupt(KeyboardInterrupt())
    assert (message, found) == (f"{word}; {signals.DEFAULT_NEXT_STEP}", code)


@pytest.mark.usefixtures("processes", "own_ray")
@pytest.mark.parametrize("interrupt", [os.kill, os.killpg])
def test_ctrl_c_ends_a_run_cleanly(interrupt: Callable[[int, int], None], tmp_path: Path) -> None:
    """The signal goes to the process alone, or to its group with Ray's processes as in a terminal."""
    create_store(tmp_path / "mlflow.db")
    before = set(psutil.Process().children(recursive=True))
    command = ["run", *TINY, "federation.rounds=100000", "execution.placement=pooled"]
    with start_fednar(*command, cwd=tmp_path, env=build_environment(), start_new_session=True) as process:
        try:
            journals = wait_for(lambda: [p for p in tmp_path.glob("runs/*/metrics.jsonl") if p.stat().st_size > 2000])
            children = set(psutil.Process().children(recursive=True)) - before  # forked workers are not below Ray's
            names = [" ".join(child.cmdline()) for child in children]
            assert any("TrainingActor" in name for name in names), names
            interrupt(process.pid, signal.SIGINT)
            output = "".join(process.communicate(timeout=PATIENCE_SECONDS))
        finally:
            process.kill()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert f"interrupted; resume it with: fednar run --resume {journals[0].parent.name}" in output
    _, alive = psutil.wait_procs(children, timeout=PATIENCE_SECONDS)
    for child in alive:
        child.kill()
    assert not alive

    client = open_store(tmp_path)
    (run,) = client.search_runs([client.get_experiment_by_name("digits").experiment_id])
    assert run.info.status == "KILLED"
    recorded = client.get_metric_history(run.info.run_id, "accuracy/test")
    lines = load_journal(journals[0].parent)
    assert sorted(metric.step for metric in recorded) == [line["round"] for line in lines] == [*range(len(lines))]
