"""The learning-rate schedules and the optimizer of the recipes, as optax transformations."""

from collections.abc import Sequence

import optax


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

    Args:
      peak: learning rate after the warm-up.
      num_steps: length of the training in steps, at whose end "cosine" and "linear" come to 0.
      warmup_steps: length of the warm-up in steps.
      decay_steps: steps, ascending, without repeats and not before the end of the warm-up, from which on the rate is
        multiplied by `decay_factor` once more. Update number `decay_steps[0]`, from 0, is the first of the lower rate.
      decay_factor: factor of each decay.
      warmup: "linear" rises from 0 (the first update changes nothing) to `peak`; "constant" holds `peak * decay_factor`
        (He et al. 2015 for ResNet110: 0.01 before 0.1).
      decay: "steps" is piecewise constant, as `decay_steps` say; "cosine" (Loshchilov & Hutter 2017, one period) and
        "linear" fall from `peak` to 0.

    Returns:
      A function of the number of updates made so far.
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
    return optax.join_schedules([rises[warmup], falls[decay]], [warmup_steps])


def make_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """Build SGD with momentum and coupled weight decay on every parameter, as `torch.optim.SGD` has it.

    One update is `g += weight_decay * p; buffer = momentum * buffer + g; p -= learning_rate * buffer`, and with
    `nesterov` the last is `p -= learning_rate * (g + momentum * buffer)`.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum, nesterov)
    )
