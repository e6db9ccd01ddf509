"""Regularization of a training batch: label smoothing, mixup, cutout; label noise and subsets."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

from resnet_cifar.steps import Batch


def smoothed_cross_entropy(
    logits: Float[Array, "b classes"], labels: Int[Array, " b"], *, smoothing: float
) -> Float[Array, " b"]:
    """Return the cross-entropy to `(1 - smoothing) * one_hot + smoothing / classes`.

    Szegedy et al. 2016 (arXiv:1512.00567, section 7).
    """
    right = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    uniform = -jax.nn.log_softmax(logits).mean(axis=-1)
    return (1 - smoothing) * right + smoothing * uniform


def cutout(
    key: Key[Array, ""], images: Float[Array, "b h w c"], *, size: int
) -> Float[Array, "b h w c"]:
    """Set a square of each normalized image to 0, the mean pixel.

    Its centre is uniform over the pixels, and what lies outside of the image is cut off, as in
    DeVries & Taylor 2017 (arXiv:1708.04552).
    """
    b, h, w, _ = images.shape
    centres = jax.random.randint(key, (2, b, 1), 0, jnp.array([h, w])[:, None, None], jnp.int32)
    top, left = centres - size // 2
    row, column = jnp.arange(h, dtype=jnp.int32)[None], jnp.arange(w, dtype=jnp.int32)[None]
    inside_rows = (row >= top) & (row < top + size)
    inside_columns = (column >= left) & (column < left + size)
    inside = inside_rows[:, :, None, None] & inside_columns[:, None, :, None]
    return jnp.where(inside, jnp.zeros((), images.dtype), images)


def mixup(key: Key[Array, ""], batch: Batch, *, alpha: float, active: Array | bool = True) -> Batch:
    """Mix each image with another one of the batch, `share * x + (1 - share) * x[permutation]`.

    `share` is Beta(alpha, alpha), one for the batch, as in Zhang et al. 2018 (arXiv:1710.09412).
    It is 1 while not `active`, which may be traced.
    """
    share_key, order_key = jax.random.split(key)
    share = jax.random.beta(share_key, jnp.float32(alpha), jnp.float32(alpha), dtype=jnp.float32)
    share = jnp.where(active, share, jnp.float32(1))
    order = jax.random.permutation(order_key, jnp.arange(len(batch["label"]), dtype=jnp.int32))
    image, weight = batch["image"], share.astype(batch["image"].dtype)
    return {
        "image": weight * image + (1 - weight) * image[order],
        "label": batch["label"],
        "other_label": batch["label"][order],
        "share": share,
    }


class Regularization(NamedTuple):
    """What happens to a normalized training batch."""

    cutout: int = 0
    mixup: float = 0.0
    mixup_steps: int = 0  # Mixup ends after so many steps.

    def __call__(self, key: Key[Array, ""], batch: Batch, step: Int[Array, ""]) -> Batch:
        """Change a batch, as a function of (key, step)."""
        # `augment` splits the same key, which is folding in 0 and 1.
        if self.cutout:
            image = cutout(jax.random.fold_in(key, 2), batch["image"], size=self.cutout)
            batch = {**batch, "image": image}
        if self.mixup:
            active = step < self.mixup_steps
            batch = mixup(jax.random.fold_in(key, 3), batch, alpha=self.mixup, active=active)
        return batch


def choose_subset(seed: int, n: int, fraction: float) -> np.ndarray:
    """Return the positions, in order, of `round(fraction * n)` of n images."""
    order = np.random.RandomState([seed, 1]).permutation(n)  # Its streams never change.
    return np.sort(order[: subset_size(n, fraction)])


def subset_size(n: int, fraction: float) -> int:
    return round(fraction * n)


def add_label_noise(seed: int, labels: np.ndarray, fraction: float, num_classes: int) -> np.ndarray:
    """Give `round(fraction * n)` of the labels another class, uniformly chosen.

    Symmetric noise as in Patrini et al. 2017 (arXiv:1609.03683): never the true class.
    """
    random = np.random.RandomState([seed, 2])
    chosen = random.permutation(len(labels))[: round(fraction * len(labels))]
    shifts = random.randint(1, num_classes, len(chosen))
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + shifts) % num_classes
    return noisy


Regularize = Callable[[Key[Array, ""], Batch, Int[Array, ""]], Batch]
