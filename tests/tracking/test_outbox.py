"""The outbox on disk: what does not fit is still sent, and what earlier versions wrote is read."""

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from fednar_ray.core.errors import RunFailed
from fednar_ray.tracking.operations import send_operation
from fednar_ray.tracking.outbox import Outbox
from tests.support.journals import limit_disk
from tests.support.stores import create_store

pytestmark = pytest.mark.filterwarnings(  # SQLAlchemy warns about MLflow
    "ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning"
)


def test_operations_that_do_not_fit_into_the_outbox_are_sent_but_not_counted(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.append({"kind": "tags", "tags": {"a": "1"}})
    with limit_disk(room=(tmp_path / "outbox.jsonl").stat().st_size + 10), pytest.raises(RunFailed):
        outbox.append({"kind": "tags", "tags": {"b": "2"}})
    assert [operation and operation["tags"] for operation, _ in outbox.pending] == [{"a": "1"}, {"b": "2"}]
    outbox.acknowledge(operations=2, rounds=0)
    outbox.append({"kind": "tags", "tags": {"c": "3"}})
    outbox.close()
    again = Outbox(tmp_path)
    assert [operation and operation["tags"] for operation, _ in again.pending] == [{"c": "3"}]
    again.close()


def test_a_data_set_that_an_earlier_version_left_is_sent_as_that_version_would_have(tmp_path: Path) -> None:
    """It knew neither the schema nor what a data set is used for, and called each one that of training."""
    line = {"kind": "data", "name": "digits", "digest": "0a1b", "profile": {"clients": 4}}
    (tmp_path / "outbox.jsonl").write_text(json.dumps(line) + "\n")
    outbox = Outbox(tmp_path)
    ((operation, _),) = outbox.pending
    outbox.close()
    assert operation is not None
    client = MlflowClient(create_store(tmp_path / "m.db"))
    run_id = client.create_run(client.create_experiment("e")).info.run_id
    send_operation(client, run_id, tmp_path, operation, lambda: None)
    (given,) = client.get_run(run_id).inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest, given.dataset.schema) == ("digits", "0a1b", None)
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]
