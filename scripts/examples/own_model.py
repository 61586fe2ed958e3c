"""Train a torch.nn.Module of your own, and use the trained one.

python scripts/examples/own_model.py
"""

import torch
from torch import Tensor, nn

import fednar_ray as fr


class ConvNet(nn.Module):
    """A small convolutional network for images [n, 1, 8, 8] of ten classes."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1),
            nn.GroupNorm(2, channels),  # group norm, since averaged batch norm statistics suit no client
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Linear(channels * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the logits, [n, 10]."""
        return self.head(self.features(x).flatten(1))


def main() -> None:
    """Trains on the embedded digits, then puts the final parameters back into the module."""
    experiment = fr.Experiment.model_validate(
        {
            "data": {"source": "digits", "partition": {"kind": "dirichlet", "clients": 10, "alpha": 0.5}},
            "model": {"function": "own_model.ConvNet", "arguments": {"channels": 8}},  # this file is the module
            "federation": {"rounds": 10, "local_epochs": 1, "batch_size": 16},
            "algorithm": {"name": "fedavg", "local_lr": 0.2},
            "regularizer": {"name": "fednar", "weight_decay": 0.001, "clip_bound": 1.0},
            "execution": {"placement": "serial"},
        }
    )
    for report in fr.iter_rounds(experiment):  # model=ConvNet() starts from the parameters of a module instead
        print(f"round {report.round_index + 1}: test accuracy {report.metrics['test_accuracy']:.3f}")
    net = ConvNet()
    trained = torch.from_numpy(report.parameters.copy())  # one flat vector, [d] float32
    nn.utils.vector_to_parameters(trained, net.parameters())
    print(f"logits of a blank image: {net(torch.zeros(1, 1, 8, 8)).shape}")


if __name__ == "__main__":
    main()
