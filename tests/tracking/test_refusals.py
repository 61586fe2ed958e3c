"""Which errors of MLflow are refusals."""

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from fednar_ray.tracking.refusals import is_refusal
from tests.support.stores import create_store

pytestmark = pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)


def test_a_value_that_contradicts_the_database_is_a_refusal(tmp_path: Path) -> None:
    """A damaged journal may hold another value of a metric that MLflow has; sending it again cannot help."""
    client = MlflowClient(create_store(tmp_path / "m.db"))
    run_id = client.create_run(client.create_experiment("e")).info.run_id
    model_id = client.create_logged_model(client.get_run(run_id).info.experiment_id, source_run_id=run_id).model_id
    client.log_batch(run_id, [Metric("a", 1.0, 1, 0, model_id=model_id)])
    with pytest.raises(MlflowException) as caught:
        client.log_batch(run_id, [Metric("a", 2.0, 1, 0, model_id=model_id)])
    assert is_refusal(caught.value)
