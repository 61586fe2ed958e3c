"""Reports anew: of a search, read from MLflow; of a run or a comparison, from where it is kept, or from MLflow."""

import re
from dataclasses import dataclass
from pathlib import Path

from fednar_ray.core.errors import BadInput
from fednar_ray.report import Report, write_report
from fednar_ray.report.runs import OF_VARIANTS, Records, Variant, draw_run, draw_variants
from fednar_ray.tracking.addresses import check_confirmed
from fednar_ray.tracking.arrival import WITNESS
from fednar_ray.tracking.identity import identity_of
from fednar_ray.tracking.journal import recorded
from fednar_ray.tracking.mlflow import Store
from fednar_ray.tracking.reading import Run, children_of, measured, records_of, run_of
from fednar_ray.tracking.run_directory import RunDirectory, SearchDirectory
from fednar_ray.tracking.run_lookup import RunRef, find_run
from fednar_ray.tracking.searches import read_search
from fednar_ray.tracking.tags import ABANDONED_TAG, KIND_TAG, SEARCH_TAG

RUN_ID = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written."""

    page: Path | None  # of a search
    files: tuple[Path, ...]


def report_on(name: str, uri: str | None, directory: Path) -> Report:
    """Make the report of a search anew. Raises BadInput where the store does not answer, or has no such search."""
    store = Store(uri)
    store.check()
    record = read_search(store.uri, name)
    report = write_report(record, directory)
    store.log_files(record.run_id, directory, SearchDirectory.named(name).report.name)
    return report


def report_of(name: str, uri: str | None, output: Path | None, searched: str | None) -> Written:
    """Draw a run or a comparison, by name, directory or id, or make a search's report.

    ``searched``: the store of the search of that name that is kept here, if one is.
    Raises BadInput where there is nothing of that name.
    """
    if searched is None and (kept := _kept(name)) is not None:
        return _of_kept(kept, uri, output)
    if searched is None and RUN_ID.fullmatch(name):
        store = Store(uri)
        run = run_of(store, name)
        if run is None:
            raise BadInput(f"MLflow at {store.uri} has no run {name}")
        if run.data.tags.get(KIND_TAG) != "search":
            return _drawn(store, run, output or RunDirectory.of_run(run.info.run_name, name).path)
        name = run.data.tags[SEARCH_TAG]
    report = report_on(name, uri or searched, output or SearchDirectory.named(name).report)
    return Written(page=report.page, files=report.files)


def _kept(name: str) -> RunRef | None:
    try:
        kept = find_run(name)
    except BadInput:
        return None
    return kept if kept.directory.is_dir() else None


def _of_kept(kept: RunRef, uri: str | None, output: Path | None) -> Written:
    records, directory = recorded(kept.directory), output or kept.directory
    if records:
        return Written(page=None, files=draw_run(records, directory))
    identity = identity_of(kept.directory)  # a comparison, or a run that did not get far
    if uri is None:
        check_confirmed(identity.tracking_uri, kept.directory)
    store = Store(uri or identity.tracking_uri)
    run = run_of(store, identity.run_id)
    if run is None:
        raise BadInput(f"MLflow at {store.uri} has no run {identity.run_id}, which {kept.name} is")
    return _drawn(store, run, directory)


def _drawn(store: Store, run: Run, directory: Path) -> Written:
    """The pictures of a run in MLflow, or of a comparison's children."""
    if run.data.tags.get(KIND_TAG) != "comparison":
        return Written(page=None, files=draw_run(records_of(store, run), directory))
    variants: dict[Variant, list[Records]] = {}
    for child in children_of(store, run):
        if ABANDONED_TAG in child.data.tags or WITNESS not in child.data.metrics:
            continue  # another run takes its place, or it has no round yet
        params = child.data.params
        variant = Variant(float(params["regularizer.weight_decay"]), params["regularizer.name"])
        variants.setdefault(variant, []).append(measured(store, child, OF_VARIANTS))
    if not variants:
        raise BadInput(f"MLflow at {store.uri} has no run of the comparison {run.info.run_id} yet")
    return Written(page=None, files=draw_variants(variants, int(run.data.params["compare.final_rounds"]), directory))
