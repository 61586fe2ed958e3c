"""``fednar runs``: list the runs and comparisons in ./runs, and the searches in ./searches."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from fednar_ray.cli.options import as_json
from fednar_ray.cli.output import build_console
from fednar_ray.cli.run_list import Line, describe_comparison, describe_run, describe_search, print_lines
from fednar_ray.core.stages import announce

if TYPE_CHECKING:
    from fednar_ray.experiments.comparison.record import ComparisonRecord
    from fednar_ray.tracking.run_summary import RunSummary
    from fednar_ray.tuning.search_summary import SearchSummary


@click.command()
@as_json
def runs(as_json: bool) -> None:
    """List the runs and comparisons in ./runs and the searches in ./searches, with what came out of each.

    The runs of a comparison or a search are listed below it. Shows the round at which a run can be resumed.
    """
    announce("reading runs and searches")
    from fednar_ray.experiments.comparison.record import list_comparisons
    from fednar_ray.tracking.run_lookup import list_runs
    from fednar_ray.tracking.run_summary import summarize

    rows = [summarize(kept) for kept in list_runs()]
    records = {record.name: record for record in list_comparisons()} if rows else {}
    searches = _list_searches()
    owners = _find_owners(rows, records, searches)
    if as_json:
        click.echo(json.dumps(list(_iter_json(rows, records, searches, owners)), ensure_ascii=False))
        return
    lines = [*_iter_lines(rows, records, owners), *(describe_search(search) for search in searches)]
    if lines:
        print_lines(build_console(stderr=False), lines)
    else:
        click.echo("no runs here: fednar keeps runs in ./runs, and searches in ./searches")


def _list_searches() -> "list[SearchSummary]":
    """Lists the searches here. Without any, Ray Tune and what it takes to read them are not imported."""
    from fednar_ray.tracking.run_directory import has_searches

    if not has_searches():
        return []
    from fednar_ray.tuning.search_summary import list_search_summaries

    return list(list_search_summaries())


def _find_owners(
    rows: "Sequence[RunSummary]", records: "Mapping[str, ComparisonRecord]", searches: "Sequence[SearchSummary]"
) -> dict[str, str]:
    """Returns the name of the comparison or search of each run that belongs to one, in the order of their training."""
    owners = {run.directory: name for name, record in records.items() for run in record.runs if run.directory}
    by_id = {search.run_id: search.name for search in searches if search.run_id is not None}
    return owners | {row.run: by_id[row.parent_id] for row in reversed(rows) if row.parent_id in by_id}


def _iter_json(
    rows: "Sequence[RunSummary]",
    records: "Mapping[str, ComparisonRecord]",
    searches: "Sequence[SearchSummary]",
    owners: Mapping[str, str],
) -> Iterator[dict[str, Any]]:
    """Yields one object per run, comparison and search. Keys that a kind does not have are left out."""
    from fednar_ray.experiments.comparison.summary import summarize_comparison_record

    names = {search.name for search in searches}
    for row in rows:
        owner = owners.get(row.run)
        of = {"comparison": owner if owner in records else None, "search": owner if owner in names else None}
        if row.run in records:
            found = asdict(summarize_comparison_record(records[row.run]))
            shared = {key: found[key] for key in ("label", "status", "result")}
            yield {"kind": "comparison", **asdict(row), **shared, "runs": found["runs"], "of_runs": found["of"], **of}
        else:
            yield {"kind": "run", **asdict(row), **of}
    yield from ({"kind": "search", **asdict(search)} for search in searches)


def _iter_lines(
    rows: "Sequence[RunSummary]", records: "Mapping[str, ComparisonRecord]", owners: Mapping[str, str]
) -> Iterator[Line]:
    from fednar_ray.experiments.comparison.summary import summarize_comparison_record

    order = {run: position for position, run in enumerate(owners)}  # the others come first, newest first
    for row in sorted(rows, key=lambda row: order.get(row.run, -1)):
        if row.run in records:
            yield describe_comparison(summarize_comparison_record(records[row.run]))
        else:
            yield describe_run(row, owners.get(row.run))
