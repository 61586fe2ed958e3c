"""Trains with Flower's Ray simulation and its Message API.

The client's work is in this importable module, because Flower pickles its app with every message.
"""

import logging
import os
import time
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch
import workloads as w

MODELS: dict[str, torch.nn.Module] = {}  # one per process, reused


def train_client(message: Any, context: Any) -> Any:
    """Trains the client that this message addresses."""
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    name, cifar = message.content["config"]["workload"], message.content["config"]["cifar"] or None
    workload, clients = w.WORKLOADS[name], w.build_clients(name, cifar)
    if name not in MODELS:
        torch.set_num_threads(1)
        MODELS[name] = w.build_model(workload.model)
    model = MODELS[name]
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    w.train_locally(model, *clients[int(context.node_config["partition-id"])], workload)
    metrics = MetricRecord({"num-examples": workload.rows})
    return Message(
        content=RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message
    )


def build_apps(options: Any, marks: list[float], final: list[Any]) -> tuple[Any, Any]:
    """Builds the client app and the server app."""
    from flwr.app import ArrayRecord, ConfigRecord
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg

    client, server = ClientApp(), ServerApp()
    workload = w.WORKLOADS[options.workload]

    @client.train()
    def train(message: Any, context: Any) -> Any:
        import flower

        return flower.train_client(message, context)

    @server.main()
    def main(grid: Any, context: Any) -> None:
        strategy = FedAvg(
            fraction_train=workload.sampled / workload.clients,
            fraction_evaluate=0.0,
            min_train_nodes=workload.sampled,
            min_available_nodes=workload.clients,
        )
        result = strategy.start(
            grid=grid,
            initial_arrays=ArrayRecord(w.build_model(workload.model).state_dict()),
            num_rounds=w.WARM_UP + options.rounds,
            train_config=ConfigRecord({"workload": options.workload, "cifar": str(options.cifar or "")}),
            evaluate_fn=lambda number, arrays: marks.append(time.perf_counter()),  # also before round 1
        )
        final.extend(result.arrays.to_torch_state_dict().values())

    return client, server


def main() -> None:
    """Runs the benchmark."""
    options = w.parse_arguments(__doc__)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    from flwr.simulation import run_simulation

    marks: list[float] = []
    final: list[Any] = []
    client, server = build_apps(options, marks, final)
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=w.WORKLOADS[options.workload].clients,
        backend_config={
            "init_args": {"num_cpus": options.workers, "include_dashboard": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
    w.print_report(marks, w.flatten(final), options.parameters)


if __name__ == "__main__":
    main()
