"""Takes the local steps of client groups by one compiled program per step."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fednar_ray.algorithms.client_corrections import LocalRound
from fednar_ray.core.errors import CompilationFailed, InconsistentModel, first_line
from fednar_ray.core.flat_params import ParameterLayout
from fednar_ray.core.module_state import GivenState, copy_with_leaf_parameters
from fednar_ray.core.schedules import RoundScalars
from fednar_ray.core.transfers import on_device
from fednar_ray.data.batches import BatchPlan
from fednar_ray.data.transforms import Transform
from fednar_ray.federated.captured_loop import CapturedLoop
from fednar_ray.federated.compiler import Program, compile_function
from fednar_ray.federated.gradients import ROUNDING, compute_distance
from fednar_ray.federated.local_steps import StepSums
from fednar_ray.federated.step_function import CONSTANT, SHARED, build_step_function, list_constants
from fednar_ray.federated.training_plan import TrainingPlan

EACH_STEP = ("index", "weights", "rate", "moves", "keys")
"""The tensors of a step function that differ from step to step."""
OF_SHARDS = ("x", "y")


class CompiledSteps:
    """The local steps of client groups of at most C clients, C of ``plan.program``: smaller groups get empty rows.

    So one program serves every group of a run, and a client's result does not depend on its group.
    """

    def __init__(self, plan: TrainingPlan, layout: ParameterLayout, device: torch.device) -> None:
        assert plan.program is not None
        self._plan, self._shape, self._device = plan, plan.program, device
        self.module = copy_with_leaf_parameters(plan.model).to(device).train()
        self.given = GivenState(self.module)
        self.params = torch.zeros(self._shape.height, layout.dimension, device=device)
        self._constants = {CONSTANT + name: each for name, each in list_constants(self.module).items()}
        self._layout = layout
        self._names: tuple[str, ...] = ()
        self._program: Program | None = None
        self._captured: CapturedLoop | None = None  # on a GPU

    def prepare(self, batches: BatchPlan) -> None:
        """Compiles or loads the program, for batches of this form. Raises CompilationFailed if that fails."""
        if self._program is not None:
            return
        empty = LocalRound(
            global_params=self.params[0].clone(),
            shared={name: self.params[0].clone() for name in self._plan.correction.shared},
            state=self.params.clone() if self._plan.correction.next_state else self.params[:, :0],
            local_lr=0.0,
        )
        scalars = RoundScalars(local_lr=0.0, weight_decay=0.0, clip_bound=1.0, epsilon=0.0)
        steps = np.zeros(self._shape.height, dtype=np.int64)
        fixed, each_step = self._build_tensors(batches, steps, empty, scalars)
        tensors = fixed | {name: parts[0] for name, parts in each_step.items()}
        for name in OF_SHARDS:  # two examples stand for any number of them
            tensors[name] = tensors[name].new_zeros(2, *tensors[name].shape[1:])
        tensors["index"] = torch.zeros_like(tensors["index"])
        names = tuple(tensors)
        step = build_step_function(self._plan, self.module, self._layout, batches.transform)
        open_rows = frozenset(map(names.index, OF_SHARDS))
        try:
            self._program = compile_function(
                lambda *values: step(dict(zip(names, values, strict=True))), list(tensors.values()), open_rows
            )
        except Exception as error:
            text = f"the local step cannot be compiled: {type(error).__name__}: {first_line(error, 200)}"
            raise CompilationFailed(f"{text}; train without: execution.compile=off") from error
        self._names = names
        if self._device.type == "cuda":
            unmoved = {"params": self.params, "x": batches.x, "y": batches.y, **self._constants}
            self._captured = CapturedLoop(self._program, names, unmoved)

    def take(
        self,
        batches: BatchPlan,
        steps: npt.NDArray[np.int64],
        local_round: LocalRound,
        scalars: RoundScalars,
        *,
        verify: bool = False,
    ) -> StepSums:
        """Takes the steps of a group of n clients, which changes the first n rows of ``params``.

        Args:
            batches: The group's batches, of the shape ``plan.program``.
            steps: K_i of each client, [n].
            local_round: What the correction reads.
            scalars: η_t, λ_t and A_t.
            verify: Whether the first step is compared with one by the module's own forward.

        Raises:
            InconsistentModel: They differ by more than rounding.
            CompilationFailed: The step cannot be compiled.
        """
        self.prepare(batches)
        assert self._program is not None
        clients = len(steps)
        taken = np.zeros(self._shape.height, dtype=np.int64)
        taken[:clients] = steps
        fixed, each_step = self._build_tensors(batches, taken, local_round, scalars)
        if verify:
            self._verify(fixed | {name: parts[0] for name, parts in each_step.items()}, batches.transform)
        run = self._loop if self._captured is None else self._captured.run
        return StepSums.of(run(fixed, each_step, int(steps.max()))[:, :, :clients], steps)

    def _loop(self, fixed: Mapping[str, Tensor], each_step: Mapping[str, Tensor], steps: int) -> Tensor:
        """Takes the steps one after the other, and returns their statistics, [K, 4, C]."""
        assert self._program is not None
        values = [fixed.get(name, self.params) for name in self._names]
        places = [(self._names.index(name), parts.unbind(0)) for name, parts in each_step.items()]
        statistics: list[Tensor] = []
        for step in range(steps):
            for place, parts in places:
                values[place] = parts[step]
            statistics += self._program(values)
        return torch.stack(statistics)

    def _verify(self, tensors: dict[str, Tensor], transform: Transform | None) -> None:
        assert self._program is not None
        wanted, got = self.params.clone(), self.params.clone()
        build_step_function(self._plan, self.module, self._layout, transform)(tensors | {"params": wanted})
        self._program([(tensors | {"params": got})[name] for name in self._names])
        off = compute_distance(got - self.params, wanted - self.params)
        if off > ROUNDING:
            raise InconsistentModel(
                f"{type(self.module).__name__}: a compiled step differs by {off:.2g} of its length from one by the "
                "model's own forward; train without compiling: execution.compile=off"
            )

    def _build_tensors(
        self,
        batches: BatchPlan,
        steps: npt.NDArray[np.int64],
        local_round: LocalRound,
        scalars: RoundScalars,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the tensors that are the same in all steps, and those that differ, [K, …]."""
        column = self.params.new_empty(len(steps), 1)
        taken = np.arange(max(int(steps.max()), 1))[:, None, None] < steps[:, None]
        rates = on_device(taken.astype(np.float32) * np.float32(scalars.local_lr), self._device)
        each_step = {
            "index": batches.index,
            "weights": batches.weights,
            "rate": rates,
            **({} if batches.moves is None else {"moves": batches.moves}),
            **({} if batches.keys is None else {"keys": batches.keys}),
        }
        fixed = {
            "params": self.params,
            "x": batches.x,
            "y": batches.y,
            "weight_decay": column.clone().fill_(scalars.weight_decay),
            "clip_bound": column.clone().fill_(scalars.clip_bound),
            "global_params": local_round.global_params,
            "state": _add_rows(local_round.state, len(steps)),
            **{SHARED + name: vector for name, vector in local_round.shared.items()},
            **self._constants,
        }
        return fixed, each_step


def _add_rows(rows: Tensor, height: int) -> Tensor:
    """Returns [n, d] with rows of zeros added, [height, d]."""
    missing = height - len(rows)
    return torch.cat([rows, rows.new_zeros(missing, rows.shape[1])]) if missing else rows
