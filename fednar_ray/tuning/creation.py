"""Creates a search on disk and in MLflow: either completely or not at all."""

import shutil
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from fednar_ray.config import Document, load_document, yaml_text
from fednar_ray.core.errors import BadInput, TrackingUnavailable
from fednar_ray.tracking.searches import ensure_parent_run
from fednar_ray.tracking.store import Store
from fednar_ray.tuning.trial_table import TrialTable


def create_search(
    document: Document,
    store: Store,
    experiment_id: str,
    points: Sequence[Mapping[str, Any]] = (),
    pack: int = 1,
    *,
    gpu: bool = False,
) -> TrialTable:
    """Creates a search: first its directory, then its parent run in MLflow.

    A process that is killed on the way leaves either no search or one that can be resumed.

    Args:
        document: The search.
        store: The MLflow store.
        experiment_id: The MLflow experiment of its runs.
        points: Values to try before all others.
        pack: Number of trials that one process trains together.
        gpu: Whether these processes train on GPUs.

    Raises:
        TrackingUnavailable: MLflow does not answer. No directory is left behind.
    """
    name = document.search_name
    table = TrialTable(name=name, tracking_uri=store.uri, experiment_id=experiment_id, search_id=uuid4().hex)
    table.pack, table.gpu, table.points = pack, gpu, [dict(point) for point in points]
    table.create(_to_yaml(document))
    try:
        add_parent_run(table, store)
    except TrackingUnavailable:
        shutil.rmtree(table.directory)
        raise
    return table


def add_parent_run(table: TrialTable, store: Store) -> None:
    """Creates the search's parent run in MLflow, unless it has one."""
    if table.run_id is None:
        table.run_id = ensure_parent_run(store, table.experiment_id, table.name, table.search_id)
        table.save()


def load_search_document(table: TrialTable) -> Document:
    """Loads the search file that the search was started with.

    Raises:
        BadInput: The file is missing.
        ConfigError: The file has settings that this version does not know.
    """
    path = table.files.search_yaml
    if not path.exists():
        raise BadInput(f"{path} is missing, so the search cannot be resumed; move {path.parent} and start it again")
    return load_document(path, to_search=True)


def _to_yaml(document: Document) -> str:
    assert document.search is not None
    search = document.search.model_dump(mode="json", exclude_none=True)
    return yaml_text.write({"experiment": dict(document.raw), "search": search})
