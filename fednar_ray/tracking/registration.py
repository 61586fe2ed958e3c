"""Registers the models of runs in MLflow's model registry."""

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fednar_ray.core.errors import BadInput, first_line
from fednar_ray.core.metric_names import SPLITS, is_higher_better
from fednar_ray.tracking.mlflow_names import name_in_mlflow
from fednar_ray.tracking.store import Store, raise_as_unavailable
from fednar_ray.tracking.tags import (
    FEDNAR_VERSION_TAG,
    GIT_COMMIT_TAG,
    KIND_TAG,
    NOTE_TAG,
    PARENT_TAG,
    PRIMARY_TAG,
    SEARCH_TAG,
)

LONGEST_MODEL_NAME = 256  # the width of MLflow's column
BEST_ALIAS = "best"  # of the best registered version
DESCRIBING_TAGS = (KIND_TAG, SEARCH_TAG, PARENT_TAG, PRIMARY_TAG, GIT_COMMIT_TAG, FEDNAR_VERSION_TAG)


def register_model(store: Store, run_id: str, name: str) -> int:
    """Registers a run's model as the next version of ``name``, and returns the version.

    The version is described by the run's answer. The alias ``best`` moves to it unless its version is better.

    Args:
        store: The store that has the run.
        run_id: MLflow's id of the run, which has one logged model.
        name: The registered model, which is created if it is new.
    """
    with raise_as_unavailable(store.uri):
        if not _has_registered(store, name):
            store.client.create_registered_model(name)
        run = store.client.get_run(run_id)
        (model,) = run.outputs.model_outputs
        logged = store.client.get_logged_model(model.model_id)
        tags = {tag: run.data.tags[tag] for tag in DESCRIBING_TAGS if tag in run.data.tags}
        version = store.client.create_model_version(
            name,
            logged.artifact_location,
            run_id,
            tags=tags,
            description=_build_description(run),
            model_id=model.model_id,
        )
        if _is_best(store, name, run):
            store.client.set_registered_model_alias(name, BEST_ALIAS, version.version)
    return int(version.version)


def _is_best(store: Store, name: str, run: Run) -> bool:
    """Returns whether a run is as good as that of the version with the alias ``best``, or there is none.

    The primary metric decides: on the validation set if both runs have one, otherwise on the test set.
    """
    current = store.client.get_registered_model(name).aliases.get(BEST_ALIAS)
    primary = run.data.tags.get(PRIMARY_TAG)
    if current is None or primary is None:
        return True
    other = store.client.get_run(store.client.get_model_version(name, current).run_id).data.metrics
    for metric in (name_in_mlflow(f"{split}_{primary}") for split in SPLITS):
        if metric in other and metric in run.data.metrics:
            better = run.data.metrics[metric] - other[metric]
            return bool(better >= 0 if is_higher_better(primary) else better <= 0)
    return True


def check_registration(store: Store, name: str) -> None:
    """Checks before training whether a model can be registered under a name.

    Raises:
        BadInput: MLflow does not accept the name, or the store has no model registry.
        TrackingUnavailable: The store does not answer.
    """
    store.check()
    if len(name) > LONGEST_MODEL_NAME:
        raise BadInput(f"the model's name has {len(name)} characters; MLflow accepts {LONGEST_MODEL_NAME} at most")
    try:
        _has_registered(store, name)
    except Exception as error:
        wrong_name = isinstance(error, MlflowException) and error.error_code == "INVALID_PARAMETER_VALUE"
        what = "does not accept this name" if wrong_name else "cannot register models"
        raise BadInput(f"model name {name!r}: MLflow at {store.uri} {what}: {first_line(error)}") from error


def _has_registered(store: Store, name: str) -> bool:
    """Returns whether the registry has a model of that name."""
    try:
        store.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def _build_description(run: Run) -> str:
    """Returns the answer of a run, without the links of its note, which only work on the run's own page."""
    note: str = run.data.tags.get(NOTE_TAG, "")
    answer = note.partition("\n")[0]
    return "\n\n".join(filter(None, (answer, f"Run {run.info.run_name}, {run.info.run_id}")))
