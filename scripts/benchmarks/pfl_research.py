"""Trains with Apple's pfl-research, started with torchrun, one process per worker; the first one reports."""

import os
import random
import time
from typing import Any

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")

import numpy as np
import torch
import workloads as w


def main() -> None:
    """Runs the benchmark."""
    options = w.parse_arguments(__doc__)
    torch.set_num_threads(1)
    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    random.seed(0)
    np.random.seed(0)  # pfl samples from it
    workload, clients = w.WORKLOADS[options.workload], w.build_clients(options.workload, options.cifar)
    net = w.build_model(workload.model)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            self.train()
            return torch.nn.functional.cross_entropy(self.net(x), y)

        def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
            return {}

    marks: list[float] = []

    class Mark(TrainingProcessCallback):
        def on_train_begin(self, *, model: Any) -> Any:
            marks.append(time.perf_counter())
            return Metrics()

        def after_central_iteration(self, aggregate_metrics: Any, model: Any, *, central_iteration: int) -> Any:
            marks.append(time.perf_counter())
            return False, Metrics()

    module = Net()
    users = {i: Dataset(raw_data=list(clients[i]), user_id=str(i)) for i in range(workload.clients)}
    federated = FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", list(users)))
    FederatedAveraging().run(
        backend=SimulatedBackend(training_data=federated, val_data=None),
        model=PyTorchModel(
            model=module,
            local_optimizer_create=torch.optim.SGD,
            central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
        ),
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=w.WARM_UP + options.rounds,
            evaluation_frequency=10**9,
            train_cohort_size=workload.sampled,
            val_cohort_size=None,
        ),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=w.LR, local_batch_size=workload.batch
        ),
        model_eval_params=None,
        callbacks=[Mark()],
        send_metrics_to_platform=False,
    )
    if int(os.environ.get("RANK", "0")) == 0:
        w.print_report(marks, w.flatten([parameter.detach() for parameter in net.parameters()]), options.parameters)
    sampler = getattr(federated._sample_fn, "_sample_process", None)
    if sampler is not None:
        sampler.terminate()  # it outlives a plain exit
    os._exit(0)


if __name__ == "__main__":
    main()
