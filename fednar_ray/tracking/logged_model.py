"""Sends a saved model to MLflow, as a LoggedModel of its run with the metrics of the last round."""

import json
import os
from pathlib import Path

import yaml
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Run
from mlflow.models import Model

from fednar_ray.tracking.arrival import NotAnswered, open_artifacts, read_run
from fednar_ray.tracking.mlflow_metrics import link_metrics, parse_metrics
from fednar_ray.tracking.tags import KIND_TAG, PARENT_TAG, PRIMARY_TAG, RUN_NAME_TAG, SEARCH_TAG

MODEL_NAME = "model"


def send_model(client: MlflowClient, run_id: str, directory: Path, last_round: str | None) -> None:
    """Sends the saved model as a LoggedModel of the run. One that an earlier attempt created is used again.

    Args:
        client: MLflow's client.
        run_id: The MLflow run.
        directory: The saved model.
        last_round: The last line of the journal; None if the run has no rounds.

    Raises:
        FileNotFoundError: The model's description does not exist, or is damaged.
    """
    run = read_run(client, run_id)
    experiment = run.info.experiment_id
    made = client.search_logged_models([experiment], f"source_run_id = '{run_id}' AND name = '{MODEL_NAME}'")
    model = (
        made[0]
        if made
        else client.create_logged_model(experiment, MODEL_NAME, run_id, _choose_model_tags(run), run.data.params)
    )
    if not model.model_id:
        raise NotAnswered(f"asked for a model of run {run_id}, it answered with one without an id")
    linked = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in [output.model_id for output in linked]:
        step = 0 if last_round is None else json.loads(last_round)["round"]
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    if last_round is not None:
        client.log_batch(run_id, metrics=link_metrics(parse_metrics(last_round), run, model.model_id))
    _write_ids(directory, model.model_id, run_id, model.artifact_location)
    open_artifacts(client, model.artifact_location).log_artifacts(str(directory))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _choose_model_tags(run: Run) -> dict[str, str]:
    """Returns the tags of a run's model: the run's name, and what it belongs to."""
    tags = {tag: run.data.tags[tag] for tag in (PARENT_TAG, SEARCH_TAG, KIND_TAG, PRIMARY_TAG) if tag in run.data.tags}
    return {RUN_NAME_TAG: run.info.run_name, **tags}


def _write_ids(directory: Path, model_id: str, run_id: str, location: str) -> None:
    """Writes the ids of the model and the run into the description of a saved model."""
    description = _description(directory / "MLmodel")
    if description.model_id != model_id:
        description.model_id = description.model_uuid = model_id
        description.run_id, description.artifact_path = run_id, location
        description.save(str(directory / "MLmodel.new"))
        os.replace(directory / "MLmodel.new", directory / "MLmodel")


def _description(path: Path) -> Model:
    """Reads the description of a saved model. MLflow's own reader would decode percent signs in the path.

    Raises:
        FileNotFoundError: There is no description, or it is damaged.
    """
    try:
        return Model.from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise FileNotFoundError(f"{path} is damaged: {error}") from error
