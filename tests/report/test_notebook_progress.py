"""Progress is shown in notebooks and where it was asked for, and nowhere else."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from fednar_ray.core.stages import announce
from fednar_ray.report.notebook_progress import Bar, choose_place, open_progress

KERNEL, TERMINAL = SimpleNamespace(kernel=object()), SimpleNamespace()


@pytest.mark.parametrize(
    ("shell", "progress", "place"),
    [
        (None, None, "nowhere"),
        (None, True, "terminal"),
        (None, False, "nowhere"),
        (TERMINAL, None, "terminal"),
        (KERNEL, None, "notebook"),
        (KERNEL, True, "notebook"),
        (KERNEL, False, "nowhere"),
    ],
)
def test_where_progress_is_shown(
    shell: Any, progress: bool | None, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    assert choose_place(progress) == place


def test_a_script_prints_nothing_unless_asked(capsys: pytest.CaptureFixture[str]) -> None:
    for progress in (None, True):
        with open_progress(progress, 3) as show:
            for done in (1, 2, 3):
                show(done, "digits", {"train_loss": 0.5, "test_accuracy": 0.25}, "accuracy")
        printed = capsys.readouterr()
        assert printed.out == ""  # the output of a program is its own
        assert bool(printed.err) == bool(progress)
        if progress:
            assert "round 3/3  test accuracy 0.250  training loss 0.500  digits" in printed.err.splitlines()


def test_a_notebook_shows_one_output_that_ends_with_the_last_round(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    handle = SimpleNamespace(update=shown.append)

    def display(content: Any, display_id: bool) -> Any:
        shown.append(content)
        return handle

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: KERNEL))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))  # type: ignore[arg-type]
    with open_progress(None, 500) as show:
        announce("starting Ray")
        assert shown == [Bar(done=0, of=500, text="starting Ray …")]
        for done in range(1, 501):
            show(done, "digits", {"test_accuracy": done / 500} if done % 2 else {}, "accuracy")
        announce("saving the model")
        assert shown[-1] == Bar(done=500, of=500, text="saving the model …")
    assert len(shown) < 100  # a few times per second, not once per round
    assert shown[-1] == Bar(done=500, of=500, text="round 500/500  digits  test accuracy 0.998")
    assert "<progress" not in shown[-1]._repr_html_()
    assert '<progress value="1" max="500">' in shown[1]._repr_html_()
    assert repr(shown[-1]) == shown[-1].text
