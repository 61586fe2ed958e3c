"""``fednar run``: train one experiment."""

import json
import shlex
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fednar_ray.cli.completion import complete_key, complete_run
from fednar_ray.cli.options import (
    NEWEST,
    arguments,
    as_json,
    build_resume_option,
    check_registration,
    ray_address,
    read_document_to_train,
    register_option,
    split_arguments,
)
from fednar_ray.cli.output import IMPORTS, START, STARTS_EARLY, build_console, print_place, quiet_libraries
from fednar_ray.core.client_names import describe_client
from fednar_ray.core.counting import format_count
from fednar_ray.core.errors import BadInput, Interrupted
from fednar_ray.core.generators import drain
from fednar_ray.core.metric_names import CLIENT_METRICS, HIGHER_IS_BETTER
from fednar_ray.core.private_metrics import (
    EPSILON,
    PRIVATE_METRICS,
    describe_example_privacy,
    describe_privacy,
    is_simulated,
)
from fednar_ray.core.stages import announce
from fednar_ray.report.progress import show_progress
from fednar_ray.report.tables import Column, print_table

if TYPE_CHECKING:
    from rich.console import Console

    from fednar_ray.config import Experiment
    from fednar_ray.execution.session import RaySession
    from fednar_ray.experiments.placement import ExecutionPlan
    from fednar_ray.experiments.result import Result
    from fednar_ray.experiments.resume import Resumption

PRINTED_METRICS = ("train_loss", "clip_fraction", "effective_weight_decay", "clients_failed", *PRIVATE_METRICS)
"""The metrics that the summary shows after those of the evaluated examples."""


@click.command()
@arguments
@as_json
@ray_address
@build_resume_option("run", "RUN", "its name, id, run directory, or place of checkpoints", complete_run)
@click.option(
    "--may-change",
    multiple=True,
    metavar="KEY",
    shell_complete=complete_key,
    help="With --resume: a setting that may differ from the resumed run's.",
)
@register_option
def run(
    arguments: tuple[str, ...],
    as_json: bool,
    address: str | None,
    resume: str | None,
    may_change: tuple[str, ...],
    register: str | None,
) -> None:
    """Train one experiment. Without FILE, train the embedded digits experiment.

    key=value overrides a setting, for example regularizer.clip_bound=5
    """
    announce(START)
    experiment, resumption = _find_experiment(arguments, resume, may_change)
    console = build_console(stderr=as_json)
    announce(IMPORTS)
    from fednar_ray.execution.session import RaySession

    with RaySession(address) as session:
        if click.get_current_context().find_root().obj == STARTS_EARLY and experiment.execution.placement != "serial":
            session.start_early()
        quiet_libraries()
        check_registration(register, experiment.tracking.uri if resumption is None else resumption.tracking_uri)
        result = _train(experiment, resumption, session, console)
    from fednar_ray.experiments.run import register as register_model

    version = None if register is None else register_model(result, register)
    if as_json:
        click.echo(json.dumps({**_summarize(result), "registered_version": version}))
        return
    _print_result(console, result)
    if version is not None:
        console.print(f"registered: {register}, version {version}", soft_wrap=True)


def _train(
    experiment: "Experiment", resumption: "Resumption | None", session: "RaySession", console: "Console"
) -> "Result":
    """Trains the experiment, and shows a line or a bar per round."""
    from fednar_ray.experiments.prepare import prepare
    from fednar_ray.experiments.train import train

    started = _Started(None if resumption is None else resumption.ref.directory)
    with (
        _hint_at_resume(started),
        closing(
            train(
                prepared := prepare(experiment, session=session), session, resumption=resumption, on_start=started.note
            )
        ) as training,
        show_progress(console, experiment.federation.rounds) as show,
    ):
        return drain(training, lambda report: show(report.round_index + 1, "", report.metrics, prepared.primary))


class _Started:
    """The directory of the run that this process trains; None before it exists."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory

    def note(self, directory: Path, plan: "ExecutionPlan") -> None:
        """Notes the directory of a new run."""
        self.directory = directory


@contextmanager
def _hint_at_resume(started: _Started) -> Iterator[None]:
    """Lets the message of an interrupted run say how to resume it, if it has a checkpoint."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        reference = None if started.directory is None else _find_reference(started.directory)
        if reference is None:
            raise
        raise Interrupted(f"resume it with: fednar run --resume {shlex.quote(reference)}") from interrupt


def _find_reference(directory: Path) -> str | None:
    """Returns what ``--resume`` takes for a run: its name, or in a job, its checkpoints; None if it has none."""
    from fednar_ray.cluster.addresses import is_in_temporary_directory
    from fednar_ray.tracking.run_lookup import load_run
    from fednar_ray.tracking.run_summary import find_newest_checkpoint

    try:
        ref = load_run(directory)
    except BadInput:  # it was interrupted before its files were written
        return None
    if find_newest_checkpoint(ref) is None:
        return None
    return ref.storage if is_in_temporary_directory() else ref.name


def _find_experiment(
    arguments: tuple[str, ...], resume: str | None, may_change: tuple[str, ...]
) -> tuple["Experiment", "Resumption | None"]:
    """Finds what is trained: an experiment, and the run that it resumes."""
    if resume is None:
        if may_change:
            raise BadInput("--may-change can only be given with --resume")
        return read_document_to_train(arguments, "run").experiment, None
    from fednar_ray.config import apply_overrides
    from fednar_ray.experiments.resume import load_started_experiment, resume_from

    files, overrides = split_arguments(arguments)
    if resume == NEWEST or files:
        experiment = read_document_to_train(arguments, "run").experiment
    else:
        experiment = apply_overrides(load_started_experiment(resume), overrides)
    resumption = resume_from(None if resume == NEWEST else resume, experiment, may_change)
    if resumption is None:
        click.echo(f"no run of {experiment.name!r} to resume; starting a new one", err=True)
        return experiment, None
    return resumption.experiment, resumption


def _summarize(result: "Result") -> dict[str, Any]:
    """Returns the fields of ``fednar run --json``."""
    from fednar_ray.tracking.journal import replace_non_finite

    return {
        "metrics": replace_non_finite(result.metrics),
        "rounds": len(result.history),
        "run_id": result.run_id,
        "parameters_sha256": result.parameters_sha256,
        "tracking_uri": result.tracking_uri,
        "directory": str(result.directory),
        "placement": result.placement,
        "actors": len(result.places),
        "vectorize": result.group_size,
        "compile": "on" if result.compiled else "off",
        "resumed_from_round": result.resumed_from_round,
        "alerts": [asdict(alert) for alert in result.alerts],
        "stop": None if result.stop is None else asdict(result.stop),
    }


def _print_result(console: "Console", result: "Result") -> None:
    from fednar_ray.experiments.suggestion import explain_no_clipping

    _print_metrics(console, result)
    for alert in result.alerts:
        console.print(f"{alert.name}, from round {alert.round_index + 1}: {alert.message}", soft_wrap=True)
    unclipped = explain_no_clipping(result.experiment.regularizer.name, result.history)
    if unclipped is not None:
        console.print(unclipped, soft_wrap=True)
    if result.stop is not None:
        more = f"fednar run --resume {shlex.quote(result.directory.name)} federation.rounds={result.stop.planned + 1}"
        console.print(f"{result.stop}; train on, beyond the planned rounds, with: {more}", soft_wrap=True)
    console.print(_describe_placement(result), soft_wrap=True)
    print_place(console, result.directory)
    privacy = result.experiment.privacy
    if privacy is not None and privacy.protects_clients:
        console.print(describe_privacy(result.metrics, privacy.delta, privacy.epsilon), soft_wrap=True)
    if privacy is not None and privacy.examples is not None:
        examples = privacy.examples
        console.print(describe_example_privacy(result.metrics, examples.delta, examples.epsilon), soft_wrap=True)


def _print_metrics(console: "Console", result: "Result") -> None:
    rows = [
        {"metric": _name_metric(name, result.metrics), "last round": f"{result.metrics[name]:.4g}"}
        for name in _order_metrics(result)
        if name in result.metrics and not _is_repeated(name, result.metrics)
    ]
    title = f"{result.experiment.name}: {format_count(len(result.history), 'round')}"
    print_table(console, [Column("metric"), Column("last round", right=True)], rows, title=title)


def _name_metric(name: str, metrics: Mapping[str, float]) -> str:
    return name.replace("_", " ") + (" (simulated)" if name == EPSILON and is_simulated(metrics) else "")


def _is_repeated(name: str, metrics: Mapping[str, float]) -> bool:
    """Returns whether a metric is the loss of a split that its log loss shows already, as in classification."""
    return name.endswith("_loss") and metrics.get(name.replace("_loss", "_log_loss")) == metrics[name]


def _order_metrics(result: "Result") -> tuple[str, ...]:
    """Returns the names of the metrics that the summary shows: the primary metric first, each on all its splits."""
    evaluated = dict.fromkeys((result.primary, *HIGHER_IS_BETTER, *result.experiment.evaluation.own_metrics))
    by_split = (f"{split}_{name}" for name in evaluated for split in ("test", "validation"))
    return (*by_split, *CLIENT_METRICS, *PRINTED_METRICS)


def _describe_placement(result: "Result") -> str:
    """Describes where the clients were trained."""
    if result.resumed_from_round == len(result.history):
        return "the run was finished before: nothing was left to train"
    if result.placement == "serial":
        return f"trained in this process, {format_count(result.group_size, 'client')} at a time"
    if result.placement == "dedicated":
        names = result.client_names
        lines = (f"{describe_client(i, names)}: actor in process {p.process_id}" for i, p in enumerate(result.places))
        return "each client has its own Ray actor, which alone holds its shard:\n  " + "\n  ".join(lines)
    actors, clients = format_count(len(result.places), "Ray actor"), format_count(result.group_size, "client")
    return f"trained on {actors}, {clients} at a time"
