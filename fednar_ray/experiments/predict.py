"""Predicts the rows of a table with the model that a run saved."""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn

from fednar_ray.config import Experiment, load
from fednar_ray.config.tables import CsvSettings, TabularSettings, validate_csv
from fednar_ray.core.errors import BadInput, DataError, ModelError, first_line
from fednar_ray.core.fednar_table_schema import TableSchema, read_schema
from fednar_ray.data.sources.prediction_rows import read_frame, read_rows
from fednar_ray.federated.scoring import BATCH
from fednar_ray.models.building import build_model
from fednar_ray.models.weights import load_model
from fednar_ray.tracking.run_directory import RunDirectory
from fednar_ray.tracking.run_lookup import find_run_or_newest

log = logging.getLogger("fednar_ray")

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """The saved model of a run, with what is needed to read new rows for it.

    Attributes:
        model: Takes raw rows [n, columns], and returns outputs [n, o].
        schema: The columns, the task and the names of the classes.
        written: How the run's text files are written, as far as its settings say so.
        run: The name of the run.
    """

    model: nn.Module
    schema: TableSchema
    written: CsvSettings = field(default_factory=CsvSettings)
    run: str = ""

    def predict_file(self, path: Path, written: CsvSettings | None = None, *, skip_bad: bool = False) -> pd.DataFrame:
        """Predicts each row of a file, in order.

        Args:
            path: The file.
            written: How the file is written, if it is text. None: as those of the run.
            skip_bad: Whether rows with a value that does not fit get no prediction, and a warning says why. Otherwise
                one such row is an error.

        Raises:
            DataError: The file does not fit the run.
        """
        read = read_rows(path, self.schema, self.imputes, written or self.written, skip_bad=skip_bad)
        if not read.bad.any():
            return self._predict(read.inputs)
        if read.bad.all():
            raise DataError("\n".join(read.problems))
        log.warning("%d of %d rows get no prediction: %s", read.bad.sum(), len(read.bad), "; ".join(read.problems))
        predicted = self._predict(read.inputs[~read.bad]).set_axis(np.flatnonzero(~read.bad))
        if predicted["prediction"].dtype.kind == "i":
            predicted = predicted.astype({"prediction": "Int64"})  # classes stay whole numbers beside empty cells
        return predicted.reindex(range(len(read.bad)))

    def predict_frame(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Predicts each row of a data frame, in order. Raises DataError if the frame does not fit the run."""
        return self._predict(read_frame(frame, self.schema, self.imputes).inputs).set_axis(frame.index)

    @property
    def imputes(self) -> bool:
        """Whether the model replaces missing values."""
        fill = self.model.state_dict().get("preprocessing.fill")
        return fill is not None and not bool(fill.isnan().any())

    def _predict(self, rows: Numbers) -> pd.DataFrame:
        outputs = np.concatenate([*self._iter_outputs(rows)])
        return pd.DataFrame(self.schema.build_predictions(outputs))

    @torch.no_grad()
    def _iter_outputs(self, rows: Numbers) -> Iterator[Numbers]:
        """Yields the outputs of batches of the size that evaluation uses, [n, o]."""
        for first in range(0, len(rows), BATCH):
            outputs = self.model(torch.from_numpy(rows[first : first + BATCH]))
            yield outputs.numpy().astype(np.float64).reshape(len(outputs), -1)


def load_predictor(run: str | Path) -> Predictor:
    """Loads the saved model of a run that was trained on tables.

    Raises:
        BadInput: There is no such run, it has no model yet, or it was not trained on tables.
    """
    found = find_run_or_newest(str(run))
    files = found.files
    if files.comparison_yaml.exists():
        from fednar_ray.experiments.comparison.record import explain_comparison  # imports matplotlib

        raise BadInput(explain_comparison(found.directory))
    if not files.parameters.exists():
        raise BadInput(f"{found.name}: has no model yet; finish it with fednar run --resume {found.name}")
    if not files.schema.exists():
        raise BadInput(
            f"{found.name}: was not trained on tables with named columns, so predict cannot read rows for it; "
            f"load its model with mlflow.pyfunc.load_model({str(files.model)!r})"
        )
    try:
        schema = read_schema(files.schema)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{files.schema}: is damaged: {first_line(error)}") from None
    experiment = load(files.experiment_yaml)
    written = experiment.data.csv if isinstance(experiment.data, TabularSettings) else CsvSettings()
    return Predictor(model=_load(files, experiment, schema), schema=schema, written=written, run=found.name)


def _load(files: RunDirectory, experiment: Experiment, schema: TableSchema) -> nn.Module:
    """Loads the model from its state dict, which holds nothing but tensors: a run of others executes no code."""
    settings, inputs, outputs = experiment.model, schema.network_inputs, schema.network_outputs
    if settings is None or inputs is None or outputs is None:
        missing = "the sizes of its network are not recorded" if settings else "its model was given in Python"
        raise ModelError(f"{files.path.name}: {missing}; load it with fr.load_model({str(files.path)!r}, network)")
    network = build_model(settings.model_copy(update={"weights": None}), (inputs,), outputs, seed=0)
    return load_model(files.path, network)


def predict(
    run: str | Path, rows: str | Path | pd.DataFrame, csv: Mapping[str, str | None] | None = None
) -> pd.DataFrame:
    """Predicts new rows with the saved model of a run.

    Rows are read like the training files, and preprocessed with the numbers that the run computed. The label may be
    among the columns and is ignored, as is every other column that is not an input.

    Args:
        run: The name, the id or the directory of a finished run on tables, or the name of an experiment, which stands
            for its newest run. A run of a comparison or a search has to be named exactly.
        rows: A table as a .csv, .tsv or .parquet file, or a data frame.
        csv: How a text file is written, with keys of ``data.csv``. None: as the run's ``data.csv`` says. What is not
            given, or null, is detected.

    Returns:
        One row per input row, in order. For classes the columns ``prediction`` and ``probability_<class>``; in
        regression ``prediction``, in the unit of the label.

    Raises:
        BadInput: There is no such run, or the rows do not fit it. The message names file, line and column.

    Examples:
        >>> fr.predict("hospitals", "new_patients.csv")
    """
    predictor = load_predictor(run)
    if isinstance(rows, pd.DataFrame):
        return predictor.predict_frame(rows)
    return predictor.predict_file(Path(rows), None if csv is None else validate_csv(csv, "csv."))
