"""What a client masks: its quantized update, its weight, and numbers of which only the sum becomes known."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import numpy as np
import numpy.typing as npt

from fednar_ray.core.errors import SiloRefused
from fednar_ray.core.flat_params import FloatVector
from fednar_ray.core.messages import Broadcast
from fednar_ray.core.random import Purpose, seed_sequence
from fednar_ray.core.schedules import RoundScalars
from fednar_ray.federated.group_update import measure_lengths
from fednar_ray.federated.trained_group import Trained
from fednar_ray.privacy.mechanism import compute_clip_factors
from fednar_ray.secure.plan import SecurePlan
from fednar_ray.secure.quantizer import count_levels, decode, quantize
from fednar_ray.secure.totals import LIMBS, decode_totals, encode_totals
from fednar_ray.secure.words import WordVector

TOTALS = (
    "examples",
    "loss",  # n_i · the mean loss
    "decay",  # n_i · the effective weight decay
    "steps",
    "clipped_steps",
    "step_norm",  # K_i · the mean ‖v‖
    "squared_norm",  # weight_i · ‖Δ_i‖²
    "clipped_updates",  # 1 if ‖Δ_i‖ was above ``clip``
    "saturated",  # how many coordinates were clamped
)
"""Numbers of which the driver learns only the sum over all clients of a round."""

WEIGHT_WORDS = 1
EXTRA_WORDS = WEIGHT_WORDS + LIMBS * len(TOTALS)
"""How many words follow the d words of the update: the weight, and the totals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedSum:
    """The sum over the clients of an attempt.

    Attributes:
        words: Σ weight_i·Δ_i, quantized, in units of ``step``, [d].
        step: What one unit is worth.
        weight: Σ weight_i.
        totals: The sums of ``TOTALS``, by name.
    """

    words: WordVector
    step: float
    weight: float
    totals: Mapping[str, float]

    def compute_mean(self) -> FloatVector:
        """Computes Σ weight_i·Δ_i / Σ weight_i, [d]."""
        return decode(self.words, self.step / self.weight)

    def compute_sum(self) -> npt.NDArray[np.float64]:
        """Computes Σ weight_i·Δ_i, [d], without rounding."""
        return self.words.view(np.int32) * np.float64(self.step)

    @property
    def most_added(self) -> float:
        """By how much rounding can lengthen a client's part of the sum: each of d numbers moves by less than a step."""
        return self.step * sqrt(len(self.words))


def encode_update(plan: SecurePlan, trained: Trained, broadcast: Broadcast) -> WordVector:
    """Returns the update, the weight and the totals of one client as words, [d + EXTRA_WORDS], without masks.

    Random rounding follows from seed, round and client, so every attempt gives the same words. With a bound of the
    broadcast, the clients are private: an update that is not finite counts as zero, and the totals are left out.

    Raises:
        SiloRefused: The client has more examples than the plan allows.
    """
    metrics, scalars = trained.metrics, broadcast.scalars
    (client_id,), examples, norm = metrics.client_ids, int(metrics.examples[0]), float(metrics.delta_norms[0])
    if plan.weighted and examples > plan.most_examples:
        raise SiloRefused(f"{examples} examples are more than {plan.most_examples}")
    weight, delta = examples if plan.weighted else 1, trained.delta[0].cpu().numpy()
    private = broadcast.norm_bound is not None
    if broadcast.norm_bound is None:
        factor = 1.0 if plan.clip is None or norm <= plan.clip else plan.clip / norm
    elif metrics.included[0]:
        norm = float(measure_lengths(trained.delta)[0])
        factor = float(compute_clip_factors([norm], broadcast.norm_bound)[0])
    else:
        factor, delta = 1.0, np.zeros_like(delta)
    vector = np.empty(len(delta) + EXTRA_WORDS, dtype=np.uint32)
    scale = factor * weight / plan.most_weight * count_levels(plan.bits) / plan.compute_range(scalars)
    address = seed_sequence(plan.seed, Purpose.QUANTIZATION, round_index=broadcast.round_index, client_id=client_id)
    saturated = quantize(delta, scale, plan.bits, address, vector[: len(delta)])
    vector[len(delta)] = weight
    totals = {
        "examples": examples,
        "loss": examples * float(metrics.losses[0]),
        "decay": examples * float(metrics.effective_weight_decay[0]),
        "steps": int(metrics.steps[0]),
        "clipped_steps": int(metrics.clipped_steps[0]),
        "step_norm": int(metrics.steps[0]) * float(metrics.step_norms[0]),
        "squared_norm": weight * (factor * norm) ** 2,
        "clipped_updates": int(factor < 1),
        "saturated": saturated,
    }
    encode_totals({name: 0.0 if private else totals[name] for name in TOTALS}, vector[len(delta) + WEIGHT_WORDS :])
    return vector


def decode_sum(plan: SecurePlan, words: WordVector, scalars: RoundScalars) -> DecodedSum:
    """Returns what the sum of the clients' words stands for, [d + EXTRA_WORDS], once no mask is left in it."""
    dimension = len(words) - EXTRA_WORDS
    return DecodedSum(
        words=words[:dimension],
        step=plan.compute_step(scalars),
        weight=float(words[dimension]),
        totals=decode_totals(TOTALS, words[dimension + WEIGHT_WORDS :]),
    )
