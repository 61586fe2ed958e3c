"""Writes the page of a run, a comparison or a search again, from what was recorded."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fednar_ray.config import CompareSettings, Experiment, load
from fednar_ray.core.client_names import ClientNames
from fednar_ray.core.errors import BadInput
from fednar_ray.experiments.alerts import find_alerts
from fednar_ray.report.comparison_page import ComparisonPage
from fednar_ray.report.comparison_table import Outcome, build_rows
from fednar_ray.report.facts import RunFacts
from fednar_ray.report.plots import draw_curves
from fednar_ray.report.run_page import build_run_page
from fednar_ray.report.run_plots import Records, Variant, find_measure
from fednar_ray.report.search_report import SearchReport, write_report
from fednar_ray.tracking.addresses import check_confirmed
from fednar_ray.tracking.arrival import WITNESSES
from fednar_ray.tracking.clients_file import read_client_names
from fednar_ray.tracking.identity import read_identity
from fednar_ray.tracking.journal import load_records
from fednar_ray.tracking.mlflow_names import name_in_mlflow
from fednar_ray.tracking.outbox import read_tags
from fednar_ray.tracking.reading import (
    Run,
    download_client_names,
    download_file,
    find_mlflow_run,
    get_name,
    list_children,
    read_rounds,
)
from fednar_ray.tracking.run_directory import RunDirectory, SearchDirectory
from fednar_ray.tracking.run_lookup import RunRef, find_run_here
from fednar_ray.tracking.searches import SearchRecord, parse_value, read_search
from fednar_ray.tracking.store import Store
from fednar_ray.tracking.tags import (
    ABANDONED_TAG,
    ALERTS_TAG,
    COMMAND_TAG,
    END_TAG,
    IDENTICAL_TAG,
    KIND_TAG,
    PRIMARY_TAG,
    SEARCH_TAG,
)
from fednar_ray.tracking.ui_url import build_run_url

RUN_ID = re.compile("[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RedrawnFiles:
    """The files that were written."""

    page: Path
    files: tuple[Path, ...]


def write_search_report(name: str, uri: str | None, directory: Path) -> SearchReport:
    """Writes the report of a search into ``directory``, and adds it to the artifacts of the search's MLflow run.

    Raises:
        BadInput: The store does not answer, or has no such search.
    """
    store = Store(uri)
    store.check()
    record = read_search(store.uri, name)
    facts = _read_facts_of_best(store, record)
    report = write_report(record, directory, facts, build_run_url(store.uri, record.run_id))
    store.log_files(record.run_id, directory, SearchDirectory.named(name).report.name)
    return report


def _read_facts_of_best(store: Store, record: SearchRecord) -> RunFacts:
    """Reads how a search was made from the run that trained its best experiment again; empty if it is not known."""
    run = None if record.best is None else find_mlflow_run(store, record.best.run_id)
    if run is None:
        return RunFacts()
    with tempfile.TemporaryDirectory() as folder:
        return _download_settings(store, run, Path(folder))[0]


def redraw(name: str, uri: str | None, output: Path | None, searched: str | None) -> RedrawnFiles:
    """Writes the page of a run, a comparison or a search.

    Args:
        name: A name, a directory, or an id in MLflow.
        uri: The tracking store; None takes the recorded one.
        output: The directory to write into; None takes that of the run or the search.
        searched: The tracking store of the search ``name``, if ``searches/`` has one of that name.

    Raises:
        BadInput: There is nothing of that name.
    """
    if searched is None and (ref := find_run_here(name)) is not None:
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


def _redraw_run_here(ref: RunRef, uri: str | None, output: Path | None) -> RedrawnFiles:
    records, directory = load_records(ref.directory), output or ref.directory
    if records:
        files = RunDirectory(ref.directory)
        experiment, facts = _load_if_readable(files.experiment_yaml), RunFacts.read(files.facts)
        facts = replace(facts, primary=facts.primary or read_tags(ref.directory).get(PRIMARY_TAG, ""))
        names = read_client_names(ref.directory)
        return _write_run(ref.name, records, facts, experiment, names, directory, _find_url(ref))
    identity = read_identity(ref.directory)  # a comparison, or a run without a finished round
    if uri is None:
        check_confirmed(identity.tracking_uri, ref.directory)
    store = Store(uri or identity.tracking_uri)
    run = find_mlflow_run(store, identity.run_id)
    if run is None:
        raise BadInput(f"MLflow at {store.uri} has no run {identity.run_id}, which belongs to {ref.name}")
    return _redraw_from_mlflow(store, run, directory)


def _find_url(ref: RunRef) -> str | None:
    """Finds the page of a run in MLflow; None if MLflow is a file, or if the run does not say where it was recorded."""
    try:
        identity = read_identity(ref.directory)
    except BadInput:
        return None
    return build_run_url(identity.tracking_uri, identity.run_id)


def _load_if_readable(path: Path) -> Experiment | None:
    """Loads the settings of a run; None if there are none, or if another version wrote them."""
    try:
        return load(path)
    except BadInput:
        return None


def _write_run(
    name: str,
    records: Records,
    facts: RunFacts,
    experiment: Experiment | None,
    client_names: ClientNames,
    directory: Path,
    url: str | None,
) -> RedrawnFiles:
    directory.mkdir(parents=True, exist_ok=True)
    files, primary = RunDirectory(directory), facts.primary or None
    alerts = () if experiment is None else find_alerts(experiment, records, client_names=client_names)
    page = build_run_page(
        name,
        records,
        facts,
        experiment=experiment,
        primary=primary,
        url=url,
        client_names=client_names,
        alerts=alerts,
    )
    files.report.write_text(page, encoding="utf-8")
    draw_curves(records, files.curves_plot, find_measure(records, primary).name)
    return RedrawnFiles(page=files.report, files=(files.report, files.curves_plot))


def _redraw_from_mlflow(store: Store, run: Run, directory: Path) -> RedrawnFiles:
    """Draws a run from MLflow, or a comparison from the runs nested in its own."""
    with tempfile.TemporaryDirectory() as folder:
        if run.data.tags.get(KIND_TAG) == "comparison":
            return _redraw_comparison(store, run, directory, Path(folder))
        records, downloaded = read_rounds(store, run), _download_settings(store, run, Path(folder))
        facts, experiment = downloaded
        facts = replace(facts, primary=facts.primary or run.data.tags.get(PRIMARY_TAG, ""))
        names, url = download_client_names(store, run), build_run_url(store.uri, run.info.run_id)
        return _write_run(directory.name, records, facts, experiment, names, directory, url)


def _download_settings(store: Store, run: Run, folder: Path) -> tuple[RunFacts, Experiment | None]:
    """Returns the facts and the settings of a run, as far as MLflow has them."""
    names = RunDirectory(folder)
    for path in (names.facts, names.experiment_yaml):
        download_file(store, run.info.run_id, path.name, folder)
    return RunFacts.read(names.facts), _load_if_readable(names.experiment_yaml)


def _redraw_comparison(store: Store, run: Run, directory: Path, folder: Path) -> RedrawnFiles:
    outcomes: dict[Variant, list[Outcome]] = {}
    primary, facts = None, RunFacts()
    for child in list_children(store, run):
        has_rounds = any(name_in_mlflow(name) in child.data.metrics for name in WITNESSES)
        if ABANDONED_TAG in child.data.tags or not has_rounds:
            continue  # another run has replaced it, or it has no round yet
        params, tags = child.data.params, child.data.tags
        variant = Variant(float(params["regularizer.weight_decay"]), params["regularizer.name"])
        if not outcomes:
            primary, (facts, _) = tags.get(PRIMARY_TAG), _download_settings(store, child, folder)
        alerts = tuple(name for name in tags.get(ALERTS_TAG, "none").split(",") if name != "none")
        stop = tags.get(END_TAG, "") if child.info.status == "FINISHED" else ""
        outcomes.setdefault(variant, []).append(Outcome(read_rounds(store, child), alerts, stop=stop))
    if not outcomes:
        raise BadInput(f"MLflow at {store.uri} has no run of the comparison {run.info.run_id} yet")
    _, experiment = _download_settings(store, run, folder / "parent")
    settings = _parse_compare_settings(run.data.params)
    page = ComparisonPage(
        name=directory.name,
        rows=tuple(build_rows(outcomes, settings, primary)),
        outcomes=outcomes,
        settings=settings,
        facts=replace(facts, command=run.data.tags.get(COMMAND_TAG, "")),
        experiment=experiment,
        notes=tuple(filter(None, run.data.tags.get(IDENTICAL_TAG, "").split("; "))),
        url=build_run_url(store.uri, run.info.run_id),
    )
    directory.mkdir(parents=True, exist_ok=True)
    files = RunDirectory(directory)
    page.write(files.report)
    page.draw(files.comparison_plot)
    return RedrawnFiles(page=files.report, files=(files.report, files.comparison_plot))


def _parse_compare_settings(params: Mapping[str, str]) -> CompareSettings:
    """Reads what was varied from the parameters of a comparison's run, of which MLflow has the text."""
    found = {key: parse_value(text) for key, text in params.items() if key.startswith("compare.") and text != "None"}
    return CompareSettings.model_validate({key.removeprefix("compare."): value for key, value in found.items()})
