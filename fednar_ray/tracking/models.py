"""Saves a trained model in MLflow's format."""

import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow  # its submodules are loaded on first use, where their warnings are suppressed
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from mlflow.models import Model, ModelSignature, infer_signature
from mlflow.types.schema import AnyType, ColSpec, Schema

from fednar_ray.core.errors import RunFailed, first_line
from fednar_ray.tracking import fednar_table_model

log = logging.getLogger("fednar_ray")


def save_model(
    model: torch.nn.Module, example: npt.NDArray[Any], directory: Path, columns: Sequence[str] | None = None
) -> None:
    """Writes a model in MLflow's format, with its signature and an example.

    The model is stored as an exported graph (pt2, a format without pickles). If torch.export cannot trace the model,
    it is stored as a pickle.

    Args:
        model: Takes raw inputs [n, …].
        example: Two or more raw inputs, [n, …].
        directory: The directory to write; replaced if it exists.
        columns: The names of the columns of ``example`` [n, columns]. With them, the signature, the example and the
            pyfunc model use tables.

    Raises:
        RunFailed: The model cannot be saved in either form.
    """
    with torch.no_grad():
        outputs = model(torch.from_numpy(example)).numpy()
    arguments: dict[str, Any] = {
        "signature": infer_signature(example, outputs),
        "input_example": example,
        "pip_requirements": [f"torch=={torch.__version__.split('+')[0]}", f"numpy=={np.__version__}"],
    }
    with _quiet():
        try:
            _save(model, directory, columns, serialization_format="pt2", **arguments)
        except Exception as error:  # noqa: BLE001 - torch.export raises many kinds
            log.info("the model is stored as a pickle, since torch.export cannot trace it: %s", error)
            try:
                _save(model, directory, columns, serialization_format="pickle", **arguments)
            except Exception as failure:
                raise RunFailed(f"{directory}: the model cannot be saved: {first_line(failure)}") from failure


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the warnings and messages of torch.export and MLflow about themselves."""
    logger = logging.getLogger("mlflow.pyfunc")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _save(model: torch.nn.Module, directory: Path, columns: Sequence[str] | None, **arguments: Any) -> None:
    shutil.rmtree(directory, ignore_errors=True)  # left by an interrupted attempt, or by the run before it was resumed
    if columns is None:
        mlflow.pytorch.save_model(model, directory, **arguments)
        return
    with TemporaryDirectory() as temporary:
        plain = Path(temporary) / "model"
        mlflow.pytorch.save_model(model, plain, **arguments)
        _save_with_columns(plain, directory, columns, **arguments)


def _save_with_columns(
    plain: Path,
    directory: Path,
    columns: Sequence[str],
    *,
    signature: ModelSignature,
    input_example: npt.NDArray[Any],
    pip_requirements: list[str],
    serialization_format: str,
) -> None:
    """Saves the PyTorch model in ``plain`` as one that takes tables, with columns of any number type in any order."""
    flavor = Model.load(plain).flavors["pytorch"]
    inputs = Schema([ColSpec(AnyType(), name) for name in columns])  # "double" would refuse columns of whole numbers
    mlflow.pyfunc.save_model(
        directory,
        loader_module=fednar_table_model.__name__.rpartition(".")[2],
        data_path=str(plain / flavor["model_data"]),
        code_paths=[str(fednar_table_model.__file__)],
        signature=ModelSignature(inputs, signature.outputs),
        input_example=pd.DataFrame(input_example, columns=list(columns)),
        pip_requirements=[*pip_requirements, f"pandas=={pd.__version__}"],
    )
    saved = Model.load(directory)
    saved.add_flavor("pytorch", **{**flavor, "model_data": saved.flavors["python_function"]["data"]})
    saved.save(directory / "MLmodel")
