"""Train with a federated optimizer of your own: FedProx's pull on clients, Nesterov's momentum on the server.

python scripts/examples/own_algorithm.py
"""

import numpy as np

import fednar_ray as fr
from fednar_ray.algorithms.client_corrections import proximal
from fednar_ray.algorithms.presets import Algorithm
from fednar_ray.algorithms.server_optimizers import RoundAggregate, ServerOptimizer, ServerState


def nesterov(mu: float = 0.01, beta: float = 0.5) -> Algorithm:
    """Builds the algorithm. A configuration names this function, so searches can vary its arguments.

    Args:
        mu: FedProx's μ, how strongly a client is pulled to the start of the round.
        beta: The momentum's β.
    """

    def init(start: np.ndarray) -> ServerState:
        return ServerState(parameters=start, vectors={"m": np.zeros_like(start)})

    def step(state: ServerState, aggregate: RoundAggregate) -> ServerState:
        m = aggregate.delta + np.float32(beta) * state.vectors["m"]
        moved = state.parameters + aggregate.delta + np.float32(beta) * m
        return ServerState(parameters=moved, vectors={"m": m}, server_lr=1.0)

    return Algorithm(proximal(mu), ServerOptimizer(init, step, lambda state: state.parameters))


def main() -> None:
    """Trains the embedded digits with it."""
    experiment = fr.Experiment.model_validate(
        {
            "data": {"source": "digits", "partition": {"kind": "dirichlet", "clients": 20, "alpha": 0.3}},
            "model": {"name": "mlp"},
            "federation": {"rounds": 15, "clients_per_round": 10, "local_steps": 20, "batch_size": 16},
            "algorithm": {"function": "own_algorithm:nesterov", "arguments": {"beta": 0.5}, "local_lr": 0.1},
            "execution": {"placement": "serial"},
        }
    )
    for report in fr.iter_rounds(experiment):
        print(f"round {report.round_index + 1}: test accuracy {report.metrics['test_accuracy']:.3f}")


if __name__ == "__main__":
    main()
