"""What the commands that train read from their words, and refuse before anything starts."""

from pathlib import Path

import pytest

import fednar_ray as fr
from fednar_ray.cli.main import cli
from fednar_ray.cli.options import COMMANDS, read_document


@pytest.mark.parametrize("words", [["submit"], *([name] for name in COMMANDS), ["submit", "tune"]], ids=" ".join)
def test_a_primary_metric_that_no_task_has_is_refused_before_anything_starts(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    problem = (
        "evaluation.primary: 'acuracy' is not a metric; use one of accuracy, macro_f1, .*, top_5, or name your own"
    )
    with pytest.raises(fr.ConfigError, match=problem):
        cli.main([*words, "evaluation.primary=acuracy", "evaluation.metrics=[mine:top_5]"], standalone_mode=False)
    assert "the data" not in capsys.readouterr().err  # nothing was loaded
    assert not list(tmp_path.iterdir())


def test_a_metric_of_one_s_own_may_be_the_primary_one() -> None:
    document = read_document(["evaluation.primary=top_5", "evaluation.metrics=[mine:top_5]"], "run")
    assert document.experiment.evaluation.primary == "top_5"
