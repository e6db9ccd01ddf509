"""The schedule and the optimizer are those of the recipes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_cifar.optim import learning_rate_schedule, make_optimizer


def test_card_schedule_at_every_milestone_and_its_neighbours():
    schedule = learning_rate_schedule(1.2, warmup_steps=240, decay_steps=(3840, 5760))
    expected = {
        0: 0.0, 1: 0.005, 120: 0.6, 239: 1.195, 240: 1.2, 241: 1.2,
        3839: 1.2, 3840: 0.12, 3841: 0.12, 5759: 0.12, 5760: 0.012, 5761: 0.012, 7679: 0.012,
    }  # fmt: skip
    for step, rate in expected.items():
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-5, err_msg=f"step {step}")


def test_paper_schedule_has_no_warmup():
    schedule = learning_rate_schedule(0.1, decay_steps=(32_000, 48_000))
    for step, rate in {0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001}.items():
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-5, err_msg=f"step {step}")


def test_paper_schedule_of_resnet110_begins_at_a_tenth():
    schedule = learning_rate_schedule(0.1, warmup_steps=400, decay_steps=(32_000, 48_000), warmup="constant")
    for step, rate in {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_000: 0.01}.items():
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-5, err_msg=f"step {step}")


def test_schedule_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="must ascend"):
        learning_rate_schedule(0.1, decay_steps=(20, 10))
    with pytest.raises(ValueError, match="must ascend"):
        learning_rate_schedule(0.1, warmup_steps=30, decay_steps=(20,))
    with pytest.raises(ValueError, match="without repeats"):
        learning_rate_schedule(0.1, decay_steps=(10, 10))
    with pytest.raises(ValueError, match="warmup='cosine' is unknown"):
        learning_rate_schedule(0.1, warmup="cosine")


def test_optimizer_is_sgd_with_momentum_and_coupled_decay_as_in_torch():
    momentum, decay, rates = 0.9, 0.01, [0.0, 0.1, 0.1, 0.01, 0.02]
    tx = make_optimizer(lambda step: jnp.asarray(rates)[step], momentum=momentum, weight_decay=decay)
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(3, 2)).astype(np.float32), "bias": rng.normal(size=2).astype(np.float32)}
    expected = {name: value.astype(np.float64) for name, value in params.items()}
    buffers = {name: np.zeros_like(value) for name, value in expected.items()}
    opt_state = tx.init(params)
    for rate in rates:
        grads = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for name, value in expected.items():  # torch.optim.SGD, dampening 0: every parameter decays, biases too.
            buffers[name] = momentum * buffers[name] + (grads[name] + decay * value)
            expected[name] = value - rate * buffers[name]
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6), params, expected)
