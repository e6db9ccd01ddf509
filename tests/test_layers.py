"""The gradients written by hand are those of the plain forms."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import TOLERANCE, assert_close, normal

from benchmarks.plain import PlainResNet
from resnet_cifar import ResNet
from resnet_cifar.convolution import convolve, plain_convolve
from resnet_cifar.layers import BatchNormRelu, batch_norm_relu, scale_add_relu
from resnet_cifar.models import uniform_scale
from resnet_cifar.state import initialize

pytestmark = pytest.mark.usefixtures("strict_dtypes")


def test_gradients_in_float64():
    with jax.enable_x64(True):
        x, kernel, ones = (
            normal(0, 4, 8, 8, 3, dtype="float64"),
            normal(1, 3, 3, 3, 3, dtype="float64"),
            jnp.ones(3),
        )

        @partial(jax.jit, static_argnums=0)
        def loss(convolve, kernel):
            return jnp.sin(batch_norm_relu(convolve(x, kernel, 1), ones, ones, x)[0]).sum()

        step = 1e-6 * normal(2, 3, 3, 3, 3, dtype="float64")
        slope = (jax.grad(partial(loss, convolve))(kernel) * step).sum()
        np.testing.assert_allclose(
            slope, (loss(convolve, kernel + step) - loss(convolve, kernel - step)) / 2, rtol=1e-6
        )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("with_shortcut", [False, True])
def test_batch_norm_relu(with_shortcut, dtype):
    """Values, statistics and gradients, against linen's BatchNorm in float32."""
    x = jnp.asarray(3 + 2 * np.asarray(normal(0, 8, 6, 6, 4)))
    shortcut = normal(1, 8, 6, 6, 4) if with_shortcut else None
    dy = normal(2, 8, 6, 6, 4)
    x, shortcut, dy = jax.tree.map(lambda a: a.astype(dtype), (x, shortcut, dy))
    params = {"scale": normal(3, 4), "bias": normal(4, 4)}
    stats = {"mean": jnp.zeros(4), "var": jnp.ones(4)}

    def ours(params, x, shortcut):
        variables = {"params": params, "batch_stats": stats}
        return BatchNormRelu().apply(variables, x, shortcut, train=True, mutable=["batch_stats"])

    def plain(params, x, shortcut):
        norm = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)
        x, shortcut = jax.tree.map(lambda a: a.astype("float32"), (x, shortcut))
        with jax.numpy_dtype_promotion("standard"):
            y, updates = norm.apply(
                {"params": params, "batch_stats": stats}, x, mutable=["batch_stats"]
            )
        return nn.relu(y if shortcut is None else y + shortcut), updates

    @partial(jax.jit, static_argnums=0)
    def everything(function, dy):
        y, gradients, updates = jax.vjp(function, params, x, shortcut, has_aux=True)
        return y, gradients(dy), updates

    y, grads, updates = everything(ours, dy)
    expected, plain_grads, plain_updates = everything(plain, dy.astype("float32"))
    assert y.dtype == dtype
    assert_close(y.astype("float32"), expected, dtype)
    assert_close(updates, plain_updates)
    # Where bfloat16 rounds an output to 0, either gradient is right; dy is exact in both.
    assert_close(grads, plain_grads, dtype)


@pytest.mark.slow
def test_products_with_the_hessian():
    x, kernel, direction = normal(0, 4, 8, 8, 3), normal(1, 3, 3, 3, 3), normal(2, 3, 3, 3, 3)
    ones, zeros = jnp.ones(3), jnp.zeros(3)

    def plain_norm(x, shortcut):
        x = (x - x.mean((0, 1, 2), keepdims=True)) / jnp.sqrt(
            x.var((0, 1, 2), keepdims=True) + 1e-5
        )
        return nn.relu(x + shortcut)

    def product(convolve, norm):
        return jax.jvp(
            jax.grad(lambda kernel: jnp.sin(norm(convolve(x, kernel, 1), x)).sum()),
            (kernel,),
            (direction,),
        )

    assert_close(
        product(convolve, lambda x, shortcut: batch_norm_relu(x, ones, zeros, shortcut)[0]),
        product(plain_convolve, plain_norm),
    )


@pytest.mark.parametrize("native", [False, True])
def test_the_network_is_the_plain_one(native, request):
    """The same parameters, logits, statistics and gradients."""
    if native:
        request.getfixturevalue("native_kernels")
    model = ResNet(8, native=native)
    images = normal(0, 16, 32, 32, 3)
    variables = initialize(model, jax.random.key(2), (32, 32, 3))

    @partial(jax.jit, static_argnums=0)
    def everything(model, params):
        def loss(params):
            logits, updates = model.apply(
                variables | {"params": params}, images, train=True, mutable=["batch_stats"]
            )
            return jax.nn.logsumexp(logits, axis=1).mean(), (logits, updates)

        return jax.grad(loss, has_aux=True)(params)

    with jax.numpy_dtype_promotion("standard"):
        shapes = jax.eval_shape(
            partial(PlainResNet(8).init, train=False), jax.random.key(0), images[:1]
        )
        assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
        got, expected = (
            everything(model, variables["params"]) for model in (model, PlainResNet(8))
        )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 * abs(np.asarray(b)).max())


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_native_evaluation(native_kernels, dtype):
    """With shortcut B, whose 1x1 convolutions stay XLA's."""
    images = normal(0, 2, 8, 8, 3, dtype=dtype)
    model = ResNet(8, shortcut="B", scale_init=uniform_scale, dtype=dtype)
    with jax.numpy_dtype_promotion("standard"):
        variables = jax.jit(partial(model.init, train=False))(jax.random.key(1), images)
        got, expected = (
            jax.jit(partial(network.apply, train=False))(variables, images)
            for network in (model.clone(native=True), model)
        )
    assert_close(got, expected, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nan_stays_nan(dtype):
    """XLA's CPU backend drops NaN from a ReLU that it fuses with a mean."""
    nan, one, zero = jnp.full((2, 4, 4, 8), jnp.nan, dtype), jnp.ones(8), jnp.zeros(8)
    score = jax.jit(lambda x: scale_add_relu(x, zero, one, zero, None).mean((1, 2)))
    assert jnp.isnan(score(nan)).all()
    train = jax.jit(lambda x: batch_norm_relu(x, one, zero, None)[0].mean((1, 2)))
    assert jnp.isnan(train(nan)).all()
