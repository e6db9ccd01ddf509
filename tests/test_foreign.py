"""A native function is replaced by its plain form where JAX would be lost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_cifar.foreign import replaced_by


def plain(stride, keep, x, pair):
    del stride, keep
    return 3 * x, pair["a"].sum()


@replaced_by(plain)
def function(stride, keep, x, pair):
    """Differs from `plain`, so that one sees which was used."""
    del keep
    return stride * x, pair["a"].max()


PAIR = {"a": jnp.arange(3.0)}


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit])
def test_values_are_those_of_the_function(transform):
    x, most = transform(lambda x: function(2, True, x, PAIR))(jnp.ones(4))
    np.testing.assert_array_equal(x, 2 * np.ones(4))
    assert most == 2


def test_derivatives_are_those_of_the_plain_form():
    gradients = jax.grad(lambda x, pair: sum(function(2, True, x, pair)), (0, 1))(1.0, PAIR)
    assert gradients[0] == 3
    np.testing.assert_array_equal(gradients[1]["a"], np.ones(3))


def test_vmap_calls_the_function_for_each_element():
    x, most = jax.vmap(lambda x, a: function(2, True, x, {"a": a}))(jnp.arange(2.0), jnp.eye(2))
    np.testing.assert_array_equal(x, [0, 2])
    np.testing.assert_array_equal(most, [1, 1])


def test_exported_programs_contain_the_plain_form():
    jitted = jax.jit(lambda x: function(2, True, x, PAIR))
    x, total = jax.export.export(jitted)(jnp.ones(4)).call(jnp.ones(4))
    np.testing.assert_array_equal(x, 3 * np.ones(4))
    assert total == 3
