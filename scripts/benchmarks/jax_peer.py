"""W1 as a researcher writes it in JAX: a round is one compiled program, without a framework. Needs JAX and NumPy.

The sampled clients train side by side (``vmap``), each through its steps (``scan``), on all cores or on the GPU.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

DIGITS = Path(__file__).resolve().parents[2] / "fednar_ray" / "data" / "sources" / "digits.csv"
CLIENTS, SAMPLED, STEPS, BATCH, HIDDEN = 100, 20, 20, 32, 128
LR, WEIGHT_DECAY, WARM_UP = 0.05, 0.01, 1
Params = dict[str, jax.Array]


def load_clients() -> tuple[jax.Array, jax.Array]:
    """Loads digits, divided as in workloads.py: inputs [clients, steps, batch, 64] and labels without the last axis."""
    rows = np.loadtxt(DIGITS, dtype=np.int32, delimiter=",")
    order, wanted = np.random.default_rng(0).permutation(len(rows)), np.arange(STEPS * BATCH)
    chosen = np.stack([part[wanted % len(part)] for part in np.array_split(order, CLIENTS)])
    x = (rows[chosen, :64] / 16).astype(np.float32).reshape(CLIENTS, STEPS, BATCH, 64)
    return jnp.asarray(x), jnp.asarray(rows[chosen, 64].reshape(CLIENTS, STEPS, BATCH))


def build_params() -> Params:
    """Draws the parameters of the MLP 64-128-10."""
    rng = np.random.default_rng(0)

    def draw(inputs: int, outputs: int) -> jax.Array:
        bound = inputs**-0.5
        return jnp.asarray(rng.uniform(-bound, bound, (inputs, outputs)).astype(np.float32))

    return {"w": draw(64, HIDDEN), "b": jnp.zeros(HIDDEN), "v": draw(HIDDEN, 10), "c": jnp.zeros(10)}


def compute_loss(params: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of a batch."""
    hidden = jax.nn.relu(x @ params["w"] + params["b"])
    logits = hidden @ params["v"] + params["c"]
    picked = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=1) - picked)


def build_round(clip_bound: float) -> Callable[..., Params]:
    """Builds the program of a round. A clip bound above 0 bounds gradient and weight decay together (FedNAR)."""

    def take_step(params: Params, batch: tuple[jax.Array, jax.Array]) -> tuple[Params, None]:
        direction = jax.grad(compute_loss)(params, *batch)
        if clip_bound:
            direction = jax.tree.map(lambda g, p: g + WEIGHT_DECAY * p, direction, params)
            norm = jnp.sqrt(sum(jnp.vdot(v, v) for v in jax.tree.leaves(direction)))
            scale = jnp.minimum(1.0, clip_bound / (norm + 1e-12))
            direction = jax.tree.map(lambda v: scale * v, direction)
        return jax.tree.map(lambda p, v: p - LR * v, params, direction), None

    def train_client(params: Params, x: jax.Array, y: jax.Array) -> Params:
        return lax.scan(take_step, params, (x, y))[0]

    @jax.jit
    def train_round(params: Params, x: jax.Array, y: jax.Array, sampled: jax.Array) -> Params:
        trained = jax.vmap(train_client, in_axes=(None, 0, 0))(params, x[sampled], y[sampled])
        return jax.tree.map(lambda p: p.mean(axis=0), trained)

    return train_round


def main() -> None:
    """Runs the benchmark, and prints its result as the other systems do."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", choices=("mlp",), default="mlp")
    parser.add_argument("--rounds", type=int, default=20, help="measured rounds, after the first")
    parser.add_argument("--clip-bound", type=float, default=0.0)
    options = parser.parse_args()
    (x, y), params, rng = load_clients(), build_params(), random.Random(0)
    train_round, marks = build_round(options.clip_bound), [time.perf_counter()]
    for index in range(WARM_UP + options.rounds):
        sampled = jnp.asarray(rng.sample(range(CLIENTS), SAMPLED))
        params = jax.block_until_ready(train_round(params, x, y, sampled))
        marks.append(time.perf_counter())
        if index == 0:
            first_round_after = time.time() - float(os.environ.get("BENCH_STARTED", time.time()))
    seconds = np.diff(marks)[WARM_UP:].tolist()
    loss = float(compute_loss(params, x.reshape(-1, 64), y.reshape(-1)))
    result = {"round_seconds": seconds, "first_round_after": first_round_after, "loss": loss}
    print("RESULT " + json.dumps(result | {"device": jax.devices()[0].device_kind, "jax": jax.__version__}), flush=True)


if __name__ == "__main__":
    main()
