"""The shapes in closed form are those of the network, and give it back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from resnet_cifar import ResNet
from resnet_cifar.errors import UserError
from resnet_cifar.variables import array_shapes, model_of, num_parameters


@pytest.mark.parametrize("depth", [8, 14])
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_shapes_are_those_of_the_network(depth, shortcut):
    model = ResNet(depth, num_classes=7, width=3, shortcut=shortcut)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(
        lambda k, x: model.init(k, x, train=False), jax.random.key(0), images
    )
    wanted = {name: leaf.shape for name, leaf in flatten_dict(variables, sep="/").items()}
    shapes = array_shapes(depth, 7, 3, shortcut)
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
