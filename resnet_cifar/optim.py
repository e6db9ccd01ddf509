"""The learning-rate schedule and the optimizer of the recipes, as optax transformations."""

from collections.abc import Sequence

import optax


def learning_rate_schedule(
    peak: float,
    *,
    warmup_steps: int = 0,
    decay_steps: Sequence[int] = (),
    decay_factor: float = 0.1,
    warmup: str = "linear",
) -> optax.Schedule:
    """Join a warm-up to a piecewise constant schedule.

    Args:
      peak: learning rate after the warm-up.
      warmup_steps: length of the warm-up in steps.
      decay_steps: steps, ascending, without repeats and not before the end of the warm-up, from which on the rate is
        multiplied by `decay_factor` once more. Update number `decay_steps[0]`, from 0, is the first of the lower rate.
      decay_factor: factor of each decay.
      warmup: "linear" rises from 0 (the first update changes nothing) to `peak`; "constant" holds `peak * decay_factor`
        (He et al. 2015 for ResNet110: 0.01 before 0.1).

    Returns:
      A function of the number of updates made so far.
    """
    shapes = {
        "linear": optax.linear_schedule(0.0, peak, max(warmup_steps, 1)),
        "constant": optax.constant_schedule(peak * decay_factor),
    }
    if warmup not in shapes:
        raise ValueError(f"warmup={warmup!r} is unknown: use one of {sorted(shapes)}")
    if list(decay_steps) != sorted({step for step in decay_steps if step >= warmup_steps}):
        raise ValueError(
            f"decay_steps={tuple(decay_steps)} must ascend, without repeats, and not begin before "
            f"warmup_steps={warmup_steps}"
        )
    constant = optax.piecewise_constant_schedule(peak, {step - warmup_steps: decay_factor for step in decay_steps})
    return optax.join_schedules([shapes[warmup], constant], [warmup_steps])


def make_optimizer(
    learning_rate: optax.ScalarOrSchedule, *, momentum: float = 0.9, weight_decay: float = 1e-4
) -> optax.GradientTransformation:
    """Build SGD with momentum and coupled weight decay on every parameter, as `torch.optim.SGD` has it.

    One update is `g += weight_decay * p; buffer = momentum * buffer + g; p -= learning_rate * buffer`.
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum))
