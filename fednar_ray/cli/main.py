"""The command line: arguments to an experiment, a comparison or a search; no logic of its own.

Exit codes: 0 done, 1 failure, 2 bad input, 130 interrupted, 143 terminated.
"""

import errno
import json
import logging
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from fednar_ray.cli.cluster import list_jobs, logs, stop, submit
from fednar_ray.cli.options import as_json, document_of, files_and_overrides, resume_or_file
from fednar_ray.cluster.addresses import TRACKING_VARIABLE, check_results_outlive_job
from fednar_ray.core.credentials import check_address, check_words
from fednar_ray.core.errors import BadInput, FednarError, TrackingUnavailable

if TYPE_CHECKING:
    from rich.console import Console

    from fednar_ray.config import Document, Experiment
    from fednar_ray.experiments.comparison.record import ComparisonRecord
    from fednar_ray.experiments.resume import Resumption
    from fednar_ray.tracking.run_lookup import RunSummary

INTERRUPTED = 130
TERMINATED = 143
PIPE_COLUMNS = 150
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM)
SHOWN = (
    "test_accuracy", "validation_accuracy", "client_accuracy_mean", "client_accuracy_worst_decile",
    "test_rmse", "validation_rmse", "client_rmse_mean", "client_rmse_worst_decile",
    "test_loss", "train_loss", "clip_fraction", "effective_weight_decay", "clients_failed",
)  # fmt: skip

arguments = click.argument("arguments", nargs=-1, metavar="[FILE] [key=value …]")
register_option = click.option("--register", metavar="NAME", help="Register the (best) model in MLflow under NAME.")
ray_address = click.option("--address", help="A Ray cluster to join, host:port; default RAY_ADDRESS, else a local Ray.")


class _Commands(click.Group):
    """The commands; none of them takes a word that carries a password, which no message must repeat."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        check_words(args)
        return super().parse_args(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fednar-ray")
def cli() -> None:
    """FedNAR on Ray: train federations, compare regularizers, search settings, browse the results in MLflow."""


@cli.command()
@arguments
@as_json
@ray_address
@click.option(
    "--resume",
    is_flag=False,
    flag_value="",
    metavar="[RUN]",
    help="Go on with RUN: a name, id, run directory, or place of checkpoints. Without RUN, the newest run of the "
    "experiment; where there is none, it begins.",
)
@click.option("--may-change", multiple=True, metavar="KEY", help="With --resume: a setting that may differ from then.")
@register_option
def run(
    arguments: tuple[str, ...],
    as_json: bool,
    address: str | None,
    resume: str | None,
    may_change: tuple[str, ...],
    register: str | None,
) -> None:
    """Train one experiment; without FILE, the embedded digits.

    key=value overrides a setting: regularizer.clip_bound=5
    """
    arguments, resume = resume_or_file(arguments, resume)
    experiment, resumption = _experiment(arguments, resume, may_change)
    console = _console(stderr=as_json)
    _quiet_libraries()
    _check_registration(register, experiment.tracking.uri if resumption is None else resumption.tracking_uri)
    from fednar_ray.execution.session import RaySession
    from fednar_ray.experiments.prepare import prepare
    from fednar_ray.experiments.run import register as registered
    from fednar_ray.experiments.run import train

    with (
        RaySession(address) as session,
        closing(train(prepare(experiment, session=session), session, resumption=resumption)) as training,
        _progress(console, experiment.federation.rounds) as show,
    ):
        result = _drained(training, lambda report: show(report.round_index + 1, "", report.metrics))
    version = None if register is None else registered(result, register)
    if as_json:
        click.echo(json.dumps({**_summary(result), "registered_version": version}))
        return
    _print_result(console, result)
    if version is not None:
        console.print(f"registered: {register}, version {version}", soft_wrap=True)


def _experiment(
    arguments: tuple[str, ...], resume: str | None, may_change: tuple[str, ...]
) -> tuple["Experiment", "Resumption | None"]:
    """What is to run, and where it goes on."""
    if resume is None:
        if may_change:
            raise BadInput("--may-change goes with --resume")
        return _to_run("run", arguments).experiment, None
    from fednar_ray.config import with_overrides
    from fednar_ray.experiments.resume import begun, resume_from

    files, _ = files_and_overrides(arguments)
    experiment = (
        _to_run("run", arguments).experiment if files or not resume else with_overrides(begun(resume), arguments)
    )
    resumption = resume_from(resume or None, experiment, may_change)
    if resumption is None:
        click.echo(f"no run of {experiment.name} to go on with: it begins", err=True)
        return experiment, None
    return resumption.experiment, resumption


@cli.command()
@as_json
def runs(as_json: bool) -> None:
    """List the runs kept in ./runs, and where each could go on."""
    from dataclasses import asdict

    from fednar_ray.tracking.run_lookup import list_runs, summarize

    rows = [summarize(kept) for kept in list_runs()]
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows]))
        return
    if not rows:
        click.echo("no runs here: they are kept in ./runs")
        return
    from rich.table import Table

    from fednar_ray.experiments.comparison.record import kept_comparisons

    table = Table()
    for name in ("run", "rounds", "test accuracy", "state"):
        table.add_column(name, justify="right" if name in ("rounds", "test accuracy") else "left")
    comparisons = {record.name: record for record in kept_comparisons()}
    for row in rows:
        accuracy = "–" if row.test_accuracy is None else f"{row.test_accuracy:.3f}"
        if row.run in comparisons:
            table.add_row(row.run, "–", accuracy, comparisons[row.run].state)
        else:
            table.add_row(row.run, f"{row.rounds}/{row.of}", accuracy, _state(row))
    console = _console(stderr=False)
    console.print(table)
    console.print("fednar run --resume RUN goes on with one", soft_wrap=True)
    if any(not record.finished for record in comparisons.values()):
        console.print("resume a comparison with: fednar compare --resume COMPARISON", soft_wrap=True)


def _state(row: "RunSummary") -> str:
    if row.finished:
        return "finished"
    return "no checkpoint" if row.resumes_from_round is None else f"resumes from round {row.resumes_from_round}"


@cli.command()
@click.argument("names", nargs=-1, metavar="[RUN …]")
@as_json
@click.option("--uri", help="Another address of the tracking store than the one that the run was recorded in.")
def sync(names: tuple[str, ...], as_json: bool, uri: str | None) -> None:
    """Send MLflow what it missed of RUN …, or of every run in ./runs.

    A run that names a tracking store other than that of your settings, in which you never recorded a run, is sent there
    only if --uri confirms the address.
    """
    _quiet_libraries()
    from dataclasses import asdict

    from fednar_ray.tracking.run_lookup import find_run, list_runs
    from fednar_ray.tracking.sync import SyncReport
    from fednar_ray.tracking.sync import sync as synchronize

    reports, problems = [], []
    for kept in [find_run(name) for name in names] or list_runs():
        try:
            report = synchronize(kept.directory, uri)
        except TrackingUnavailable as error:
            report = SyncReport(directory=kept.directory, problem=str(error))
            problems.append(f"{kept.name}: {error}")
        else:
            if report.problem is not None and names:
                problems.append(f"{kept.name}: {report.problem}")
        reports.append({"run": kept.name, **asdict(report)})
        if not as_json:
            click.echo(f"{kept.name}: {report}")
    if as_json:
        click.echo(json.dumps(reports, default=str))
    if problems:
        raise BadInput("; ".join(problems))


@cli.command()
@arguments
@as_json
@ray_address
@click.option(
    "--resume",
    is_flag=False,
    flag_value="",
    metavar="[NAME]",
    help="Resume the comparison NAME: a name, id, or directory. Without NAME, the newest comparison of the experiment; "
    "where there is none, a new one is started.",
)
def compare(arguments: tuple[str, ...], as_json: bool, address: str | None, resume: str | None) -> None:
    """Compare regularizers over seeds; without FILE, the embedded comparison on digits.

    key=value overrides a setting: compare.seeds=5, regularizer.clip_bound=1
    """
    arguments, resume = resume_or_file(arguments, resume)
    document, record = _comparison(arguments, resume)
    from fednar_ray.execution.session import RaySession
    from fednar_ray.experiments.comparison.record import planned_runs
    from fednar_ray.experiments.comparison.running import compare as compared

    console, rounds = _console(stderr=as_json), document.experiment.federation.rounds
    runs = len(planned_runs(document.experiment, document.compare))
    _quiet_libraries()
    with (
        RaySession(address) as session,
        closing(compared(document, session, record)) as comparing,
        _progress(console, runs * rounds, every=rounds) as show,
    ):
        result = _drained(
            comparing, lambda p: show(p.run * rounds + p.report.round_index + 1, p.label, p.report.metrics)
        )
    if as_json:
        click.echo(json.dumps(_comparison_summary(result)))
    else:
        _print_comparison(console, result)


def _comparison(arguments: tuple[str, ...], resume: str | None) -> tuple["Document", "ComparisonRecord | None"]:
    """What is compared, and the comparison that is resumed."""
    if resume is None:
        return _to_run("compare", arguments), None
    from fednar_ray.experiments.comparison.record import find, find_newest

    if resume and arguments:
        raise BadInput(f"--resume {resume} resumes the comparison as it was started; it takes no FILE and no key=value")
    if resume:
        record = find(resume)
        check_results_outlive_job(record.document, "compare")
        return record.document, record
    document = _to_run("compare", arguments)
    newest = find_newest(document)
    if newest is None:
        click.echo(f"no comparison of {document.experiment.name!r} to resume; starting a new one", err=True)
    return document, newest


@cli.command()
@arguments
@as_json
@ray_address
@click.option("--resume", metavar="NAME", help="Go on with the search NAME, which was cut short.")
@register_option
def tune(
    arguments: tuple[str, ...], as_json: bool, address: str | None, resume: str | None, register: str | None
) -> None:
    """Search the space that FILE names in its search section; without FILE, the embedded digits.

    key=value overrides a setting: search.trials=8, search.algorithm=random
    """
    if resume is not None and arguments:
        raise BadInput(f"--resume {resume} goes on with the search as it was begun; it takes no FILE and no key=value")
    document = None if resume is not None else _to_run("tune", arguments)
    _quiet_libraries()
    from fednar_ray.execution.session import RaySession
    from fednar_ray.tuning import progress
    from fednar_ray.tuning.creation import name_of
    from fednar_ray.tuning.search import begin, go_on
    from fednar_ray.tuning.trial_table import uri_of

    uri = document.experiment.tracking.uri if document is not None else uri_of(resume or "")
    if document is not None or uri is not None:  # of a search that is not there, its name is what is wrong
        _check_registration(register, uri)

    console = _console(stderr=as_json)
    with RaySession(address) as session, progress.shown(console) as show:
        try:
            if document is not None:
                result = begin(document, session, show, register)
            else:
                assert resume is not None
                result = go_on(resume, session, show, register)
        except KeyboardInterrupt as error:
            name = resume if document is None else name_of(document)
            if name is not None and uri_of(name) is not None:  # it exists
                error.args = (f"fednar tune --resume {name} goes on",)
            raise
    if as_json:
        click.echo(json.dumps(progress.summary(result)))
    else:
        progress.print_result(console, result)


@cli.command()
@click.argument("name")
@as_json
@click.option("--uri", help="The tracking store that it was recorded in; default as kept here, else MLflow's own.")
@click.option("--output", type=click.Path(path_type=Path), help="Where to write to; default where NAME is kept.")
def report(name: str, as_json: bool, uri: str | None, output: Path | None) -> None:
    """Draw what is recorded of NAME, a run, a comparison or a search: its name, its directory, or its id in MLflow.

    Of a search, a page with pictures and tables; of a run, its curves and the norms that the bound meets; of a
    comparison, its curves, and accuracy against weight decay.
    """
    _quiet_libraries()
    from fednar_ray.report.redraw import report_of
    from fednar_ray.tuning.search_lock import hold_search
    from fednar_ray.tuning.trial_table import uri_of

    searched = uri_of(name)
    with hold_search(name) if searched is not None and output is None else nullcontext():
        written = report_of(name, uri, output, searched)
    if as_json:
        page = {} if written.page is None else {"page": str(written.page)}
        click.echo(json.dumps({**page, "files": list(map(str, written.files))}))
    elif written.page is not None:
        click.echo(f"report: {written.page}")
    else:
        click.echo("\n".join(map(str, written.files)))


@cli.group()
def data() -> None:
    """Look at the data of an experiment."""


@data.command()
@arguments
@as_json
@click.option("--figure", type=click.Path(path_type=Path), help="Where to draw it; default NAME-data.png, here.")
def inspect(arguments: tuple[str, ...], as_json: bool, figure: Path | None) -> None:
    """Show who holds how much of what in FILE's experiment, how unlike clients are, and the memory it takes.

    key=value overrides a setting: data.partition.alpha=0.1
    """
    experiment = document_of(arguments, "run").experiment
    if experiment.data is None:
        raise BadInput("data: missing; there is nothing to look at without a data section")
    from dataclasses import asdict

    from fednar_ray.data.summary import inspect as inspected
    from fednar_ray.data.summary import lines
    from fednar_ray.execution.session import RaySession
    from fednar_ray.experiments.prepare import federation_of
    from fednar_ray.report.plots import draw_federation

    with RaySession() as session:
        federation = federation_of(experiment, session)
    found = inspected(federation)
    drawn = draw_federation(federation.label_counts(), figure or Path(f"{experiment.name}-data.png"))
    if as_json:
        click.echo(json.dumps({**asdict(found), "figure": str(drawn)}))
        return
    click.echo(f"{found.name}, seed {experiment.seed}")
    for topic, text in lines(found):
        click.echo(f"  {topic:20}{text}")
    click.echo(f"  {'figure':20}{drawn}")


@cli.command()
@click.option("--uri", help="The tracking store; default MLFLOW_TRACKING_URI, else ./mlflow.db.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
def ui(uri: str | None, host: str, port: int) -> None:
    """Open MLflow's UI on the runs made here, until Ctrl-C."""
    from fednar_ray.core.store_uris import within_its_folder
    from fednar_ray.tracking.mlflow import Store

    _quiet_libraries()
    store = Store(uri)
    store.check()
    _check_port(host, port)
    click.echo(f"MLflow's UI on {store.uri}: http://{host}:{port}  (Ctrl-C ends it)")
    sys.stdout.flush()
    os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
    address, folder = within_its_folder(store.uri)
    if folder is not None:
        os.chdir(folder)
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", address, "--workers", "1"]
    os.execv(sys.executable, [*server, "--host", host, "--port", str(port)])


for command in (submit, list_jobs, logs, stop):
    cli.add_command(command)


@cli.command()
@as_json
@ray_address
@click.option("--uri", help="The tracking store to look at.")
def doctor(as_json: bool, address: str | None, uri: str | None) -> None:
    """Show versions, machine, Ray and tracking store, and what is wrong. Exit code 1 if anything is."""
    from fednar_ray.cli.doctor import examine

    _quiet_libraries()
    findings = []
    for finding in examine(address, uri):
        findings.append(finding)
        if not as_json:
            click.echo(f"{finding.verdict:8}{finding.topic:14}{finding.text}")
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings]))
    sys.exit(1 if any(finding.verdict == "wrong" for finding in findings) else 0)


def _to_run(command: str, arguments: Sequence[str]) -> "Document":
    """What a command runs; within a Ray job, only if its results outlive the job."""
    document = document_of(arguments, command)
    if document.experiment.tracking.uri is None:
        check_address(TRACKING_VARIABLE, os.environ.get(TRACKING_VARIABLE))
    check_results_outlive_job(document, command)
    return document


def _drained(steps: Any, show: Callable[[Any], None]) -> Any:
    """Show every step of a generator, and return its result."""
    while True:
        try:
            show(next(steps))
        except StopIteration as end:
            return end.value


def _console(*, stderr: bool) -> "Console":
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else PIPE_COLUMNS, highlight=False)


@contextmanager
def _progress(console: "Console", total: int, every: int | None = None) -> Iterator[Callable[..., None]]:
    """A bar with the live accuracy on a terminal; elsewhere a plain line now and then."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    step = every or max(1, total // 10)
    if not console.is_terminal:

        def line(done: int, label: str, metrics: dict[str, float]) -> None:
            if done % step == 0 or done == total:
                parts = (
                    f"round {done}/{total}",
                    _accuracy(metrics),
                    f"training loss {metrics['train_loss']:.3f}" if "train_loss" in metrics else "nobody came back",
                    label,
                )
                click.echo("  ".join(part for part in parts if part), err=console.stderr)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=total)
        last = ""

        def advance(done: int, label: str, metrics: dict[str, float]) -> None:
            nonlocal last
            last = _accuracy(metrics) or last
            bar.update(task, completed=done, description=f"{label} {last}".strip() or "training")

        yield advance


def _accuracy(metrics: dict[str, float]) -> str:
    """The accuracy, or of regression the RMSE, as text; empty for a round that was not evaluated."""
    if "test_rmse" in metrics:
        return f"test rmse {metrics['test_rmse']:.4g}"
    return f"test accuracy {metrics['test_accuracy']:.3f}" if "test_accuracy" in metrics else ""


def _summary(result: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from fednar_ray.tracking.journal import for_json

    return {
        "metrics": for_json(result.metrics),
        "rounds": len(result.history),
        "run_id": result.run_id,
        "parameters_sha256": result.parameters_sha256,
        "tracking_uri": result.tracking_uri,
        "directory": str(result.directory),
        "placement": result.placement,
        "actors": len(result.places),
        "vectorize": result.group_size,
        "resumed_from_round": result.resumed_from_round,
        "alerts": [asdict(alert) for alert in result.alerts],
    }


def _print_result(console: "Console", result: Any) -> None:
    from rich.table import Table

    table = Table(title=f"{result.experiment.name}: {len(result.history)} rounds")
    table.add_column("metric")
    table.add_column("last round", justify="right")
    for name in SHOWN:
        if name in result.metrics:
            table.add_row(name.replace("_", " "), f"{result.metrics[name]:.4g}")
    console.print(table)
    for alert in result.alerts:
        console.print(f"{alert.name}, from round {alert.round_index + 1}: {alert.message}", soft_wrap=True)
    console.print(_whereabouts(result), soft_wrap=True)
    _print_place(console, result.directory, result.tracking_uri)


def _whereabouts(result: Any) -> str:
    """Where the clients trained."""
    if not result.places and result.placement != "serial":
        return "finished before: nothing was left to train"
    if result.placement == "serial":
        return f"trained in this process, {result.vectorize} clients at a time"
    if result.placement == "dedicated":
        lines = (f"client {i}: actor in process {p.process_id}" for i, p in enumerate(result.places))
        return "each client its own Ray actor, the only holder of its shard:\n  " + "\n  ".join(lines)
    actors = f"{len(result.places)} Ray actor" + ("s" if len(result.places) > 1 else "")
    return f"trained on {actors}, {result.vectorize} clients at a time"


def _comparison_summary(result: Any) -> dict[str, Any]:
    by_decay = None if result.by_decay is None else str(result.by_decay)
    return {
        "name": result.name,
        "rows": [row.cells() for row in result.rows],
        "alerts": [{**row.variant._asdict(), "alerts": row.alerts} for row in result.rows if row.alerts],
        "chart": str(result.chart),
        f"{result.rows[0].measure.name}_by_decay": by_decay,
        "run_id": result.run_id,
    }


def _comparison_title(result: Any) -> str:
    settings, measure = result.settings, result.rows[0].measure
    target = settings.target_accuracy if measure.higher_is_better else settings.target_rmse
    parts = [
        f"{settings.seeds} seed{'s' if settings.seeds > 1 else ''}",
        f"no target {measure.name}" if target is None else f"target {measure.name} {target:g}",
        f"difference to {settings.regularizers[0]}" + (", 95 % interval" if settings.seeds > 1 else ""),
    ]
    return "; ".join(parts if measure.higher_is_better else [*parts, f"a lower {measure.name} is better"])


def _print_comparison(console: "Console", result: Any) -> None:
    from rich.table import Table

    rows = [row.cells() for row in result.rows]
    table = Table(title=_comparison_title(result))
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "regularizer" else "right")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)
    for row in result.rows:
        if row.alerts:
            who = f"{row.variant.regularizer}, weight decay {row.variant.weight_decay:g}"
            console.print(f"{who}: {', '.join(row.alerts)} (see above)", soft_wrap=True)
    console.print(f"chart: {result.chart}", soft_wrap=True)
    if result.by_decay is not None:
        console.print(f"{result.rows[0].measure.name} against weight decay: {result.by_decay}", soft_wrap=True)
    _print_place(console, result.chart.parent, result.tracking_uri)


def _print_place(console: "Console", directory: Path, uri: str) -> None:
    console.print(f"files: {directory}", soft_wrap=True)
    console.print(f"browse: fednar ui --uri {shlex.quote(uri)}", soft_wrap=True)


def _check_registration(name: str | None, uri: str | None) -> None:
    """Raises BadInput where a model cannot be registered under the name; None asks for nothing."""
    if name is not None:
        from fednar_ray.tracking.mlflow import Store

        Store(uri).check_registration(name)


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise BadInput(f"{host}:{port} cannot be listened on: {error.strerror}; try --port") from error


def _quiet_libraries() -> None:
    """Our warnings on stderr; MLflow's and Alembic's notes about themselves nowhere."""
    import fednar_ray.tracking.mlflow  # noqa: F401 - MLflow configures its logger when imported

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "1")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


class Terminated(KeyboardInterrupt):
    """SIGTERM: somebody wants this machine back."""


def _on_signal(number: int, frame: FrameType | None) -> None:
    """The first Ctrl-C or SIGTERM ends the run cleanly, the second at once."""
    ends = INTERRUPTED if number == signal.SIGINT else TERMINATED
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: os._exit(ends))
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def main() -> None:
    """The ``fednar`` command."""
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    try:
        sys.path.append(os.getcwd())  # where your functions are: algorithm.function, model.function, data.entry_point
        cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except BadInput as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except FednarError as error:
        click.echo("; ".join([f"failed: {error}", *getattr(error, "__notes__", ())]), err=True)
        sys.exit(1)
    except (KeyboardInterrupt, click.exceptions.Abort) as end:
        signalled = end.__cause__ or end  # click makes an Abort of it
        terminated = isinstance(signalled, Terminated)
        how_to_go_on = str(signalled) or "fednar runs shows what can be resumed"
        click.echo(f"{'terminated' if terminated else 'interrupted'}; {how_to_go_on}", err=True)
        sys.exit(TERMINATED if terminated else INTERRUPTED)
    except Exception as error:
        problem = _problem_of_the_disk(error)
        if problem is None:
            raise
        click.echo(f"failed: {problem}", err=True)
        sys.exit(1)


def _problem_of_the_disk(error: Exception) -> str | None:
    """What is wrong with the disk or the working directory; None where that is not what ended the command."""
    try:
        os.getcwd()
    except OSError:
        return f"the working directory, {os.environ.get('PWD', '')}, was deleted; start again from one that is there"
    if isinstance(error, OSError) and error.errno in UNWRITABLE:
        return f"{error.filename or 'a file'} cannot be written: {error.strerror}"
    return None
