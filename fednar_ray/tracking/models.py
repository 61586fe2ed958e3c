"""Saves a trained model in MLflow's format."""

import logging
import shutil
import warnings
from collections.abc import Iterator
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

from fednar_ray.core import fednar_table_schema
from fednar_ray.core.errors import RunFailed, first_line
from fednar_ray.core.fednar_table_schema import TableSchema
from fednar_ray.tracking import fednar_table_model

log = logging.getLogger("fednar_ray")


def save_model(
    model: torch.nn.Module, example: npt.NDArray[Any], directory: Path, schema: TableSchema | None = None
) -> None:
    """Writes a model in MLflow's format, with its signature and an example.

    The model is stored as an exported graph (pt2, a format without pickles). If torch.export cannot trace the model,
    it is stored as a pickle.

    Args:
        model: Takes raw inputs [n, …].
        example: Two or more raw inputs, [n, …].
        directory: The directory to write; replaced if it exists.
        schema: The columns of ``example`` [n, columns]. With it, the signature, the example and the pyfunc model use
            tables, and the pyfunc model predicts classes with their probabilities, or a number.

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
    with _quiet(), _without_package_lists():
        try:
            _save(model, directory, schema, serialization_format="pt2", **arguments)
        except Exception as error:  # noqa: BLE001 - torch.export raises many kinds
            log.info("the model is stored as a pickle, since torch.export cannot trace it: %s", error)
            try:
                _save(model, directory, schema, serialization_format="pickle", **arguments)
            except Exception as failure:
                raise RunFailed(f"{directory}: the model cannot be saved: {first_line(failure)}") from failure


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the warnings and messages of torch.export and MLflow about themselves.

    When ``mlflow.pytorch`` is loaded, it gives the root logger a handler and the level ERROR. Both are taken back, so
    that a program sees the warnings that it saw before.
    """
    root, logger = logging.getLogger(), logging.getLogger("mlflow.pyfunc")
    handlers, root_level, level = root.handlers[:], root.level, logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        root.setLevel(root_level)
        root.handlers[:] = handlers


@contextmanager
def _without_package_lists() -> Iterator[None]:
    """Saves MLflow from reading the file lists of all installed packages, which takes seconds, to save two versions.

    It looks there for packages that are not installed under the names of their requirements. Those of ``save_model``
    are. There is no setting for it; where MLflow keeps its lists elsewhere, nothing is changed.
    """
    from mlflow.utils import requirements_utils as mlflow_requirements

    name = "_MODULES_TO_PACKAGES"
    unread = getattr(mlflow_requirements, name, {}) is None
    if unread:
        setattr(mlflow_requirements, name, {})
    try:
        yield
    finally:
        if unread:
            setattr(mlflow_requirements, name, None)


def _save(model: torch.nn.Module, directory: Path, schema: TableSchema | None, **arguments: Any) -> None:
    shutil.rmtree(directory, ignore_errors=True)  # left by an interrupted attempt, or by the run before it was resumed
    if schema is None:
        mlflow.pytorch.save_model(model, directory, **arguments)
        return
    with TemporaryDirectory() as temporary:
        plain = Path(temporary) / "model"
        mlflow.pytorch.save_model(model, plain, **arguments)
        _save_with_schema(plain, directory, schema, **arguments)


def _save_with_schema(
    plain: Path,
    directory: Path,
    schema: TableSchema,
    *,
    signature: ModelSignature,
    input_example: npt.NDArray[Any],
    pip_requirements: list[str],
    serialization_format: str,
) -> None:
    """Saves the PyTorch model in ``plain`` as one that takes tables, with their columns in any order."""
    flavor = Model.load(plain).flavors["pytorch"]
    data = plain / flavor["model_data"]
    schema.write(data / fednar_table_model.SCHEMA)
    inputs = Schema([ColSpec(AnyType(), name) for name in schema.names])  # "double" would refuse whole numbers
    example = schema.build_predictions(np.zeros((1, signature.outputs.inputs[0].shape[-1])))
    outputs = infer_signature(None, pd.DataFrame(example)).outputs
    mlflow.pyfunc.save_model(
        directory,
        loader_module=fednar_table_model.__name__.rpartition(".")[2],
        data_path=str(data),
        code_paths=[str(fednar_table_model.__file__), str(fednar_table_schema.__file__)],
        signature=ModelSignature(inputs, outputs),
        input_example=pd.DataFrame(schema.decode(input_example)),
        pip_requirements=[*pip_requirements, f"pandas=={pd.__version__}"],
    )
    saved = Model.load(directory)
    saved.add_flavor("pytorch", **{**flavor, "model_data": saved.flavors["python_function"]["data"]})
    saved.save(directory / "MLmodel")
