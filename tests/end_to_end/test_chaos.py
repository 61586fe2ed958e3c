"""A node of a real two-node Ray goes down, and nothing is lost. scripts/chaos detects differences between runs."""

import importlib
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import ray
import torch
from mlflow import MlflowClient

import fednar_ray as fr
from fednar_ray.experiments.iter_rounds import build_initial_state, train_rounds
from fednar_ray.experiments.placement import open_pool, plan_execution
from fednar_ray.experiments.prepare import prepare
from tests.conftest import build_small_federation
from tests.support.cluster_nodes import run_in_own_process
from tests.support.stores import create_store

ROOT = Path(__file__).parents[2]

# ---- the loss of a node

SIZES = (7, 30, 12, 3, 21, 9, 16)
HEAD, OTHER, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"  # Ray replaces 127.0.0.1, but no other loopback address
SHORT_HEALTH_CHECKS = {
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 5,  # a killed node refuses each at once; a busy one is slow
    "health_check_timeout_ms": 2000,
    "health_check_initial_delay_ms": 0,
}


class TakesItsNodeDown(torch.nn.Module):
    """A model that kills its raylet and itself while a client trains, once the file ``armed`` exists."""

    def __init__(self, node_id: str, raylet: int, armed: Path) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.node_id, self.raylet, self.armed = node_id, raylet, armed
        self.layers = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.armed.exists() and ray.is_initialized() and ray.get_runtime_context().get_node_id() == self.node_id:
            self.armed.rename(self.armed.with_name("sprung"))
            os.kill(self.raylet, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        return self.layers(x)


def build_experiment(execution: dict[str, Any], **more: Any) -> fr.Experiment:
    return fr.Experiment.model_validate(
        {
            "federation": {"rounds": 6, "local_epochs": 1, "batch_size": 4},
            "algorithm": {"name": "scaffold", "local_lr": 0.1},
            "regularizer": {"name": "fednar", "weight_decay": 0.1, "clip_bound": 0.5},
            "execution": {"gpus_per_actor": 0, "vectorize": 1, **execution},
            **more,
        }
    )


def lose_a_node(folder: Path) -> None:
    """Trains on two nodes. The second goes down in the third round, and another one joins. Prints a summary."""
    from ray.cluster_utils import Cluster

    head = {"node_ip_address": HEAD, "include_dashboard": False, "_system_config": SHORT_HEALTH_CHECKS}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **head})
    lost = cluster.add_node(num_cpus=1, node_ip_address=OTHER)
    ray.init(address=cluster.address, log_to_driver=False)
    armed = folder / "armed"
    model = TakesItsNodeDown(lost.node_id, lost.all_processes["raylet"][0].process.pid, armed)
    settings = build_experiment({"placement": "pooled", "actors": 2, "cpus_per_actor": 1})
    session, prepared = fr.RaySession(), prepare(settings, build_small_federation(SIZES), model)
    resolved = plan_execution(prepared, session)
    with open_pool(prepared, resolved, session) as pool:
        places = [pool.list_actors()]
        for report in train_rounds(prepared, resolved, pool, build_initial_state(prepared)):
            assert not report.exclusions
            if report.round_index == 1:
                armed.touch()
            if report.round_index == 2:
                cluster.add_node(num_cpus=1, node_ip_address=THIRD)
                places.append(pool.list_actors())
    nodes = {node["NodeID"]: (node["NodeManagerAddress"], node["Alive"]) for node in ray.nodes()}
    ray.shutdown()
    cluster.shutdown()
    hosts = [sorted(nodes[place.node_id][0] for place in each) for each in places]
    alive = sorted(address for address, alive in nodes.values() if alive)
    print(json.dumps({"hosts": hosts, "alive": alive, "parameters": report.parameters.tobytes().hex()}))


@pytest.mark.usefixtures("own_ray")
def test_a_run_that_loses_one_of_two_nodes_during_training_gives_the_same_bytes(tmp_path: Path) -> None:
    summary = run_in_own_process(lose_a_node, tmp_path)
    assert (tmp_path / "sprung").exists()
    assert summary["hosts"] == [[HEAD, OTHER], [HEAD, THIRD]]
    assert summary["alive"] == [HEAD, THIRD]
    model = TakesItsNodeDown("", 0, tmp_path / "armed")
    *_, last = fr.iter_rounds(
        build_experiment({"placement": "serial"}), federation=build_small_federation(SIZES), model=model
    )
    assert summary["parameters"] == last.parameters.tobytes().hex()


# ---- what scripts/chaos detects


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Returns its module that compares runs."""
    monkeypatch.syspath_prepend(ROOT / "scripts" / "chaos_runs")
    return importlib.import_module("evidence")


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:sqlalchemy.exc.SADeprecationWarning")
def test_scripts_chaos_distinguishes_runs_by_bytes_history_and_mlflow(
    evidence: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = {"uri": create_store(tmp_path / "mlflow.db")}

    def finished(name: str) -> tuple[Any, Any]:
        """Returns a run in its own working directory, and the result of its command."""
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        settings = build_experiment({"placement": "serial"}, model={"hidden": 4}, tracking=tracking)
        result = fr.run(settings, federation=build_small_federation(SIZES))
        printed = {key: getattr(result, key) for key in ("parameters_sha256", "run_id", "tracking_uri")}
        run = evidence.Run("scaffold", (), folder, tmp_path / f"{name}.log", {})
        return run, evidence.Ended(code=0, out=json.dumps(printed), err="")

    undisturbed = evidence.Undisturbed.of(*finished("undisturbed"))
    run, ended = finished("the same again")
    assert evidence.find_differences(run, ended, undisturbed) == ()
    other = replace(undisturbed, parameters_sha256="0" * 64, history=undisturbed.history[::-1])
    assert evidence.find_differences(run, ended, other) == ("other final bytes", "another history")

    client, run_id = MlflowClient(ended.result["tracking_uri"]), ended.result["run_id"]
    client.log_metric(run_id, "loss/train", 0.5, step=3)
    client.set_terminated(run_id, "FAILED")
    assert evidence.find_differences(run, ended, undisturbed) == (
        "MLflow has 7 points of loss/train, and not the 6 that were recorded",
        "MLflow calls the run FAILED",
    )
    journal = run.directory / "metrics.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))
    assert "another history" in evidence.find_differences(run, ended, undisturbed)
