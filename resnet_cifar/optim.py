"""The learning-rate schedules and the optimizer of the recipes, in optax."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from resnet_cifar.layers import STACKED


def learning_rate_schedule(
    peak: float,
    *,
    num_steps: int | None = None,
    warmup_steps: int = 0,
    decay_steps: Sequence[int] = (),
    decay_factor: float = 0.1,
    warmup: str = "linear",
    decay: str = "steps",
) -> optax.Schedule:
    """Join a warm-up to a decay.

    With warm-up W, length N and t = (step - W) / (N - W), the rate from step W on is
    `peak * decay_factor ** (number of decay_steps <= step)` for "steps",
    `peak * (1 + cos(pi * t)) / 2` for "cosine" and `peak * (1 - t)` for "linear".

    Args:
      peak: learning rate after the warm-up.
      num_steps: length of training. "cosine" and "linear" reach 0 there.
      warmup_steps: length of the warm-up.
      decay_steps: for "steps": ascending, distinct, and not before the end of the warm-up. Update
        number `decay_steps[0]`, counted from 0, is the first at the lower rate.
      decay_factor: factor of each decay.
      warmup: "linear" rises from 0 to `peak`, and the first update changes nothing; "constant"
        holds `peak * decay_factor` (He et al. 2015 for ResNet110: 0.01 before 0.1).
      decay: "steps" (piecewise constant), "cosine" (Loshchilov & Hutter 2017, one period) or
        "linear".

    Returns:
      A function from the number of updates made so far to the rate, a float32 scalar.

    Raises:
      ValueError: an unknown name, or steps that are missing or out of order.

    Example:
      >>> schedule = learning_rate_schedule(0.1, warmup_steps=10, decay_steps=(20,))
      >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 19, 20)]
      [0.0, 0.05, 0.1, 0.1, 0.01]
    """
    pieces = {step - warmup_steps: decay_factor for step in decay_steps}
    span = max((num_steps or 0) - warmup_steps, 1)
    rises = {
        "linear": optax.linear_schedule(0.0, peak, max(warmup_steps, 1)),
        "constant": optax.constant_schedule(peak * decay_factor),
    }
    falls = {
        "steps": optax.piecewise_constant_schedule(peak, pieces),
        "cosine": optax.cosine_decay_schedule(peak, span),
        "linear": optax.linear_schedule(peak, 0.0, span),
    }
    for name, value, choices in (("warmup", warmup, rises), ("decay", decay, falls)):
        if value not in choices:
            raise ValueError(f"{name}={value!r} is unknown: use one of {sorted(choices)}")
    if decay != "steps" and (num_steps is None or num_steps <= warmup_steps or decay_steps):
        raise ValueError(
            f"decay={decay!r} needs num_steps above warmup_steps={warmup_steps}, and no decay_steps"
        )
    if list(decay_steps) != sorted({step for step in decay_steps if step >= warmup_steps}):
        raise ValueError(
            f"decay_steps={tuple(decay_steps)} must ascend, without repeats, and not begin before "
            f"warmup_steps={warmup_steps}"
        )
    return optax.join_schedules([float32(rises[warmup]), float32(falls[decay])], [warmup_steps])


def float32(schedule: optax.Schedule) -> optax.Schedule:
    """Compute in float32 under JAX_ENABLE_X64 and strict dtype promotion too."""

    def rate(count: jax.typing.ArrayLike) -> jax.Array:
        return jnp.asarray(schedule(jnp.asarray(count, jnp.float32)), jnp.float32)

    return rate


def make_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    *,
    optimizer: str = "sgd",
    momentum: float = 0.9,
    weight_decay: optax.ScalarOrSchedule = 1e-4,
    nesterov: bool = False,
    decay_mask: bool = False,
) -> optax.GradientTransformation:
    """Build an optimizer.

    "sgd" is `torch.optim.SGD`, with coupled (L2) weight decay. An update is

        g += weight_decay * p
        buffer = momentum * buffer + g
        p -= learning_rate * buffer      # nesterov: learning_rate * (g + momentum * buffer)

    The weight decay of the others is decoupled: `p -= learning_rate * weight_decay * p` besides.
    "adamw" is that of Loshchilov & Hutter 2019 with b1 = `momentum`. "muon" orthogonalizes the
    momentum of each convolution's kernel as a matrix [h * w * c, filters] (Jordan et al. 2024),
    scaled by `0.2 * sqrt(max(rows, columns))` to the size of AdamW's updates (Liu et al. 2025), and
    is AdamW for all other parameters.

    Args:
      learning_rate: a constant or a schedule.
      optimizer: "sgd", "adamw" or "muon".
      momentum: decay of the averaged gradient.
      weight_decay: by default on all parameters.
      nesterov: whether the update looks ahead.
      decay_mask: leave BatchNorm and biases out of the weight decay.

    Example:
      >>> optimizer = make_optimizer(0.1, momentum=0.0, weight_decay=0.5)
      >>> params = jnp.array([2.0])
      >>> updates, _ = optimizer.update(jnp.array([1.0]), optimizer.init(params), params)
      >>> round(float(updates[0]), 4)
      -0.2
    """
    mask = is_kernel if decay_mask else None
    if optimizer == "sgd":
        decay = optax.add_decayed_weights(weight_decay, mask)
        return optax.chain(decay, optax.sgd(learning_rate, momentum, nesterov))
    if optimizer == "adamw":
        return optax.adamw(
            learning_rate, momentum, weight_decay=weight_decay, mask=mask, nesterov=nesterov
        )
    if optimizer == "muon":
        return optax.chain(
            optax.contrib.muon(
                1.0,
                beta=momentum,
                nesterov=nesterov,
                adam_b1=momentum,
                consistent_rms=0.2,
                muon_weight_dimension_numbers=convolutions_as_matrices,
            ),
            optax.scale(-1.0),
            optax.add_decayed_weights(weight_decay, mask),
            optax.scale_by_learning_rate(learning_rate),
        )
    raise ValueError(f"optimizer={optimizer!r} is unknown: use sgd, adamw or muon")


def is_kernel(params: optax.Params) -> optax.Params:
    """Return which parameters are kernels: those of more than one dimension in one block."""

    def dimensions(path: tuple[Any, ...], leaf: jax.Array) -> int:
        stacked = any(STACKED.fullmatch(str(getattr(key, "key", ""))) for key in path)
        return leaf.ndim - stacked

    return jax.tree.map_with_path(lambda path, leaf: dimensions(path, leaf) > 1, params)


def convolutions_as_matrices(params: optax.Params) -> optax.Params:
    """Return how Muon reads each kernel [h, w, c, filters]; None for parameters it leaves alone.

    Kernels of stacked blocks, [blocks, h, w, c, filters], are a matrix each.
    """
    matrix = optax.contrib.MuonDimensionNumbers((-4, -3, -2), -1)
    return jax.tree.map(lambda leaf: matrix if leaf.ndim >= 4 else None, params)
