"""``fednar compare``: train the same experiment with several regularizers."""

import json
from typing import TYPE_CHECKING, Any

import click

from fednar_ray.cli.completion import complete_comparison
from fednar_ray.cli.options import NEWEST, arguments, as_json, build_resume_option, ray_address, read_document_to_train
from fednar_ray.cli.output import IMPORTS, START, STARTS_EARLY, build_console, print_place, quiet_libraries
from fednar_ray.core.counting import format_count
from fednar_ray.core.errors import BadInput
from fednar_ray.core.stages import announce
from fednar_ray.report.progress import show_progress
from fednar_ray.report.tables import Column, print_table
from fednar_ray.tracking.database_process import open_database_process

if TYPE_CHECKING:
    from rich.console import Console

    from fednar_ray.config import Document
    from fednar_ray.experiments.comparison.record import ComparisonRecord
    from fednar_ray.experiments.comparison.result import Comparison


SYMBOLS = {"weight decay": "λ"}
"""Columns of the table on the terminal that have a shorter name there than in JSON and in files."""


@click.command()
@arguments
@as_json
@ray_address
@build_resume_option("comparison", "NAME", "its name, id, or directory", complete_comparison)
def compare(arguments: tuple[str, ...], as_json: bool, address: str | None, resume: str | None) -> None:
    """Compare regularizers over several seeds. Without FILE, run the embedded comparison on digits.

    key=value overrides a setting, for example compare.seeds=5 or regularizer.clip_bound=1
    """
    announce(START)
    document, record = _find_comparison(arguments, resume)
    context = click.get_current_context()
    if record is None and context.find_root().obj == STARTS_EARLY:
        context.with_resource(open_database_process(document.experiment.tracking.uri))
    announce(IMPORTS)
    from fednar_ray.execution.session import RaySession
    from fednar_ray.experiments.comparison.record import plan_runs
    from fednar_ray.experiments.comparison.running import run_comparison

    console, rounds = build_console(stderr=as_json), document.experiment.federation.rounds
    runs = len(plan_runs(document.experiment, document.compare))
    quiet_libraries()
    with RaySession(address) as session, show_progress(console, runs * rounds, every=rounds) as show:
        result = run_comparison(document, session, show, record)
    if as_json:
        click.echo(json.dumps(_summarize(result)))
    else:
        _print_result(console, result)


def _find_comparison(arguments: tuple[str, ...], resume: str | None) -> tuple["Document", "ComparisonRecord | None"]:
    """Finds what is compared, and the comparison that is resumed."""
    if resume is None:
        return read_document_to_train(arguments, "compare"), None
    from fednar_ray.cluster.addresses import check_results_outlive_job
    from fednar_ray.experiments.comparison.record import find, find_newest

    if resume != NEWEST:
        if arguments:
            raise BadInput(
                f"--resume {resume} resumes the comparison as it was started; it takes no FILE and no key=value"
            )
        record = find(resume)
        check_results_outlive_job(record.document, "compare")
        return record.document, record
    document = read_document_to_train(arguments, "compare")
    newest = find_newest(document)
    if newest is None:
        click.echo(f"no comparison of {document.experiment.name!r} to resume; starting a new one", err=True)
    return document, newest


def _summarize(result: "Comparison") -> dict[str, Any]:
    """Returns the fields of ``fednar compare --json``."""
    return {
        "name": result.name,
        "rows": [{**row.format_cells(), **row.numbers} for row in result.rows],
        "alerts": [{**row.variant._asdict(), "alerts": row.alerts} for row in result.rows if row.alerts],
        "notes": result.notes,
        "answer": result.answer,
        "page": str(result.page),
        "run_id": result.run_id,
    }


def _print_result(console: "Console", result: "Comparison") -> None:
    from fednar_ray.report.comparison_answer import explain_values

    _print_table(console, result)
    console.print(explain_values(result.rows, result.settings), soft_wrap=True)
    for each in result.rows:
        for line in each.alert_lines:
            variant = f"{each.variant.regularizer}, weight decay {each.variant.weight_decay:g}"
            console.print(f"{variant}: {line}", soft_wrap=True, markup=False)
    for note in result.notes:
        console.print(note, soft_wrap=True)
    print_place(console, result.page.parent)
    for sentence in result.answer:
        console.print(sentence, soft_wrap=True)
    console.print(f"report: {result.page}", soft_wrap=True)


def _print_table(console: "Console", result: "Comparison") -> None:
    from fednar_ray.report.comparison_table import shows_target

    with_target = shows_target(result.rows, result.settings)
    cells = [row.format_cells(with_target=with_target) for row in result.rows]
    rows = [{SYMBOLS.get(name, name): cell for name, cell in row.items()} for row in cells]
    columns = [Column(name, right=name != "regularizer") for name in rows[0]]
    print_table(console, columns, rows, title=_build_title(result), repeated=2)


def _build_title(result: "Comparison") -> str:
    from fednar_ray.report.comparison_table import shows_target

    settings, measure = result.settings, result.rows[0].measure
    target = settings.get_target(measure.name)
    several = settings.seeds > 1
    parts = [
        f"{settings.seeds} seeds: mean ± standard deviation" if several else format_count(settings.seeds, "seed"),
        f"no target {measure.name}" if target is None else f"target {measure.name} {target:g}",
        f"difference to {settings.regularizers[0]}" + (" ± 95 % interval" if several else ""),
    ]
    if not shows_target(result.rows, settings):
        del parts[1]
    return "; ".join(parts if measure.higher_is_better else [*parts, f"a lower {measure.name} is better"])
