"""How a search comes into being, on disk and in MLflow: as a whole, or not at all."""

import shutil
from uuid import uuid4

from fednar_ray.config import Document, load_document, yaml_text
from fednar_ray.core.errors import BadInput, TrackingUnavailable
from fednar_ray.tracking.mlflow import Store
from fednar_ray.tracking.searches import parent_run
from fednar_ray.tuning.trial_table import TrialTable


def create_search(document: Document, store: Store, experiment_id: str) -> TrialTable:
    """A new search: its directory first, then its parent run in MLflow.

    A process that is killed here leaves no search, or one that can be resumed.
    """
    name = name_of(document)
    ledger = TrialTable(name=name, tracking_uri=store.uri, experiment_id=experiment_id, search_id=uuid4().hex)
    ledger.create(_as_file(document))
    try:
        add_parent_run(ledger, store)
    except TrackingUnavailable:
        shutil.rmtree(ledger.directory)
        raise
    return ledger


def add_parent_run(ledger: TrialTable, store: Store) -> None:
    """Give the search its parent run in MLflow, unless it has one."""
    if ledger.run_id is None:
        ledger.run_id = parent_run(store, ledger.experiment_id, ledger.name, ledger.search_id)
        ledger.save()


def name_of(document: Document) -> str:
    """The search's name."""
    assert document.search is not None
    return document.search.name or document.experiment.name


def kept_document(ledger: TrialTable) -> Document:
    """The search file of a kept search. Raises BadInput where it is missing."""
    path = ledger.files.search_yaml
    if not path.exists():
        raise BadInput(
            f"{path} is missing, and nothing can be resumed without it; move {path.parent} and start the search again"
        )
    return load_document(path, to_search=True)


def _as_file(document: Document) -> str:
    assert document.search is not None
    search = document.search.model_dump(mode="json", exclude_none=True)
    return yaml_text.write({"experiment": dict(document.raw), "search": search})
