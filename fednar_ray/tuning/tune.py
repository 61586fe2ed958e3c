"""Searches settings from Python, as ``fednar tune`` does."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from fednar_ray.config import Document, Experiment, build_document
from fednar_ray.core.errors import ConfigError
from fednar_ray.core.metric_names import is_higher_better
from fednar_ray.data.federation import Federation
from fednar_ray.execution.session import RaySession
from fednar_ray.execution.shared_session import open_session
from fednar_ray.experiments.callbacks import CallbackSource
from fednar_ray.experiments.given import Given, name_metrics
from fednar_ray.report.notebook_progress import Bar, NotebookDisplay, build_progress_console, choose_place
from fednar_ray.tuning.progress import format_best, format_counts, show_search
from fednar_ray.tuning.search import resume_search, start_search
from fednar_ray.tuning.search_result import SearchResult
from fednar_ray.tuning.search_status import SearchStatus, Show


def tune(
    experiment: Experiment | None = None,
    *,
    space: Mapping[str, Any] | None = None,
    trials: int | None = None,
    metric: str | None = None,
    federation: Federation | None = None,
    model: nn.Module | None = None,
    metrics: Sequence[Callable[..., Any]] = (),
    callbacks: Sequence[CallbackSource] = (),
    session: RaySession | None = None,
    progress: bool | None = None,
    register: str | None = None,
    resume: str | None = None,
    **settings: Any,
) -> SearchResult:
    """Searches settings with Ray Tune, and records every trial in MLflow and in ``searches/``, as ``fednar tune`` does.

    A trial trains the experiment with the values that it tries, in a process of its own. In the end the best experiment
    and its baseline are trained once more, to measure the test metric.

    Args:
        experiment: The experiment. It can be left out if ``resume`` names a search.
        space: The searched keys, each with its values, as in a file: ``{"regularizer.clip_bound": {"loguniform":
            [0.1, 30.0]}}``.
        trials: The number of trials. Default: 32.
        metric: The metric that guides the search, such as ``validation_accuracy``, the default. A metric of the test
            set is refused, since it judges the result. Its better direction is known.
        federation: The data, in place of the experiment's ``data`` section, with a validation set. The processes of
            trials get a copy.
        model: The model, in place of the experiment's ``model`` section. Every trial starts from its parameters. It
            must be picklable.
        metrics: Metrics of your own, as in ``fr.run``. They must be picklable.
        callbacks: What observes each trial, and may end it, such as ``fr.EarlyStopping``. They must be picklable: each
            trial gets its own in its process, a copy of a callback, or a new one of a class or of a function without
            arguments. A trial that a callback ends is finished, at its next report. Its rounds have no test metrics.
        session: The Ray session. Without one, all calls share one Ray until the process ends; see ``fr.shutdown``.
        progress: Whether to show the progress. None: in a notebook and in IPython.
        register: The name under which MLflow registers the best model; None to register none.
        resume: The name of an interrupted search to resume as it was started. If it was given a federation, a model,
            metrics or callbacks, give the same ones again.
        **settings: Other keys of the file's ``search`` section: ``name``, ``algorithm``, ``scheduler``, ``seed``,
            ``seeds``, ``concurrent``, ``stop``, ``baseline`` and so on.

    Returns:
        The search, with all trials, best first.

    Raises:
        BadInput: An argument, the data or the model is invalid, or the search's name is in use. Nothing was started.
        RunFailed: No trial has trained all rounds.

    Examples:
        >>> space = {"regularizer.clip_bound": {"loguniform": [0.1, 30.0]}}
        >>> result = fr.tune(fr.load("digits"), space=space, trials=16, name="bounds")
        >>> again = fr.run(fr.load(result.best_file))
    """
    given = Given(federation=federation, model=model, metrics=name_metrics(metrics), callbacks=tuple(callbacks))
    settings |= {key: v for key, v in {"space": space, "trials": trials, "metric": metric}.items() if v is not None}
    with open_session(session) as ray_session, _open_search_progress(progress) as show:
        if resume is not None:
            if experiment is not None or settings:
                what = "it takes no experiment and no settings"
                raise ConfigError((f"resume: {resume!r} is resumed as it was started; {what}",))
            return resume_search(resume, ray_session, show, register, given)
        return start_search(_build_document(experiment, settings, given), ray_session, show, register, given)


def _build_document(experiment: Experiment | None, settings: Mapping[str, Any], given: Given) -> Document:
    if experiment is None:
        raise ConfigError(("experiment: missing; pass experiment=, or resume= to continue a search",))
    if "space" not in settings:
        raise ConfigError(("space: missing; name the keys to search, each with its values",))
    mode = {"mode": "max" if is_higher_better(settings["metric"]) else "min"} if "metric" in settings else {}
    return build_document(given.replace_sections(experiment), search={**mode, **settings})


@contextmanager
def _open_search_progress(progress: bool | None) -> Iterator[Show]:
    """Yields a function that shows the state of a search, where progress is to be shown."""
    match choose_place(progress):
        case "nowhere":
            yield lambda status: None
        case "terminal":
            with show_search(build_progress_console()) as show:
                yield show
        case "notebook":
            with NotebookDisplay() as display:
                yield lambda status: display.show(_build_bar(status))


def _build_bar(status: SearchStatus) -> Bar:
    left = status.seconds_left
    time_left = "" if not left else f"; about {left:.0f} s left"
    text = f"trials: {format_counts(status)}; {format_best(status)}{time_left}"
    return Bar(done=status.done, of=status.trials, text=text)
