"""The pyfunc model for tables. MLflow copies this file into the saved model, so it imports nothing of fednar_ray.

MLflow's own loader for PyTorch converts a DataFrame to float32 first, which loses digits of large numbers, such
as times in seconds since 1970.
"""

from typing import Any

import mlflow.pytorch
import numpy as np
import pandas as pd

MISSING = ("", "?", "NA", "N/A", "NaN", "nan", "null", "NULL")  # as in the files that the model was trained on


class TableModel:
    """Predicts from rows whose columns MLflow has put in the order of the signature."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def predict(self, data: Any, params: dict[str, Any] | None = None) -> Any:
        """Returns one row of outputs per row of ``data``. Missing values may be NaN, None, or one of MISSING."""
        rows = np.stack([_numbers(data[name]) for name in data], axis=1)
        return pd.DataFrame(self._model.predict(rows), index=data.index)

    def get_raw_model(self) -> Any:
        """Returns the PyTorch module."""
        return self._model.get_raw_model()


def _numbers(column: Any) -> Any:
    if column.dtype.kind in "mMc":  # dates, durations and complex numbers, which numpy would convert silently
        raise ValueError(f"column {column.name}: holds {column.dtype}; real numbers are needed")
    if column.dtype.kind not in "biuf":
        missing = [isinstance(cell, str) and cell.strip() in MISSING for cell in column]
        column = column.mask(np.array(missing, dtype=bool), None)
    try:
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {column.name}: {error}; numbers are needed") from None


def _load_pyfunc(path: str, model_config: dict[str, Any] | None = None) -> TableModel:
    """Loads the model. MLflow calls this with the folder of the PyTorch model."""
    return TableModel(mlflow.pytorch._load_pyfunc(path, model_config))
