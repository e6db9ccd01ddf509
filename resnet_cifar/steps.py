"""The two jitted steps, for import by other JAX projects.

Nothing here knows of configs, data sets, devices or files. The steps use no randomness.
"""

from typing import NotRequired, TypedDict

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PyTree

from resnet_cifar.state import TrainState, update_averages

Metrics = dict[str, Float[Array, ""]]


class Batch(TypedDict):
    """Normalized images and their labels. `eval_step` ignores padding: rows of label -1.

    Mixed images (mixup) have a second label, and `share` is that of the first one. `train_step`
    weights their losses by it.
    """

    image: Float[Array, "b h w c"]
    label: Int[Array, " b"]
    other_label: NotRequired[Int[Array, " b"]]
    share: NotRequired[Float[Array, ""]]


def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Update the state on one batch: `params -= tx(grad(mean(loss_fn(logits, labels))))`.

    Jitted. The state is donated: its buffers are reused, and it must not be read afterwards. While
    JAX traces, as under `jax.jit` or `jax.grad`, nothing is donated. If the batch is split over
    devices, BatchNorm and the loss see all of it. Labels of -1 are not allowed.

    Returns:
      The next state, and float32 scalars of the batch before the update: the sums `loss_sum`,
      `correct` and `count`, and `grad_norm`, the L2 norm of the gradient of the mean loss.

    Example:
      >>> from resnet_cifar import ResNet, create_train_state, make_optimizer
      >>> state = create_train_state(jax.random.key(0), ResNet(depth=8), make_optimizer(0.1))
      >>> batch = {"image": jnp.zeros((4, 32, 32, 3)), "label": jnp.arange(4)}
      >>> state, metrics = train_step(state, batch)
      >>> int(state.step), float(metrics["count"])
      (1, 4.0)
    """
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((state, batch)))
    return (jitted_update if traced else donating_update)(state, batch)


def update(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
    """Do what `train_step` says; not jitted."""

    def mean_loss(params):
        logits, updates = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            batch["image"],
            train=True,
            mutable=["batch_stats"],
        )
        losses = state.loss_fn(logits, batch["label"])
        if "other_label" in batch and "share" in batch:
            others = state.loss_fn(logits, batch["other_label"])
            losses = batch["share"] * losses + (1 - batch["share"]) * others
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
    return update_averages(next_state, state.step), metrics


jitted_update = jax.jit(update)
donating_update = jax.jit(update, donate_argnums=0)


@jax.jit
def eval_step(state: TrainState, batch: Batch) -> Metrics:
    """Return float32 sums over the rows whose label is not -1.

    They are `loss_sum`, `correct`, `correct_top5` and `count`. `loss_sum` is NaN if a parameter or
    a running statistic is.
    """
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = state.apply_fn(variables, batch["image"], train=False)
    real = batch["label"] >= 0
    losses = state.loss_fn(logits, jnp.maximum(batch["label"], 0))
    hits = {"correct": top_k_hits(logits, batch["label"], 1)}
    hits["correct_top5"] = top_k_hits(logits, batch["label"], 5)
    # XLA's CPU compiler drops NaN where it fuses a ReLU with a mean: max(NaN, 0) becomes 0.
    lost = any_nan(variables)
    return {
        "loss_sum": jnp.where(lost, jnp.nan, jnp.where(real, losses, 0.0).sum()),
        **{name: jnp.where(real, hit, 0.0).sum() for name, hit in hits.items()},
        "count": real.astype(jnp.float32).sum(),
    }


def any_nan(tree: PyTree) -> Array:
    return jnp.array([jnp.isnan(leaf).any() for leaf in jax.tree.leaves(tree)], bool).any()


def top_k_hits(
    logits: Float[Array, "b classes"], labels: Int[Array, " b"], k: int
) -> Float[Array, " b"]:
    """Return 1.0 where the label is among the k highest logits, else 0.0."""
    _, classes = jax.lax.top_k(logits, min(k, logits.shape[1]))
    return (classes == labels[:, None]).any(axis=1).astype(jnp.float32)
