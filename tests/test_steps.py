"""The importable steps: what they change, what they count, and that they need nothing of this project's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_cifar import ResNet, create_train_state, eval_step, make_optimizer, train_step
from resnet_cifar.steps import top_k_hits

pytestmark = pytest.mark.usefixtures("strict_dtypes")


class Linear(nn.Module):
    """A net without BatchNorm, of another project."""

    @nn.compact
    def __call__(self, images, *, train: bool):
        return nn.Dense(7, name="head")(images.reshape(len(images), -1))


def make_batch(n=8, classes=7):
    images, labels = jax.random.split(jax.random.key(5))
    return {
        "image": jax.random.normal(images, (n, 32, 32, 3)),
        "label": jax.random.randint(labels, (n,), 0, classes),
    }


@pytest.fixture(scope="module")
def state():
    return create_train_state(jax.random.key(0), ResNet(8), make_optimizer(0.05))


def copy(state):
    return jax.tree.map(jnp.copy, state)


def test_train_step_learns_a_batch_by_heart(state):
    state, batch, losses = copy(state), make_batch(), []
    for _ in range(8):
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss_sum"] / metrics["count"]))
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.step) == 8


def test_train_step_is_the_gradient_step_of_its_parts():
    state, batch = create_train_state(jax.random.key(0), Linear(), optax.sgd(0.1)), make_batch()

    def loss(params):
        logits = Linear().apply({"params": params}, batch["image"], train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    value, grads = jax.value_and_grad(loss)(state.params)
    expected = jax.tree.map(lambda p, g: np.asarray(p - 0.1 * g), state.params, grads)
    new, metrics = train_step(state, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.params, expected)
    np.testing.assert_allclose(metrics["loss_sum"], 8 * value, rtol=1e-5)


def test_train_step_donates_its_state(state):
    old = copy(state)
    new, _ = train_step(old, make_batch())
    assert jax.tree.leaves(old.params)[0].is_deleted()
    assert not jax.tree.leaves(new.params)[0].is_deleted()


def test_train_step_updates_the_batch_statistics(state):
    new, _ = train_step(copy(state), make_batch())
    assert (new.batch_stats["stem_bn"]["mean"] != state.batch_stats["stem_bn"]["mean"]).all()


def test_a_loss_of_ones_own(state):
    def smoothed(logits, labels):
        return optax.softmax_cross_entropy(
            logits, optax.smooth_labels(jax.nn.one_hot(labels, 10), 0.1)
        )

    own = create_train_state(jax.random.key(0), ResNet(8), make_optimizer(0.05), loss_fn=smoothed)
    batch = make_batch()
    assert float(train_step(own, batch)[1]["loss_sum"]) != float(
        train_step(copy(state), batch)[1]["loss_sum"]
    )


def test_eval_step_leaves_padding_out(state):
    batch = make_batch()
    padded = {
        "image": jnp.concatenate([batch["image"], 1e3 * jnp.ones((4, 32, 32, 3))]),
        "label": jnp.concatenate([batch["label"], jnp.full(4, -1)]),
    }
    whole, other = eval_step(state, batch), eval_step(state, padded)
    assert float(other["count"]) == 8
    for name in whole:
        np.testing.assert_allclose(whole[name], other[name], rtol=1e-4, err_msg=name)


def test_metrics_are_counted_as_numpy_counts_them(state):
    batch = make_batch(64)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = np.asarray(state.apply_fn(variables, batch["image"], train=False))
    labels = np.asarray(batch["label"])
    metrics = jax.device_get(eval_step(state, batch))
    assert metrics["correct"] == (logits.argmax(1) == labels).sum()
    assert metrics["correct_top5"] == (np.argsort(-logits)[:, :5] == labels[:, None]).any(1).sum()


def test_equal_logits_are_no_better_than_one_guess():
    labels = jnp.arange(10)
    assert top_k_hits(jnp.zeros((10, 10)), labels, 1).sum() == 1
    assert top_k_hits(jnp.zeros((10, 10)), labels, 5).sum() == 5


def test_top5_of_three_classes_is_every_one():
    assert top_k_hits(jnp.zeros((3, 3)), jnp.arange(3), 5).sum() == 3
