"""Finds the page of MLflow's UI that shows a run, a comparison, a search or an experiment."""

import re
from dataclasses import dataclass

from fednar_ray.core.errors import BadInput
from fednar_ray.tracking.addresses import check_confirmed
from fednar_ray.tracking.identity import read_identity
from fednar_ray.tracking.reading import Run, find_mlflow_run, iterate_pages
from fednar_ray.tracking.run_lookup import RunRef, find_run_here
from fednar_ray.tracking.run_views import RUNS_KEY, VIEW_TAG_PREFIX, build_page_path, get_view_key
from fednar_ray.tracking.searches import find_search_run
from fednar_ray.tracking.store import Store, raise_as_unavailable

RUN_ID = re.compile("[0-9a-f]{32}")
LISTED_EXPERIMENTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class UiPage:
    """A page of MLflow's UI.

    Attributes:
        store: The tracking store that has it.
        path: The path of the page, from the address of the server.
        what: What the page shows, in words.
        answer: The path of the page with the note of a comparison or a search; None for others.
    """

    store: Store
    path: str
    what: str
    answer: str | None = None


def find_page(name: str, uri: str | None, searched: str | None) -> UiPage:
    """Finds the page of a name: of a run or comparison here, of a search, of an experiment, or of an id in MLflow.

    Args:
        name: The name, the directory, or the id of a run.
        uri: The tracking store; None takes the recorded one.
        searched: The tracking store of the search ``name``, if ``searches/`` has one of that name.

    Raises:
        BadInput: There is nothing of that name.
        TrackingUnavailable: The store does not answer.
    """
    ref = None if searched is not None else find_run_here(name)
    store = Store(uri or searched or (None if ref is None else _read_confirmed_uri(ref)))
    store.check()
    run_id = read_identity(ref.directory).run_id if ref is not None else name if RUN_ID.fullmatch(name) else None
    run = find_search_run(store, name) if run_id is None else find_mlflow_run(store, run_id)
    return _find_experiment_page(store, name) if run is None else _build_run_page(store, run, name)


def _read_confirmed_uri(ref: RunRef) -> str:
    uri = read_identity(ref.directory).tracking_uri
    check_confirmed(uri, ref.directory)
    return uri


def _build_run_page(store: Store, run: Run, name: str) -> UiPage:
    experiment_id, run_id = run.info.experiment_id, run.info.run_id
    view, own = get_view_key(run.data.tags, run_id), build_page_path(experiment_id, run_id=run_id)
    if view is None or not _has_view(store, experiment_id, view):
        return UiPage(store=store, path=own, what=f"the run {name}")
    children = build_page_path(experiment_id, view=view)
    return UiPage(store=store, path=children, what=f"the runs of {name}, best first", answer=own)


def _find_experiment_page(store: Store, name: str) -> UiPage:
    with raise_as_unavailable(store.uri):
        found = store.client.get_experiment_by_name(name)
        known = [each.name for each in iterate_pages(lambda token: store.client.search_experiments(page_token=token))]
    if found is None:
        names = ", ".join(known[:LISTED_EXPERIMENTS]) or "none"
        raise BadInput(f"{name}: no such run, comparison, search or experiment; experiments in {store.uri}: {names}")
    view = RUNS_KEY if VIEW_TAG_PREFIX + RUNS_KEY in found.tags else None
    path = build_page_path(found.experiment_id, view=view)
    return UiPage(store=store, path=path, what=f"the runs of the experiment {name}")


def _has_view(store: Store, experiment_id: str, view: str) -> bool:
    with raise_as_unavailable(store.uri):
        return VIEW_TAG_PREFIX + view in store.client.get_experiment(experiment_id).tags
