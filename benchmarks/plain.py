"""The same networks and step as flax's ImageNet example writes them, with derived gradients.

Tests compare the networks with these, benchmarks their speed.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.training import train_state
from jax.typing import DTypeLike

from resnet_cifar.models import pad_channels


class PlainResNet(nn.Module):
    """A `resnet_cifar.ResNet` with shortcut A, with parameters of the same names and shapes."""

    depth: int
    num_classes: int = 10
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x, *, train: bool):
        conv = partial(nn.Conv, kernel_size=(3, 3), padding=1, use_bias=False, dtype=self.dtype)
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        x = nn.relu(norm(name="stem_bn")(conv(16, name="stem_conv")(x)))
        for stage in range(3):
            filters = 16 * 2**stage
            for block in range((self.depth - 2) // 6):
                stride = 2 if stage and not block else 1
                x = PlainBlock(
                    conv, norm, filters, stride, name=f"stage{stage + 1}_block{block + 1}"
                )(x)
        return nn.Dense(self.num_classes, name="head")(x.mean((1, 2), dtype=jnp.float32))


class PlainBlock(nn.Module):
    """A residual block of linen's own layers."""

    conv: partial
    norm: partial
    filters: int
    stride: int

    @nn.compact
    def __call__(self, x):
        y = nn.relu(
            self.norm(name="bn1")(self.conv(self.filters, strides=self.stride, name="conv1")(x))
        )
        y = self.norm(name="bn2")(self.conv(self.filters, name="conv2")(y))
        if x.shape[-1] != self.filters:
            x = pad_channels(x[:, :: self.stride, :: self.stride], self.filters)
        return nn.relu(x + y)


class PlainState(train_state.TrainState):
    """flax's own training state, with batch statistics."""

    batch_stats: dict


def plain_state(key, depth: int, dtype: DTypeLike) -> PlainState:
    """Initialize a network and SGD with momentum and weight decay."""
    model = PlainResNet(depth, dtype=dtype)
    variables = jax.jit(partial(model.init, train=False))(key, jnp.zeros((1, 32, 32, 3)))
    tx = optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.1, momentum=0.9))
    return PlainState.create(apply_fn=model.apply, tx=tx, **variables)


@partial(jax.jit, donate_argnums=0)
def plain_train_step(state: PlainState, batch):
    """Update the state on one batch; return it and the mean loss and accuracy."""

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updates = state.apply_fn(
            variables, batch["image"], train=True, mutable=["batch_stats"]
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
        return loss, (logits, updates["batch_stats"])

    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    accuracy = (logits.argmax(-1) == batch["label"]).mean()
    return state.apply_gradients(grads=grads, batch_stats=batch_stats), {
        "loss": loss,
        "accuracy": accuracy,
    }
