"""The loop that is captured on a GPU works on memory that stays where it is; here a plain call stands for the graph."""

from collections.abc import Callable

import torch
from torch import Tensor

from fednar_ray.federated.captured_loop import CapturedLoop


def test_repeating_the_captured_loop_takes_the_steps_of_new_rounds() -> None:
    captured: list[int] = []

    def capture(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        result = function()
        captured.append(len(result))

        def repeat() -> None:
            result.copy_(function())  # as a graph overwrites its result

        return repeat, result

    def step(tensors: list[Tensor]) -> list[Tensor]:
        params, index, factor = tensors
        params.add_(factor * index)
        return [params.clone()]

    params = torch.zeros(2)
    loop = CapturedLoop(step, ("params", "index", "factor"), {"params": params}, capture)
    for steps, factor in ((3, 1.0), (3, 10.0), (2, 2.0), (3, 5.0)):
        index, scale = torch.arange(1.0, steps + 1), torch.tensor(factor)
        params.fill_(0.5)
        statistics = loop.run({"params": params, "factor": scale}, {"index": index}, steps)
        wanted = 0.5 + factor * index.cumsum(0)
        assert torch.equal(statistics, wanted.unsqueeze(1).expand(-1, 2))
        assert torch.equal(params, wanted[-1].expand(2))
    assert captured == [3, 2]  # once for each number of steps
