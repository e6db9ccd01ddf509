"""The shapes in closed form are those of the network, and give it back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers import assert_same

from resnet_cifar import ResNet
from resnet_cifar.errors import UserError
from resnet_cifar.variables import (
    array_shapes,
    model_of,
    num_parameters,
    stack_blocks,
    unstack_blocks,
)


@pytest.mark.parametrize(("depth", "remat"), [(8, False), (14, False), (20, True)])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_shapes_are_those_of_the_network(depth, remat, shortcut):
    model = ResNet(depth, num_classes=7, width=3, shortcut=shortcut, remat=remat)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda k, x: model.init(k, x, train=False), jax.random.key(0), images
    )
    wanted = {name: leaf.shape for name, leaf in flatten_dict(variables, sep="/").items()}
    shapes = array_shapes(depth, 7, 3, shortcut, remat)
    assert shapes == wanted
    assert model_of({n: np.zeros(s, np.float32) for n, s in shapes.items()}, "x") == model


@pytest.mark.parametrize(
    ("depth", "count"),
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
def test_parameters_are_those_of_the_paper(depth, count):
    assert num_parameters(ResNet(depth)) == count
    assert num_parameters(ResNet(depth, num_classes=100)) == count + 65 * 90
    assert num_parameters(ResNet(depth, shortcut="B")) == count + 2_752


def test_the_depth_comes_from_the_arrays_that_there_are():
    shapes = array_shapes(8, 3, 1, "A")
    arrays = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    extra = {"params/stage1_block999999999/conv1/kernel": np.zeros(1)}
    with pytest.raises(UserError, match=r"^x does not hold the arrays of a ResNet14: .* missing"):
        model_of(arrays | extra, "x")


def test_stacked_blocks_are_in_the_order_of_the_network():
    shapes = array_shapes(74, 3, 1, "B")  # 12 blocks: in the order of their names, 10 is before 2.
    arrays = {n: np.full(shape, i, np.float32) for i, (n, shape) in enumerate(shapes.items())}
    variables = unflatten_dict(arrays, sep="/")
    stacked = stack_blocks(variables)
    shapes = {n: a.shape for n, a in flatten_dict(stacked, sep="/").items()}
    assert shapes == array_shapes(74, 3, 1, "B", remat=True)
    kernels = stacked["params"]["stage2_blocks"]["conv1"]["kernel"]
    expected = arrays["params/stage2_block10/conv1/kernel"]
    np.testing.assert_array_equal(kernels[8], expected)
    assert_same(unstack_blocks(stacked), variables)
    assert_same(stack_blocks(stacked), stacked)
    assert_same(unstack_blocks(variables), variables)


def test_stages_that_are_not_all_stacked_are_no_network():
    arrays = array_shapes(14, 3, 1, "A") | array_shapes(14, 3, 1, "A", remat=True)
    arrays = {n: np.zeros(shape, np.float32) for n, shape in arrays.items()}
    with pytest.raises(UserError, match="does not hold the arrays of a ResNet20"):
        model_of(arrays, "x")
