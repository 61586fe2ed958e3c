"""The rounds of a journal as metrics of MLflow."""

import json
from collections.abc import Sequence

from mlflow.entities import Metric, Run

from fednar_ray.tracking.mlflow_names import name_in_mlflow
from fednar_ray.tracking.tags import CONTEXT_TAG, TRAINING


def parse_metrics(line: str) -> list[Metric]:
    """Returns the metrics in a line of the journal, without those that are not finite."""
    fields = json.loads(line)
    finite = ((name, value) for name, value in fields["metrics"].items() if value is not None)
    return [Metric(name_in_mlflow(name), value, fields["time"], fields["round"]) for name, value in finite]


def link_metrics(metrics: Sequence[Metric], run: Run, model_id: str) -> list[Metric]:
    """Returns metrics as those of a model, and of the data set that they were measured on, if the run has it."""
    data = {
        tag.value: {"dataset_name": each.dataset.name, "dataset_digest": each.dataset.digest}
        for each in (run.inputs.dataset_inputs if run.inputs else ())
        for tag in each.tags
        if tag.key == CONTEXT_TAG
    }
    of_split = (data.get(metric.key.rpartition("/")[2].replace("train", TRAINING), {}) for metric in metrics)
    return [
        Metric(each.key, each.value, each.timestamp, each.step, model_id=model_id, **about)
        for each, about in zip(metrics, of_split, strict=True)
    ]
