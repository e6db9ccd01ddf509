"""The importable steps: what they update and what they count."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Linear, Normalized, make_batch

from resnet_cifar import (
    ResNet,
    create_train_state,
    eval_step,
    make_optimizer,
    steps,
    train_step,
)
from resnet_cifar.steps import top_k_hits

pytestmark = pytest.mark.usefixtures("strict_dtypes")


@pytest.fixture(scope="module")
def state():
    return create_train_state(jax.random.key(0), ResNet(8), make_optimizer(0.05))


def copy(state):
    return jax.tree.map(jnp.copy, state)


@pytest.mark.slow
def test_train_step_memorizes_a_batch(state):
    state, batch, losses = copy(state), make_batch(), []
    for _ in range(8):
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss_sum"] / metrics["count"]))
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.step) == 8


def test_train_step_is_a_gradient_step():
    state, batch = create_train_state(jax.random.key(0), Linear(), optax.sgd(0.1)), make_batch()

    def loss(params):
        logits = Linear().apply({"params": params}, batch["image"], train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(state.params)
    expected = jax.tree.map(
        lambda p, g: np.asarray(p) - np.float32(0.1) * np.asarray(g), state.params, grads
    )
    new, metrics = train_step(state, batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.params, expected)
    np.testing.assert_allclose(metrics["loss_sum"], 8 * float(value), rtol=1e-5)


def test_train_step_donates_its_state(state):
    old = copy(state)
    new, _ = train_step(old, make_batch())
    assert jax.tree.leaves(old.params)[0].is_deleted()
    assert not jax.tree.leaves(new.params)[0].is_deleted()


def test_train_step_updates_the_batch_statistics(state):
    new, _ = train_step(copy(state), make_batch())
    assert (new.batch_stats["stem_bn"]["mean"] != state.batch_stats["stem_bn"]["mean"]).all()


def test_the_loss_can_be_replaced():
    def squared(logits, labels):
        return ((logits - labels[:, None].astype(jnp.float32)) ** 2).sum(1)

    batch = make_batch()
    state = create_train_state(jax.random.key(0), Linear(), optax.sgd(0.1), loss_fn=squared)
    logits = Linear().apply({"params": state.params}, batch["image"], train=True)
    expected = ((np.asarray(logits) - np.asarray(batch["label"])[:, None]) ** 2).sum()
    np.testing.assert_allclose(eval_step(state, batch)["loss_sum"], expected, rtol=1e-5)
    np.testing.assert_allclose(train_step(state, batch)[1]["loss_sum"], expected, rtol=1e-5)


def test_eval_step_ignores_padding(state):
    batch = make_batch()
    padded = {
        "image": jnp.concatenate([batch["image"], 1e3 * jnp.ones((4, 32, 32, 3))]),
        "label": jnp.concatenate([batch["label"], jnp.full(4, -1)]),
    }
    whole, other = eval_step(state, batch), eval_step(state, padded)
    assert float(other["count"]) == 8
    for name in whole:
        np.testing.assert_allclose(whole[name], other[name], rtol=1e-4, err_msg=name)


def test_metrics_match_numpy():
    state, batch = create_train_state(jax.random.key(0), Linear(), optax.sgd(0.1)), make_batch(64)
    logits = np.asarray(Linear().apply({"params": state.params}, batch["image"], train=False))
    labels = np.asarray(batch["label"])
    metrics = jax.device_get(eval_step(state, batch))
    assert metrics["correct"] == (logits.argmax(1) == labels).sum()
    assert metrics["correct_top5"] == (np.argsort(-logits)[:, :5] == labels[:, None]).any(1).sum()


def test_equal_logits_count_as_one_guess():
    labels = jnp.arange(10)
    assert top_k_hits(jnp.zeros((10, 10)), labels, 1).sum() == 1
    assert top_k_hits(jnp.zeros((10, 10)), labels, 5).sum() == 5


def test_top5_of_three_classes_is_all():
    assert top_k_hits(jnp.zeros((3, 3)), jnp.arange(3), 5).sum() == 3


class Relu(nn.Module):
    """A network that loses NaN on a CPU, where XLA fuses the ReLU with the mean."""

    @nn.compact
    def __call__(self, images, *, train: bool):
        x = nn.relu(nn.Conv(8, (3, 3), name="conv")(images)).mean((1, 2))
        return nn.Dense(10, name="head")(x)


@pytest.mark.parametrize("model", [ResNet(8), Relu()], ids=["ResNet", "Relu"])
def test_nan_parameters_have_a_nan_loss(model):
    state = create_train_state(jax.random.key(0), model, make_optimizer(0.1))
    params = jax.tree.map(lambda x: x * jnp.nan, state.params) | {"head": state.params["head"]}
    batch = make_batch()
    assert np.isfinite(eval_step(state, batch)["loss_sum"])
    assert np.isnan(eval_step(state.replace(params=params), batch)["loss_sum"])


def test_nan_statistics_have_a_nan_loss(state):
    stats = jax.tree.map(lambda x: x * jnp.nan, state.batch_stats)
    assert np.isnan(eval_step(state.replace(batch_stats=stats), make_batch())["loss_sum"])


def test_nan_in_padding_is_ignored():
    state = create_train_state(jax.random.key(0), Linear(), make_optimizer(0.1))
    batch = make_batch()
    padded = {
        "image": jnp.concatenate([batch["image"], jnp.full((2, 32, 32, 3), jnp.nan)]),
        "label": jnp.concatenate([batch["label"], jnp.full(2, -1)]),
    }
    whole, other = eval_step(state, batch), eval_step(state, padded)
    np.testing.assert_allclose(whole["loss_sum"], other["loss_sum"], rtol=1e-6)


def test_a_gradient_through_steps_is_the_same_outside_jit():
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    state = create_train_state(jax.random.key(0), Linear(), optimizer)

    def loss_after_a_step(rate):
        own = state.replace(opt_state=state.opt_state._replace(hyperparams={"learning_rate": rate}))
        return train_step(train_step(own, make_batch())[0], make_batch())[1]["loss_sum"]

    slope = jax.grad(loss_after_a_step)
    np.testing.assert_allclose(slope(0.1), jax.jit(slope)(0.1), rtol=1e-5)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_metrics_and_state_stay_float32_under_x64():
    with jax.enable_x64(True):
        batch = {"image": np.ones((4, 8, 8, 3), np.float32), "label": np.arange(4, dtype=np.int32)}
        state = create_train_state(
            jax.random.key(0), Linear(), make_optimizer(0.1), image_shape=(8, 8, 3)
        )
        shapes = jax.eval_shape(train_step, state, batch)
        scores = jax.eval_shape(eval_step, state, batch)
    assert {str(x.dtype) for x in jax.tree.leaves((shapes, scores))} == {"float32", "int32"}


def test_without_averages_the_program_is_as_before_they_existed(monkeypatch):
    def program(**more):
        state = create_train_state(jax.random.key(0), Normalized(), optax.sgd(0.1), **more)
        return jax.jit(partial(steps.update)).lower(state, make_batch()).as_text()

    off, on = program(), program(ema_decay=0.9)
    monkeypatch.setattr(steps, "update_averages", lambda state, t: state)
    assert off == program() != on
