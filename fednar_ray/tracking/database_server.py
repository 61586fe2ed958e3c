"""What a ``DatabaseProcess`` runs: it reads calls from its standard input until that ends, and answers each of them."""

import gc
import json
import os
import sys
from collections.abc import Mapping, Sequence

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from fednar_ray.core.store_uris import is_database
from fednar_ray.tracking.database_process import MetricValues
from fednar_ray.tracking.quiet import quiet_libraries
from fednar_ray.tracking.store import Store


def serve() -> None:
    """Opens the database, which is created if it is new, and stores batches in it until the parent ends."""
    calls, answers = sys.stdin, sys.stdout
    sys.stdout = sys.stderr  # for what libraries print
    quiet_libraries()
    store = Store(json.loads(calls.readline()))
    if is_database(store.uri):
        store.check()
        gc.freeze()  # as ``SharedSender`` does
        print(json.dumps(True), file=answers, flush=True)
        for line in calls:
            uri, *batch = json.loads(line)
            print(json.dumps(uri == store.uri and _try_to_log(store.client, *batch)), file=answers, flush=True)
    os._exit(0)  # the parent may wait for it


def _try_to_log(
    client: MlflowClient,
    run_id: str,
    metrics: Sequence[MetricValues],
    params: Mapping[str, str],
    tags: Mapping[str, str],
) -> bool:
    """Stores a batch, and returns whether it is stored. After any error the parent repeats the call, and meets it."""
    try:
        client.log_batch(
            run_id,
            metrics=[Metric(*metric) for metric in metrics],
            params=[Param(*param) for param in params.items()],
            tags=[RunTag(*tag) for tag in tags.items()],
        )
    except Exception:  # noqa: BLE001 - MLflow and its database raise many kinds
        return False
    return True
