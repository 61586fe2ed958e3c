"""What fits into one call of MLflow."""

from typing import Any

from mlflow.entities import Metric

from fednar_ray.tracking.batch import METRICS_PER_CALL, TEXTS_PER_CALL, Batch


def build_params(count: int, first: int = 0) -> dict[str, Any]:
    return {"kind": "params", "params": {f"p{index}": "1" for index in range(first, first + count)}}


def build_round(metrics: int) -> list[Metric]:
    return [Metric(f"m{index}", 1.0, 0, 0) for index in range(metrics)]


def test_operations_share_a_batch_up_to_mlflows_limits() -> None:
    batch = Batch()
    assert batch.add(build_params(TEXTS_PER_CALL - 1))
    assert not batch.add(build_params(2, first=TEXTS_PER_CALL))
    assert batch.add({"kind": "tags", "tags": {"a": "1"}})
    assert batch.add({"kind": "tags", "tags": {"a": "2"}})
    assert batch.add({"kind": "metrics", "metrics": {"cost": 3.0}, "step": 0, "time": 7})
    assert not batch.add({"kind": "file", "path": "experiment.yaml"})
    assert (len(batch.params), batch.tags, batch.metrics) == (99, {"a": "2"}, [Metric("cost", 3.0, 7, 0)])


def test_a_parameter_that_is_there_twice_is_left_to_mlflow_to_refuse() -> None:
    batch = Batch.of(build_params(1))
    assert not batch.add({"kind": "params", "params": {"p0": "2"}})
    assert batch.params == {"p0": "1"}


def test_a_batch_is_full_when_the_next_round_does_not_fit() -> None:
    batch = Batch()
    assert batch.add_round(build_round(METRICS_PER_CALL - 10))
    assert not batch.add_round(build_round(11))
    assert batch.add_round(build_round(10))
    assert not batch.add({"kind": "tags", "tags": {"a": "1"}})


def test_a_round_that_exceeds_the_limit_alone_is_left_to_mlflow_to_split() -> None:
    assert Batch().add_round(build_round(METRICS_PER_CALL + 1))
