"""Many steps over images that live on the device: gather, augment, normalize, step.

A dispatch makes one step for each row of `indices`: on an accelerator a whole epoch in one
`lax.scan`, on a CPU one step, where a scan gains nothing and signals are answered between
dispatches.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from resnet_cifar.data import AnyArray, Images, augment
from resnet_cifar.regularization import Regularize
from resnet_cifar.state import TrainState
from resnet_cifar.steps import Batch, eval_step, train_step

StepMetrics = dict[str, Float[Array, " steps"]]
Preprocess = Callable[[UInt8[AnyArray, "b h w c"]], Float[Array, "b h w c"]]


def train_steps(
    state: TrainState,
    data: Images,
    indices: Int[Array, "steps b"],
    key: Key[Array, ""],
    *,
    preprocess: Preprocess,
    regularize: Regularize | None = None,
) -> tuple[TrainState, StepMetrics]:
    """Make one training step for each row of indices.

    Args:
      state: to train.
      data: a split on the device.
      indices: of images, [steps, batch].
      key: the augmentation of a step is a function of (key, state.step).
      preprocess: from uint8 pixels to what the network takes.
      regularize: from (key, batch, step) to a batch, after that.

    Returns:
      The next state, and each metric of `train_step` as [steps].
    """

    def step(state, rows):
        own_key = jax.random.fold_in(key, state.step)
        images = augment(own_key, data.images[rows])
        batch: Batch = {"image": preprocess(images), "label": jnp.asarray(data.labels)[rows]}
        return train_step(state, regularize(own_key, batch, state.step) if regularize else batch)

    return scan(step, state, indices)


def eval_steps(
    state: TrainState, data: Images, indices: Int[Array, "steps b"], *, preprocess: Preprocess
) -> StepMetrics:
    """Score one batch for each row of indices, of which -1 is padding.

    Returns:
      Each metric of `eval_step` as [steps].
    """

    def step(state, rows):
        labels = jnp.where(rows >= 0, data.labels[rows], -1)
        return state, eval_step(state, {"image": preprocess(data.images[rows]), "label": labels})

    return scan(step, state, indices)[1]


def scan(step, state, indices):
    """Scan, but without a loop around a single step."""
    if len(indices) > 1:
        return jax.lax.scan(step, state, indices)
    state, metrics = step(state, indices[0])
    return state, jax.tree.map(lambda metric: metric[None], metrics)


def eval_indices(n: int, batch_size: int) -> Int[np.ndarray, "steps b"]:
    """Return 0..n-1 in order as rows of a batch each, the last one padded with -1."""
    rows = -(-n // batch_size)
    return (
        np.append(np.arange(n), np.full(rows * batch_size - n, -1))
        .reshape(rows, batch_size)
        .astype(np.int32)
    )
