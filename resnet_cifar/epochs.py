"""Many steps over images that live on the device: gather, augment, normalize, step.

A dispatch makes as many steps as `indices` has rows. On an accelerator that is a whole epoch in one `lax.scan`; on a
CPU it is one step, where a scan would gain nothing and a signal is answered between dispatches.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from resnet_cifar.data import AnyArray, Images, augment
from resnet_cifar.steps import TrainState, eval_step, train_step

StepMetrics = dict[str, Float[Array, " steps"]]
Preprocess = Callable[[UInt8[AnyArray, "b h w c"]], Float[Array, "b h w c"]]


def train_steps(
    state: TrainState,
    data: Images,
    indices: Int[Array, "steps b"],
    key: Key[Array, ""],
    *,
    preprocess: Preprocess,
) -> tuple[TrainState, StepMetrics]:
    """Make one training step for each row of indices; returns each metric of `train_step` as [steps].

    The augmentation of a step depends on (key, state.step) alone.
    """

    def step(state, rows):
        images = augment(jax.random.fold_in(key, state.step), data.images[rows])
        return train_step(state, {"image": preprocess(images), "label": data.labels[rows]})

    return scan(step, state, indices)


def eval_steps(
    state: TrainState, data: Images, indices: Int[Array, "steps b"], *, preprocess: Preprocess
) -> StepMetrics:
    """Score one batch for each row of indices; returns each metric of `eval_step` as [steps]. Index -1 is padding."""

    def step(state, rows):
        labels = jnp.where(rows >= 0, data.labels[rows], -1)
        return state, eval_step(state, {"image": preprocess(data.images[rows]), "label": labels})

    return scan(step, state, indices)[1]


def scan(step, state, indices):
    """`lax.scan`, but without a loop around a single step."""
    if len(indices) > 1:
        return jax.lax.scan(step, state, indices)
    state, metrics = step(state, indices[0])
    return state, jax.tree.map(lambda metric: metric[None], metrics)


def eval_indices(n: int, batch_size: int) -> Int[np.ndarray, "steps b"]:
    """Return each of 0..n-1 exactly once, in order, and -1 in what is left of the last row."""
    rows = -(-n // batch_size)
    return (
        np.append(np.arange(n), np.full(rows * batch_size - n, -1))
        .reshape(rows, batch_size)
        .astype(np.int32)
    )
