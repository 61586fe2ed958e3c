"""Draws the random numbers of a model's layers at addresses: seed, round, client, local step, call and element.

A number follows from its address alone. So a client's dropout masks are the same in a client group of any size, in a
traced or compiled program, on any device, and after a resume. The generator is SplitMix64 as a counter: it needs only
operations on 64-bit integers, which are exact everywhere.

Source: Steele, Lea and Flood, *Fast Splittable Pseudorandom Number Generators*, OOPSLA 2014 (the mixing function).
"""

from collections.abc import Callable, Mapping, Sequence
from math import pi
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fednar_ray.core.random import Purpose, torch_seed
from fednar_ray.federated.recorder import EagerMode

STEP, CALL, SECOND = (-0x61C8864680B583EB, -0x4B47D0C5F6C9A1D5, -0x2545F4914F6CDD1D)
"""Odd numbers by which steps and elements, calls, and second draws of one element are told apart."""
FACTORS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)
"""The factors of SplitMix64's mixing function, 0xBF58476D1CE4E5B9 and 0x94D049BB133111EB, as signed integers."""


class UnaddressedDraw(RuntimeError):
    """A layer draws random numbers by an operator that has no row in ``DRAWS``."""


def build_keys(
    seed: int, round_index: int, client_ids: Sequence[int], steps: int, height: int | None = None
) -> npt.NDArray[np.int64]:
    """Returns the keys of a client group's local steps, [K, C, 1].

    Args:
        seed: The experiment's seed.
        round_index: The round, from 0.
        client_ids: The clients of the group.
        steps: K, the largest number of steps of a client. Fewer steps give the first rows of the same keys.
        height: C, if it is larger than the number of clients; the keys of further rows are 0.
    """
    words = [torch_seed(seed, Purpose.LAYERS, round_index=round_index, client_id=each) for each in client_ids]
    clients = np.zeros(height or len(words), dtype=np.uint64)
    clients[: len(words)] = words
    counters = np.arange(1, steps + 1, dtype=np.uint64) * np.uint64(STEP & (2**64 - 1))
    keys = torch.from_numpy((counters[:, None] + clients).view(np.int64))
    return _mix(keys).unsqueeze(-1).numpy()


class AddressedDraws(EagerMode):
    """Replaces the random numbers that operators draw inside by those at the addresses of one local step.

    Args:
        keys: The keys of the step's clients, [C, 1]. Rows of whatever is drawn are the clients, as ``torch.func.vmap``
            orders them; with a single key all that is drawn belongs to its client.

    Raises:
        UnaddressedDraw: An operator without a row in ``DRAWS`` draws, or the backward pass does.
    """

    def __init__(self, keys: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._keys = keys
        self._calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        draw = find_draw(func, args, kwargs)
        if draw is None:
            raise UnaddressedDraw(f"{func.overloadpacket.__name__} draws random numbers that have no address")
        if torch._C._current_graph_task_id() != -1:
            raise UnaddressedDraw("the backward pass draws random numbers, as recomputed activations do")
        self._calls += 1
        return draw(self, *args, **kwargs)

    def draw_uniform(self, like: Tensor, second: int = 0) -> Tensor:
        """Returns uniform numbers in [0, 1) of the shape and on the device of ``like``, 24 bits each."""
        # the multiplication makes integers that are exact in float32
        bits = (self._draw_bits(like, second) >> 40).bitwise_and(2**24 - 1)
        return bits.to(torch.float32).mul(2.0**-24)

    def draw_normal(self, like: Tensor) -> Tensor:
        """Returns standard normal numbers of the shape of ``like`` (Box-Muller)."""
        radius = (-2 * torch.log1p(-self.draw_uniform(like))).sqrt()
        return radius.mul(torch.cos(2 * pi * self.draw_uniform(like, SECOND)))

    def _draw_bits(self, like: Tensor, second: int) -> Tensor:
        rows = len(self._keys)
        keys = _mix(self._keys + (self._calls * CALL + second + 2**63) % 2**64 - 2**63)
        # not keys + counters·STEP, in which torch's compiler finds numbers beyond 64 bits and fails
        counters = keys + torch.arange(1, like.numel() // rows + 1, device=like.device)
        return _mix(counters * STEP).view(like.shape)


def _mix(values: Tensor) -> Tensor:
    """Returns SplitMix64's mixture of 64-bit integers: each bit of a value decides about half of the result's bits."""
    for shift, factor in zip((30, 27), FACTORS, strict=True):
        values = values.bitwise_xor(_shift(values, shift)).mul(factor)
    return values.bitwise_xor(_shift(values, 31))


def _shift(values: Tensor, bits: int) -> Tensor:
    """Shifts to the right and fills with zeros, where torch repeats the sign."""
    return torch.bitwise_right_shift(values, bits).bitwise_and(2 ** (64 - bits) - 1)


def find_draw(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[..., Any] | None:
    """Returns what draws the numbers of an operator at addresses; None if nothing does, or it has its own generator."""
    if kwargs.get("generator") is not None or any(isinstance(each, torch.Generator) for each in args):
        return None
    return DRAWS.get(func)


def _make(size: Sequence[int], dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return torch.empty(size, dtype=dtype or torch.get_default_dtype(), device=device)


def _like(x: Tensor, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return torch.empty(x.shape, dtype=dtype or x.dtype, device=device or x.device)


def _uniform(draws: AddressedDraws, out: Tensor, low: float = 0.0, high: float = 1.0, **_: Any) -> Tensor:
    return (low + (high - low) * draws.draw_uniform(out)).to(out.dtype)


def _normal(draws: AddressedDraws, out: Tensor, mean: Any = 0.0, std: Any = 1.0, **_: Any) -> Tensor:
    return draws.draw_normal(out).mul(std).add(mean).to(out.dtype)


def _exponential(draws: AddressedDraws, out: Tensor, rate: float = 1.0, **_: Any) -> Tensor:
    # 1 - u is never 0, and u = 0 gives the smallest positive number, as a layer may take its logarithm
    return (-torch.log1p(-draws.draw_uniform(out)) / rate).clamp(min=2.0**-26).to(out.dtype)


def _bernoulli(draws: AddressedDraws, out: Tensor, p: Any = 0.5, **_: Any) -> Tensor:
    return draws.draw_uniform(out).lt(p).to(out.dtype)


def _integers(draws: AddressedDraws, out: Tensor, low: int, high: int) -> Tensor:
    return (low + (draws.draw_uniform(out).double() * (high - low)).floor()).to(out.dtype)


def _native_dropout(draws: AddressedDraws, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    kept = draws.draw_uniform(x) >= (p if train is not False else 0.0)
    return x * kept / (1 - p) if train is not False and p < 1 else x * kept, kept


def _write(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns a draw for an operator that overwrites its first argument."""
    return lambda draws, x, *args, **kwargs: x.copy_(draw(draws, x, *args, **kwargs))


_aten = torch.ops.aten

DRAWS: Mapping[Any, Callable[..., Any]] = {
    _aten.rand.default: lambda draws, size, **how: _uniform(draws, _make(size, **how)),
    _aten.rand_like.default: lambda draws, x, **how: _uniform(draws, _like(x, **how)),
    _aten.uniform_.default: _write(_uniform),
    _aten.randn.default: lambda draws, size, **how: _normal(draws, _make(size, **how)),
    _aten.randn_like.default: lambda draws, x, **how: _normal(draws, _like(x, **how)),
    _aten.normal_.default: _write(_normal),
    _aten.normal.float_float: lambda draws, mean, std, size, **how: _normal(draws, _make(size, **how), mean, std),
    _aten.normal.Tensor_float: lambda draws, mean, std=1.0, **_: _normal(draws, mean, mean, std),
    _aten.normal.float_Tensor: lambda draws, mean, std, **_: _normal(draws, std, mean, std),
    _aten.normal.Tensor_Tensor: lambda draws, mean, std, **_: _normal(draws, mean, mean, std),
    _aten.exponential_.default: _write(_exponential),
    _aten.bernoulli.default: lambda draws, p, **_: _bernoulli(draws, p, p),
    _aten.bernoulli.p: _bernoulli,
    _aten.bernoulli_.float: _write(_bernoulli),
    _aten.bernoulli_.Tensor: _write(_bernoulli),
    _aten.randint.default: lambda draws, high, size, **how: _integers(
        draws, _make(size, **{"dtype": torch.int64} | how), 0, high
    ),
    _aten.randint.low: lambda draws, low, high, size, **how: _integers(
        draws, _make(size, **{"dtype": torch.int64} | how), low, high
    ),
    _aten.native_dropout.default: _native_dropout,
}
"""The operators whose random numbers have addresses. A model that draws by any other trains clients one by one."""
