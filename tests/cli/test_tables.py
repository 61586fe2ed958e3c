"""Every table fits a terminal of 80 columns, and shows its values whole."""

import re
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fednar_ray.cli import compare, run, suggest
from fednar_ray.cli.run_list import Line, print_lines
from fednar_ray.config import CompareSettings
from fednar_ray.core.reports import RoundRecord
from fednar_ray.experiments.suggestion import ClipBoundSuggestion
from fednar_ray.report.comparison_table import Row
from fednar_ray.report.run_plots import Measure, Variant
from fednar_ray.report.tables import Column, print_table
from fednar_ray.tuning import progress
from fednar_ray.tuning.search_status import SearchStatus
from fednar_ray.tuning.trial_table import TrialEntry

COLUMNS = 80
NAME = "hospital-mortality-icu-7f3a09c1"


@pytest.fixture
def console() -> Console:
    return Console(file=StringIO(), width=COLUMNS, highlight=False)


def read(console: Console) -> str:
    """Returns what was printed."""
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def check_fits(text: str, *cells: str) -> None:
    """Checks that no line is too long, that nothing was cut, and that the cells are there in one piece."""
    assert max(map(len, text.splitlines())) <= COLUMNS, text
    assert "…" not in text
    for cell in cells:
        assert re.search(rf"(?<!\S){re.escape(cell)}(?!\S)", text), f"{cell} is not in\n{text}"


def check_ends(text: str) -> None:
    """Checks that no line ends in spaces, which would be copied along."""
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def build_row(regularizer: str, name: str, final: float, *, higher: bool) -> Row:
    return Row(
        variant=Variant(0.000123, regularizer),
        measure=Measure(name, higher),
        final=np.array([final, 1.01 * final, 0.99 * final]),
        difference=-0.0123 * final,
        interval=0.0345 * final,
        rounds_to_target=1234.5,
        bytes_to_target=123_456.7e6,
        seconds_to_target=12_345.0,
        reached=2,
        clip_fraction=1.0,
        bytes_sent=1e12,
        client_seconds=123_456.7,
        wall_seconds=23_456.7,
        alerts=(),
    )


@pytest.mark.parametrize(("name", "final", "higher"), [("average_precision", 0.95123, True), ("rmse", 1234.567, False)])
def test_the_table_of_a_comparison(name: str, final: float, higher: bool, console: Console) -> None:
    rows = tuple(build_row(each, name, final, higher=higher) for each in ("decoupled", "fednar"))
    settings = CompareSettings(seeds=3, target=0.9, target_rmse=1000.0)
    compare._print_table(console, SimpleNamespace(rows=rows, settings=settings))  # type: ignore[arg-type]
    shown = read(console)
    check_fits(shown, "λ", "0.000123", "decoupled", "fednar", "100 %", "123456.7", "23456.7", "1234.5 (2/3 seeds)")
    check_ends(shown)
    for row in rows:
        for cell in row.format_cells().values():
            check_fits(shown, cell)
    assert "weight decay" not in shown  # files and JSON have the full names
    assert "weight decay" in rows[0].format_cells()


def build_entry(number: int, **changes: Any) -> TrialEntry:
    values = {
        "regularizer.clip_bound": 12.34567 + number,
        "regularizer.weight_decay": 0.000123456,
        "regularizer.weight_decay_anneal": 0.98765,
        "regularizer.clip_bound_anneal": 0.97654,
        "algorithm.local_lr": 0.0123456,
        "algorithm.local_lr_anneal": 0.96543,
        "data.partition.alpha": 0.123456,
        "algorithm.name": "scaffold+exp",
        "model.hidden": 1024,
    }
    return replace(
        TrialEntry(name=f"trial-{number:04}", values=values, status="stopped early", rounds=12345, value=-0.123456),
        **changes,
    )


def test_the_table_of_a_search_has_symbols_for_keys(console: Console) -> None:
    trials = (build_entry(1), build_entry(2, value=None, status="failed"))
    progress._print_trials(
        console,
        SimpleNamespace(name=NAME, metric="validation_average_precision", trials=trials),  # type: ignore[arg-type]
    )
    shown = read(console)
    symbols = ("A", "λ", "γ_λ", "γ_A", "η", "γ_η")
    check_fits(shown, *symbols, "alpha", "scaffold+exp", "1024", "13.35", "0.0001235", "12345", "-0.1235", "trial-0002")
    check_ends(shown)
    assert "regularizer." not in shown
    assert shown.count("trial-0001") > 1  # the table goes on below, where rows say again what they are


@pytest.mark.parametrize(
    ("clipped", "told"),
    [(0.43, "The best bound clips 43 % of the steps."), (0.0, "At the best bound no step is clipped: "), (None, None)],
)
def test_the_end_of_a_search_says_how_many_steps_its_bound_clips(
    clipped: float | None, told: str | None, console: Console
) -> None:
    result = SimpleNamespace(
        name=NAME, metric="validation_accuracy", trials=(build_entry(1),), ended_early=None, rounds_trained=10,
        rounds_saved=0, test_metric="test_accuracy", best_test=0.9, baseline_test=0.8, clipped=clipped, privacy=None,
        best_file=Path("best.yaml"), report=None, directory=Path("searches/x"),
    )  # fmt: skip
    progress.print_result(console, result)  # type: ignore[arg-type]
    lines = read(console).splitlines()
    after = lines[lines.index("test accuracy, measured once: best 0.9, baseline 0.8") + 1]
    assert after.startswith(told or "best: fednar run best.yaml")


def test_the_live_table_of_a_search(console: Console) -> None:
    entries = tuple(build_entry(number, status="running") for number in range(12))
    status = SearchStatus(
        trials=1000, rounds=20000, running=entries, finished=900, stopped=50, failed=7, best=build_entry(77),
        ended=None, seconds=123_456.7,
    )  # fmt: skip
    console.print(progress._build_live_table(status))
    shown = read(console)
    check_fits(shown, "trial-0000", "12345/20000", "-0.1235", "A=12.3", "λ=0.000123")
    assert "1000, 50 stopped early, 7 failed" in " ".join(shown.split())


def test_two_keys_with_the_same_last_word_keep_their_names() -> None:
    keys = ["data.seed", "search.seed", "regularizer.clip_bound", "a.rounds", "b.alpha"]
    assert progress._name_columns(keys) == {
        "data.seed": "data.seed",
        "search.seed": "search.seed",
        "regularizer.clip_bound": "A",
        "a.rounds": "a.rounds",  # the table has a column of this name
        "b.alpha": "alpha",
    }


LINES = (
    Line(
        kind="run",
        name=NAME,
        label="decoupled λ=0.000123 A=12.5 seed=123",
        started="2026-11-27T16:52:10",
        done="1234/2000",
        result="test average precision 0.951",
        status="interrupted, resumes from round 1234",
        resumable=True,
    ),
    Line(
        kind="run",
        name="digits-1b2c3d4e",
        label="none seed=0",
        started=None,
        done="3/40",
        result="–",
        status="failed, no checkpoint",
        why="round 3 aborted: 0 of 3 client updates usable, at least 1 required; client 0 excluded: not finite",
    ),
    Line(
        kind="comparison",
        name="hospital-mortality-9a8b7c6d",
        label="decoupled, fednar, coupled; λ=0.0001, 0.001, 0.01; 30 seeds",
        started="2026-11-27T16:52:10",
        done="270/270",
        result="decoupled λ=0.0001: average precision 0.951",
        status="finished",
    ),
    Line(
        kind="run",
        name="hospital-mortality-1a2b3c4d",
        label="decoupled λ=0.000123 A=12.5 seed=123",
        started="2026-11-27T16:52:10",
        done="200/200",
        result="test average precision 0.951",
        status="finished",
        of="hospital-mortality-9a8b7c6d",
    ),
    Line(
        kind="search",
        name="hospital-mortality",
        label="A λ γ_λ γ_A η γ_η alpha name hidden; 1000 trials",
        started="2026-11-27T16:52:10",
        done="1000",
        result="validation average precision 0.951",
        status="stopped early",
        why="no better trial for 20 trials",
    ),
)


def test_the_list_of_runs_is_by_kind_and_says_why_something_ended(console: Console) -> None:
    print_lines(console, LINES)
    lines = read(console).splitlines()
    whys = [line for line in lines if any(each.why is not None and each.why in line for each in LINES)]
    assert whys == [
        f"digits-1b2c3d4e, failed: {LINES[1].why}",
        "hospital-mortality, stopped early: no better trial for 20 trials",
    ]
    shown = "\n".join(line for line in lines if line not in whys)
    check_fits(shown, *(line.name for line in LINES), "11-27 16:52", "1234/2000", "270/270", "0.951", "round 1234")
    kinds = [line for line in lines if line in ("runs", "comparisons", "searches")]
    assert kinds == ["runs", "comparisons", "searches"]
    assert lines.index("comparisons") < next(i for i, line in enumerate(lines) if "1a2b3c4d" in line)
    for line in LINES:
        assert all(word in shown for word in (line.label + " " + line.status).split()), line
    assert [line for line in lines if "--resume" in line] == [f"resume it with: fednar run --resume {NAME}"]


def test_the_summary_of_a_run(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {"test_average_precision": 0.123456, "client_accuracy_worst_decile": 1.23456e-7, "train_loss": 12345.678}
    record = RoundRecord(round_index=0, metrics=metrics, client_ids=(), exclusions={})
    experiment = SimpleNamespace(name=NAME, evaluation=SimpleNamespace(own_metrics=()))
    result = SimpleNamespace(experiment=experiment, history=(record,), metrics=metrics, primary="average_precision")
    run._print_metrics(console, result)  # type: ignore[arg-type]
    check_fits(read(console), "0.1235", "1.235e-07", "1.235e+04", "test average precision", "last round")


def test_the_table_of_suggestions(console: Console) -> None:
    levels = dict.fromkeys(suggest.SHOWN_LEVELS, 1.23456e-5)
    found = ClipBoundSuggestion(
        run=NAME, directory=Path(NAME), regularizer="fednar", clip_bound=1.0, clipped=0.5, low=1.0, high=2.0, value=1.5,
        largest=3.0, quantiles={"first": levels, "overall": levels}, notes=(), plot=Path("a.png"), weight_decay=0.1,
        started_from=(),
    )  # fmt: skip
    suggest._print_quantiles(console, found)
    check_fits(read(console), "median", "largest", "1.23e-05", "overall")


def test_a_table_that_is_too_wide_goes_on_below_and_text_wraps(console: Console) -> None:
    columns = [Column("name"), *(Column(f"column {i}", right=True) for i in range(8)), Column("text", least=16)]
    row = {column.name: f"{column.name.replace(' ', '-')}-12345" for column in columns}
    row["text"] = "a long text that goes over several lines and is shown to its end"
    print_table(console, columns, [row, {**row, "name": "x" * 100}], title="Title [of] it")
    shown = read(console)
    check_fits(shown, *(row[column.name] for column in columns[:-1]), "end")
    assert shown.startswith("Title [of] it\n")
    assert shown.count("x") >= 200  # a name that is longer than the terminal is folded
