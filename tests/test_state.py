"""The training state: its start, its equality, its moving averages."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import Linear, Normalized, make_batch

from resnet_cifar import (
    ResNet,
    averaged,
    create_train_state,
    eval_step,
    make_optimizer,
    train_step,
)

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def test_initialization_is_that_of_the_model_without_activations():
    model = ResNet(8)
    state = create_train_state(jax.random.key(0), model, make_optimizer(0.05))
    key, images = jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    expected = model.init(key, images, train=False)
    assert jax.tree.structure(expected["params"]) == jax.tree.structure(state.params)
    jax.tree.map(np.testing.assert_array_equal, expected["params"], state.params)
    jax.tree.map(np.testing.assert_array_equal, expected["batch_stats"], state.batch_stats)

    def new(model, key):
        return create_train_state(key, model, make_optimizer(0.05)).params

    for other in (model, ResNet(14, width=2, remat=True)):
        assert "conv_general_dilated" not in str(jax.make_jaxpr(partial(new, other))(key))


def smoothed(amount, logits, labels, *, power=1.0):
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[1]), amount)
    return optax.softmax_cross_entropy(logits, targets) ** power


def linear_state(seed, loss_fn):
    return create_train_state(jax.random.key(seed), model=LINEAR, tx=SGD, loss_fn=loss_fn).replace(
        apply_fn=APPLY
    )


LINEAR, SGD = Linear(), optax.sgd(0.1)
APPLY = LINEAR.apply


def test_a_new_partial_of_the_same_loss_shares_the_program():
    states = [linear_state(seed, partial(smoothed, 0.1, power=2.0)) for seed in (0, 1)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    program = jax.jit(train_step).lower(states[0], make_batch()).compile()
    _, metrics = program(states[1], make_batch())
    logits = LINEAR.apply(
        {"params": linear_state(1, smoothed).params}, make_batch()["image"], train=True
    )
    expected = smoothed(0.1, logits, make_batch()["label"], power=2.0).sum()
    np.testing.assert_allclose(metrics["loss_sum"], expected, rtol=1e-5)
    other = linear_state(0, partial(smoothed, 0.2))
    assert jax.tree.structure(states[0]) != jax.tree.structure(other)


def test_a_partial_with_an_array_still_works():
    state = linear_state(0, partial(smoothed, jnp.float32(0.1)))
    assert np.isfinite(train_step(state, make_batch())[1]["loss_sum"])


def test_averages_follow_the_formula():
    state = create_train_state(jax.random.key(0), Normalized(), make_optimizer(0.5), ema_decay=0.25)
    plain = create_train_state(jax.random.key(0), Normalized(), make_optimizer(0.5))

    def values(state):
        return jax.tree.map(np.float64, {"params": state.params, "batch_stats": state.batch_stats})

    expected = values(state)
    for t, decay in enumerate([1 / 10, 2 / 11, 3 / 12, 0.25, 0.25]):
        batch = make_batch() | {"label": jnp.arange(t, t + 8, dtype=jnp.int32) % 7}
        state, plain = train_step(state, batch)[0], train_step(plain, batch)[0]
        expected = jax.tree.map(
            lambda old, new, d=decay: d * old + (1 - d) * new, expected, values(state)
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), state.ema, expected)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), plain.params, state.params
    )
    logits = Normalized().apply(state.ema, batch["image"], train=False)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    metrics = eval_step(averaged(state), batch)
    np.testing.assert_allclose(metrics["loss_sum"], losses.sum(), rtol=1e-5)


def test_a_state_without_averages_is_refused():
    state = create_train_state(jax.random.key(0), Linear(), make_optimizer(0.1))
    with pytest.raises(ValueError, match="no averages"):
        averaged(state)
