"""Redraws the plots of a run or a comparison, and rewrites the report of a search, from what was recorded."""

import re
from dataclasses import dataclass
from pathlib import Path

from fednar_ray.core.errors import BadInput
from fednar_ray.report.run_plots import COMPARED_METRICS, Records, Variant, draw_run, draw_variants
from fednar_ray.report.search_report import SearchReport, write_report
from fednar_ray.tracking.addresses import check_confirmed
from fednar_ray.tracking.arrival import WITNESS
from fednar_ray.tracking.clients_file import read_client_names
from fednar_ray.tracking.identity import read_identity
from fednar_ray.tracking.journal import load_records
from fednar_ray.tracking.mlflow import Store
from fednar_ray.tracking.mlflow_names import name_in_mlflow
from fednar_ray.tracking.reading import (
    Run,
    download_client_names,
    find_mlflow_run,
    get_name,
    list_children,
    read_metrics,
    read_rounds,
)
from fednar_ray.tracking.run_directory import RunDirectory, SearchDirectory
from fednar_ray.tracking.run_lookup import RunRef, find_run
from fednar_ray.tracking.searches import read_search
from fednar_ray.tracking.tags import ABANDONED_TAG, KIND_TAG, PRIMARY_TAG, SEARCH_TAG

RUN_ID = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RedrawnFiles:
    """The files that were written."""

    page: Path | None  # the page of a search; None for a run or a comparison
    files: tuple[Path, ...]


def write_search_report(name: str, uri: str | None, directory: Path) -> SearchReport:
    """Writes the report of a search into ``directory``, and adds it to the artifacts of the search's MLflow run.

    Raises:
        BadInput: The store does not answer, or has no such search.
    """
    store = Store(uri)
    store.check()
    record = read_search(store.uri, name)
    report = write_report(record, directory)
    store.log_files(record.run_id, directory, SearchDirectory.named(name).report.name)
    return report


def redraw(name: str, uri: str | None, output: Path | None, searched: str | None) -> RedrawnFiles:
    """Draws the plots of a run or a comparison, or writes the report of a search.

    Args:
        name: A name, a directory, or an id in MLflow.
        uri: The tracking store; None takes the recorded one.
        output: The directory to write into; None takes that of the run or the search.
        searched: The tracking store of the search ``name``, if ``searches/`` has one of that name.

    Raises:
        BadInput: There is nothing of that name.
    """
    if searched is None and (ref := _find_run_here(name)) is not None:
        return _redraw_run_here(ref, uri, output)
    if searched is None and RUN_ID.fullmatch(name):
        store = Store(uri)
        run = find_mlflow_run(store, name)
        if run is None:
            raise BadInput(f"MLflow at {store.uri} has no run {name}")
        if run.data.tags.get(KIND_TAG) != "search":
            return _redraw_from_mlflow(store, run, output or RunDirectory.of_run(get_name(run), name).path)
        name = run.data.tags[SEARCH_TAG]
    report = write_search_report(name, uri or searched, output or SearchDirectory.named(name).report)
    return RedrawnFiles(page=report.page, files=report.files)


def _find_run_here(name: str) -> RunRef | None:
    try:
        ref = find_run(name)
    except BadInput:
        return None
    return ref if ref.directory.is_dir() else None


def _redraw_run_here(ref: RunRef, uri: str | None, output: Path | None) -> RedrawnFiles:
    records, directory = load_records(ref.directory), output or ref.directory
    if records:
        return RedrawnFiles(page=None, files=draw_run(records, directory, read_client_names(ref.directory)))
    identity = read_identity(ref.directory)  # a comparison, or a run without a finished round
    if uri is None:
        check_confirmed(identity.tracking_uri, ref.directory)
    store = Store(uri or identity.tracking_uri)
    run = find_mlflow_run(store, identity.run_id)
    if run is None:
        raise BadInput(f"MLflow at {store.uri} has no run {identity.run_id}, which belongs to {ref.name}")
    return _redraw_from_mlflow(store, run, directory)


def _redraw_from_mlflow(store: Store, run: Run, directory: Path) -> RedrawnFiles:
    """Draws a run from MLflow, or a comparison from the runs nested in its own."""
    if run.data.tags.get(KIND_TAG) != "comparison":
        records, names = read_rounds(store, run), download_client_names(store, run)
        own = run.data.tags.get(PRIMARY_TAG)
        return RedrawnFiles(page=None, files=draw_run(records, directory, names, own))
    variants: dict[Variant, list[Records]] = {}
    primary: str | None = None
    for child in list_children(store, run):
        if ABANDONED_TAG in child.data.tags or name_in_mlflow(WITNESS) not in child.data.metrics:
            continue  # another run has replaced it, or it has no round yet
        params = child.data.params
        variant = Variant(float(params["regularizer.weight_decay"]), params["regularizer.name"])
        primary = child.data.tags.get(PRIMARY_TAG)
        names = (*COMPARED_METRICS, *([] if primary is None else [f"test_{primary}"]))
        variants.setdefault(variant, []).append(read_metrics(store, child, tuple(dict.fromkeys(names))))
    if not variants:
        raise BadInput(f"MLflow at {store.uri} has no run of the comparison {run.info.run_id} yet")
    final_rounds = int(run.data.params["compare.final_rounds"])
    return RedrawnFiles(page=None, files=draw_variants(variants, final_rounds, directory, primary))
