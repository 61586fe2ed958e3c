"""The pyfunc model for tables. MLflow copies this file into the saved model, so it imports nothing of fednar_ray.

MLflow's own loader for PyTorch converts a DataFrame to float32 first, which loses digits of large numbers, such
as times in seconds since 1970.
"""

import importlib
from pathlib import Path
from typing import Any

import mlflow  # mlflow.pytorch is loaded on first use
import numpy as np
import pandas as pd

SCHEMA = "columns.json"  # in the folder of the PyTorch model


class TableModel:
    """Predicts from rows with the columns of the schema, in any order.

    Args:
        model: The PyTorch model, which takes the raw matrix.
        schema: The TableSchema of its columns.
    """

    def __init__(self, model: Any, schema: Any) -> None:
        self._model, self._schema = model, schema

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        """Predicts each row of ``data``.

        Args:
            data: A DataFrame. Missing values may be NaN, None, or a text that means missing in files, such as ``?``.
            params: Not used.

        Returns:
            A DataFrame with the same index and the column ``prediction``; for classes also ``probability_<class>``.

        Raises:
            ValueError: A cell does not fit its column, or has a level that the model does not know.
        """
        outputs = np.asarray(self._model.predict(self._schema.encode(data)))
        return pd.DataFrame(self._schema.build_predictions(outputs), index=data.index)

    def get_raw_model(self) -> Any:
        """Returns the PyTorch module."""
        return self._model.get_raw_model()


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> TableModel:
    """Loads the model. MLflow calls this with the folder of the PyTorch model."""
    schema = importlib.import_module("fednar_table_schema").read_schema(Path(path) / SCHEMA)
    return TableModel(mlflow.pytorch._load_pyfunc(path, model_config), schema)
