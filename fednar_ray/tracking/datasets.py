"""Data sets as MLflow shows them among a run's inputs: name, digest, size, columns, and what they are used for."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from mlflow.data.schema import TensorDatasetSchema
from mlflow.types.schema import ColSpec, DataType, Schema, TensorSpec

from fednar_ray.tracking.tags import TRAINING

COLUMN_TYPES = {
    "number": DataType.double,
    "boolean": DataType.boolean,
    "date": DataType.datetime,
    "category": DataType.string,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSummary:
    """Describes a data set.

    Attributes:
        name: The name of the federation's data.
        digest: Identifies the examples.
        clients: Number of clients that hold them.
        examples: Number of examples.
        input_shape: Of one example.
        classes: Number of classes; 1 in regression.
        context: What it is used for: training, validation or test.
        input_type: The NumPy type of the inputs.
        columns: The kind of each column of a table by name, in order; empty if inputs have no named columns.
        label: The name of the label's column.
    """

    name: str
    digest: str
    clients: int
    examples: int
    input_shape: tuple[int, ...]
    classes: int
    context: str = TRAINING
    input_type: str = "float32"
    columns: tuple[tuple[str, str], ...] = ()
    label: str | None = None

    def build_fields(self) -> dict[str, Any]:
        """Returns the fields of an outbox operation."""
        profile = {"clients": self.clients, "examples": self.examples, "classes": self.classes}
        schema = json.dumps(self._build_schema())
        return {
            "name": self.name, "digest": self.digest, "profile": profile, "context": self.context, "schema": schema
        }  # fmt: skip

    def _build_schema(self) -> dict[str, Any]:
        labels = "float32" if self.classes == 1 else "int64"
        if self.columns:
            specs = [ColSpec(COLUMN_TYPES[kind], name) for name, kind in self.columns]
            target = [] if self.label is None else [ColSpec(DataType.string, self.label)]
            return {"mlflow_colspec": Schema([*specs, *target]).to_dict()}
        features = Schema([TensorSpec(np.dtype(self.input_type), (-1, *self.input_shape), "inputs")])
        targets = Schema([TensorSpec(np.dtype(labels), (-1,), "labels")])
        found: dict[str, Any] = TensorDatasetSchema(features, targets).to_dict()
        return found
