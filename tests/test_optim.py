"""The schedule and the optimizer, against closed forms, optax and torch's formula."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_cifar.optim import learning_rate_schedule, make_optimizer
from resnet_cifar.variables import stack_blocks


def test_card_schedule_around_its_milestones():
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


def test_paper_schedule_of_resnet110_starts_at_a_tenth():
    schedule = learning_rate_schedule(
        0.1, warmup_steps=400, decay_steps=(32_000, 48_000), warmup="constant"
    )
    for step, rate in {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_000: 0.01}.items():
        np.testing.assert_allclose(schedule(step), rate, rtol=1e-5, err_msg=f"step {step}")


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        (
            "cosine",
            {
                5: 0.1,
                10: 0.2,
                50: 0.2 * (1 + math.cos(math.pi * 4 / 9)) / 2,
                55: 0.1,
                99: 0.0000609,
                100: 0.0,
            },
        ),
        ("linear", {5: 0.1, 10: 0.2, 55: 0.1, 99: 0.2 / 90, 100: 0.0}),
    ],
)
def test_cosine_and_linear_fall_to_0(decay, expected):
    schedule = learning_rate_schedule(0.2, num_steps=100, warmup_steps=10, decay=decay)
    for step, rate in expected.items():
        np.testing.assert_allclose(
            schedule(step), rate, rtol=1e-3, atol=1e-8, err_msg=f"step {step}"
        )


def test_inconsistent_schedules_are_errors():
    with pytest.raises(ValueError, match="must ascend"):
        learning_rate_schedule(0.1, decay_steps=(20, 10))
    with pytest.raises(ValueError, match="must ascend"):
        learning_rate_schedule(0.1, warmup_steps=30, decay_steps=(20,))
    with pytest.raises(ValueError, match="without repeats"):
        learning_rate_schedule(0.1, decay_steps=(10, 10))
    with pytest.raises(ValueError, match="warmup='cosine' is unknown"):
        learning_rate_schedule(0.1, warmup="cosine")
    with pytest.raises(ValueError, match="decay='cosin' is unknown"):
        learning_rate_schedule(0.1, decay="cosin")
    for wrong in (
        {},
        {"num_steps": 30, "warmup_steps": 30},
        {"num_steps": 30, "decay_steps": (20,)},
    ):
        with pytest.raises(ValueError, match="decay='cosine' needs num_steps"):
            learning_rate_schedule(0.1, decay="cosine", **wrong)


@pytest.mark.parametrize("nesterov", [False, True])
def test_optimizer_is_the_sgd_of_torch(nesterov):
    momentum, decay, rates = 0.9, 0.01, [0.0, 0.1, 0.1, 0.01, 0.02]
    tx = make_optimizer(
        lambda step: jnp.asarray(rates)[step],
        momentum=momentum,
        weight_decay=decay,
        nesterov=nesterov,
    )
    rng = np.random.default_rng(0)
    params = {
        "kernel": rng.normal(size=(3, 2)).astype(np.float32),
        "bias": rng.normal(size=2).astype(np.float32),
    }
    expected = {name: value.astype(np.float64) for name, value in params.items()}
    buffers = {name: np.zeros_like(value) for name, value in expected.items()}
    opt_state = tx.init(params)
    for rate in rates:
        grads = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
        for (
            name,
            value,
        ) in expected.items():  # torch.optim.SGD, dampening 0: every parameter decays, biases too.
            decayed = grads[name] + decay * value
            buffers[name] = momentum * buffers[name] + decayed
            expected[name] = value - rate * (
                decayed + momentum * buffers[name] if nesterov else buffers[name]
            )
    jax.tree.map(
        lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6),
        params,
        expected,
    )


SCHEDULES = {
    "steps": dict(warmup_steps=8, decay_steps=(24, 28)),
    "constant": dict(warmup_steps=8, decay_steps=(24,), warmup="constant"),
    "cosine": dict(warmup_steps=8, num_steps=32, decay="cosine"),
    "linear": dict(num_steps=32, decay="linear"),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_float32_whatever_the_settings_of_jax(name):
    schedule = learning_rate_schedule(0.1, **SCHEDULES[name])
    rates = [np.asarray(schedule(step)) for step in range(33)]
    for strict in (False, True):
        mode = "strict" if strict else "standard"
        with jax.enable_x64(True), jax.numpy_dtype_promotion(mode):
            others = [np.asarray(schedule(jnp.int32(step))) for step in range(33)]
        assert {rate.dtype for rate in rates + others} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(rates, others)


def test_schedules_have_the_bits_of_optax():
    ours = learning_rate_schedule(1.2, warmup_steps=24, decay_steps=(384, 576))
    rise = optax.linear_schedule(0.0, 1.2, 24)
    fall = optax.piecewise_constant_schedule(1.2, {360: 0.1, 552: 0.1})
    steps = jnp.arange(800)
    np.testing.assert_array_equal(
        jax.vmap(ours)(steps), jax.vmap(optax.join_schedules([rise, fall], [24]))(steps)
    )


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_stacked_blocks_are_updated_like_single_ones(name):
    rng = np.random.default_rng(0)
    params = {"head": {"kernel": rng.normal(size=(8, 3)).astype(np.float32)}}
    for i in (2, 3):
        kernel = rng.normal(size=(3, 3, 2, 4)).astype(np.float32)
        params[f"stage1_block{i}"] = {"kernel": kernel, "scale": kernel[0, 0, 0]}
    tx = make_optimizer(0.1, optimizer=name, weight_decay=0.1, decay_mask=True)

    @jax.jit
    def update(params):
        return tx.update(jax.tree.map(jnp.sin, params), tx.init(params), params)[0]

    (stacked,) = stack_blocks({"params": params}).values()
    (expected,) = stack_blocks({"params": update(params)}).values()
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), update(stacked), expected
    )


def test_blocks_of_other_networks_are_not_taken_for_stacked_ones():
    params = {"res_blocks": {"dense": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones(3)}}}
    tx = make_optimizer(0.1, weight_decay=0.5, decay_mask=True)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["res_blocks"]["dense"]["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["res_blocks"]["dense"]["bias"], 0)
