"""What a comparison leaves at its end: its table, its plot, its page, and the note that MLflow shows first."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from fednar_ray.core.errors import BadInput
from fednar_ray.core.private_metrics import describe_spending
from fednar_ray.core.stages import announce
from fednar_ray.experiments.artifacts import log_optional_file
from fednar_ray.experiments.comparison.record import ComparisonRecord
from fednar_ray.experiments.comparison.result import Comparison
from fednar_ray.experiments.comparison.view import ComparedRun
from fednar_ray.report.comparison_answer import describe_comparison
from fednar_ray.report.comparison_page import ComparisonPage
from fednar_ray.report.comparison_table import Outcome, build_metrics, build_rows
from fednar_ray.report.facts import RunFacts
from fednar_ray.report.identical import describe_identical, find_identical
from fednar_ray.report.notes import note_comparison
from fednar_ray.report.run_plots import Variant
from fednar_ray.tracking.origin import find_command
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.tags import IDENTICAL_TAG
from fednar_ray.tracking.tracker import RunTracker
from fednar_ray.tracking.ui_url import build_run_url

log = logging.getLogger("fednar_ray")


def log_outputs(
    parent: RunTracker, record: ComparisonRecord, outcomes: Mapping[Variant, Sequence[Outcome]], primary: str | None
) -> Comparison:
    """Writes the table, the plot and the page of a comparison, and logs them with its metrics and its note.

    Args:
        parent: The MLflow run of the comparison.
        record: The comparison, all of whose runs are finished.
        outcomes: Variant → one outcome per seed.
        primary: The metric that counts, without its split.

    Returns:
        The comparison as it is shown.
    """
    files, settings = RunDirectory(record.directory), record.document.compare
    rows = tuple(build_rows(outcomes, settings, primary))
    notes = tuple(describe_identical(group, _get_run_name(record, group)) for group in find_identical(outcomes))
    page = ComparisonPage(
        name=record.name,
        rows=rows,
        outcomes=outcomes,
        settings=settings,
        facts=_collect_facts(record),
        experiment=record.document.experiment,
        notes=notes,
        url=build_run_url(parent.uri, parent.run_id),
    )
    announce("drawing the comparison")
    log_optional_file(parent, page.draw, files.comparison_plot)
    log_optional_file(parent, page.write, files.report)
    cells = [row.format_cells() for row in rows]
    parent.log_table([{**row.format_cells(), **row.numbers} for row in rows], files.comparison_table.name)
    parent.log_metrics(build_metrics(rows))
    if notes:
        parent.log_tags({IDENTICAL_TAG: "; ".join(notes)})
    answer = tuple(describe_comparison(rows, settings))
    parent.log_note(note_comparison(answer, cells, parent.run_id[:8], files.report.name), record.name)
    spent = describe_spending([each.history[-1].metrics for group in outcomes.values() for each in group])
    return Comparison(
        name=record.name,
        settings=settings,
        rows=rows,
        notes=notes if spent is None else (*notes, spent),
        answer=answer,
        page=files.report,
        run_id=parent.run_id,
        tracking_uri=parent.uri,
        directory=record.directory,
        runs=tuple(_iter_compared(record, outcomes)),
        primary=primary,
    )


def _collect_facts(record: ComparisonRecord) -> RunFacts:
    """Returns the facts of the first run, which the others share, with the command of the comparison.

    Damaged facts are warned about and left out: all rounds are trained by now, and the page can do without.
    """
    directory = record.find_directory(record.runs[0])
    assert directory is not None
    try:
        facts = RunFacts.read(RunDirectory(directory).facts)
    except BadInput as error:
        log.warning("%s; the page of %s does not show it", error, record.name)
        facts = RunFacts()
    return replace(facts, command=find_command() or "Python")


def _iter_compared(record: ComparisonRecord, outcomes: Mapping[Variant, Sequence[Outcome]]) -> Iterator[ComparedRun]:
    """Yields the runs with their outcomes, of which each variant has one per seed."""
    left = {variant: iter(runs) for variant, runs in outcomes.items()}
    for run in record.runs:
        directory = record.find_directory(run)
        assert directory is not None
        yield ComparedRun(variant=run.variant, seed=run.seed, directory=directory, outcome=next(left[run.variant]))


def _get_run_name(record: ComparisonRecord, group: Sequence[Variant]) -> str:
    """Returns the name of a run of one of the variants, of fednar if it is among them."""
    wanted = max(group, key=lambda variant: variant.regularizer == "fednar")
    return next(run.directory for run in record.runs if run.variant == wanted and run.directory is not None)
