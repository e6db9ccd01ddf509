"""The training state and the two jitted steps: what other JAX projects import.

Nothing here knows of configs, data sets, devices or files, and nothing is random.
"""

from collections.abc import Callable
from typing import Any, TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int, Key, PyTree

LossFn = Callable[[Float[Array, "b classes"], Int[Array, " b"]], Float[Array, " b"]]
Metrics = dict[str, Float[Array, ""]]


class Batch(TypedDict):
    """Normalized images and their labels; a label of -1 marks a row of padding, which `eval_step` leaves out."""

    image: Float[Array, "b h w c"]
    label: Int[Array, " b"]


class TrainState(struct.PyTreeNode):
    """Everything that training changes, and the three functions that change it."""

    step: Any  # int32 []: the updates made so far. JAX also fills such trees with placeholders.
    params: PyTree
    batch_stats: PyTree
    opt_state: optax.OptState
    apply_fn: Callable[..., Any] = struct.field(pytree_node=False)
    tx: optax.GradientTransformation = struct.field(pytree_node=False)
    loss_fn: LossFn = struct.field(pytree_node=False)


def create_train_state(
    key: Key[Array, ""],
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    loss_fn: LossFn = optax.softmax_cross_entropy_with_integer_labels,
    image_shape: tuple[int, int, int] = (32, 32, 3),
) -> TrainState:
    """Initialize a model and its optimizer at step 0.

    Args:
      key: random key for the parameters.
      model: a linen module called as `model(images, train=bool)`, with BatchNorm or without.
      tx: optimizer.
      loss_fn: from logits and labels to one loss per example.
      image_shape: height, width and channels of the images; a `ResNet` takes any.
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    variables = model.lazy_init(
        key, images, train=False
    )  # Draws the parameters, computes no activations.
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(params),
        apply_fn=model.apply,
        tx=tx,
        loss_fn=loss_fn,
    )


@jax.jit(donate_argnums=0)
def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Update the state on one batch.

    The state is donated: its buffers are reused, and the argument must not be read afterwards. Under a sharded batch
    BatchNorm and the loss see the whole of it. Every row counts: padding (label -1) is for `eval_step` alone.

    Returns:
      The next state, and of the batch, before the update: the sums `loss_sum`, `correct` and `count`, and `grad_norm`,
      the L2 norm of the gradient of the mean loss.
    """

    def mean_loss(params):
        logits, updates = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            batch["image"],
            train=True,
            mutable=["batch_stats"],
        )
        losses = state.loss_fn(logits, batch["label"])
        return losses.mean(), (logits, updates.get("batch_stats", {}))

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    updates, opt_state = state.tx.update(grads, state.opt_state, state.params)
    count = jnp.float32(len(batch["label"]))
    metrics = {
        "loss_sum": loss * count,
        "correct": top_k_hits(logits, batch["label"], 1).sum(),
        "count": count,
        "grad_norm": optax.tree.norm(grads),
    }
    next_state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    return next_state, metrics


@jax.jit
def eval_step(state: TrainState, batch: Batch) -> Metrics:
    """Return the sums `loss_sum`, `correct`, `correct_top5` and `count` over the rows whose label is not -1."""
    logits = state.apply_fn(
        {"params": state.params, "batch_stats": state.batch_stats}, batch["image"], train=False
    )
    real = (batch["label"] >= 0).astype(jnp.float32)
    losses = state.loss_fn(logits, jnp.maximum(batch["label"], 0))
    return {
        "loss_sum": (losses * real).sum(),
        "correct": (top_k_hits(logits, batch["label"], 1) * real).sum(),
        "correct_top5": (top_k_hits(logits, batch["label"], 5) * real).sum(),
        "count": real.sum(),
    }


def top_k_hits(
    logits: Float[Array, "b classes"], labels: Int[Array, " b"], k: int
) -> Float[Array, " b"]:
    """Return 1 where the label is among the k highest logits, else 0."""
    _, classes = jax.lax.top_k(logits, min(k, logits.shape[1]))
    return (classes == labels[:, None]).any(axis=1).astype(jnp.float32)
