"""Runs all steps of a client group on a GPU as one CUDA graph, so that a round costs one launch instead of thousands.

It has never been run on a GPU; ``scripts/gpu_check`` does.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fednar_ray.federated.compiler import Program

Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Takes a function of memory that stays where it is; returns what repeats it, and its result, which is overwritten."""


def capture_cuda_graph(function: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Captures a function's kernels as a CUDA graph, after one call of it on another stream, as torch asks for."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return graph.replay, result


class CapturedLoop:
    """The steps of a client group, repeated over memory that stays where it is.

    Args:
        program: Takes one step.
        names: The tensors that it takes, in order.
        unmoved: Those that are the same memory in every round: parameters, examples and constants.
        capture: Captures the loop.
    """

    def __init__(
        self,
        program: Program,
        names: tuple[str, ...],
        unmoved: Mapping[str, Tensor],
        capture: Capture = capture_cuda_graph,
    ) -> None:
        self._program, self._names, self._unmoved, self._capture = program, names, unmoved, capture
        self._memory: dict[int, dict[str, Tensor]] = {}
        self._captured: dict[int, tuple[Callable[[], None], Tensor]] = {}

    def run(self, fixed: Mapping[str, Tensor], each_step: Mapping[str, Tensor], steps: int) -> Tensor:
        """Takes ``steps`` steps and returns their statistics, [K, 4, C]. They are captured once for each K.

        Args:
            fixed: The tensors that are the same in all steps.
            each_step: Those that differ, [K, …].
            steps: K.
        """
        given = {name: each for name, each in {**fixed, **each_step}.items() if name not in self._unmoved}
        if steps not in self._captured:
            params = self._unmoved["params"].clone()
            self._memory[steps] = {name: each.clone() for name, each in given.items()}
            self._captured[steps] = self._capture(lambda: self._loop(self._memory[steps], frozenset(each_step), steps))
            self._unmoved["params"].copy_(params)  # capturing has taken the steps once
        for name, each in given.items():
            self._memory[steps][name].copy_(each)
        repeat, statistics = self._captured[steps]
        repeat()
        return statistics

    def _loop(self, memory: Mapping[str, Tensor], differing: frozenset[str], steps: int) -> Tensor:
        tensors = {**self._unmoved, **memory}
        results: list[Tensor] = []
        for step in range(steps):
            values = [tensors[name][step] if name in differing else tensors[name] for name in self._names]
            results += self._program(values)
        return torch.stack(results)
