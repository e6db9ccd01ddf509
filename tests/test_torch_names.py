"""Our arrays and PyTorch's tensors: there and back, and what is missing or left over."""

import numpy as np
import pytest

from resnet_cifar.errors import UserError
from resnet_cifar.torch_names import LAYOUTS, from_torch, to_torch
from resnet_cifar.variables import array_shapes

KINDS = [(name, shortcut) for name, layout in LAYOUTS.items() for shortcut in layout.shortcuts]


def random_arrays(depth=8, num_classes=5, width=4, shortcut="A"):
    rng = np.random.default_rng(0)
    shapes = array_shapes(depth, num_classes, width, shortcut)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize(("layout", "shortcut"), KINDS)
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_the_round_trip_is_exact(layout, shortcut, prefix):
    arrays = random_arrays(depth=14, shortcut=shortcut)
    tensors = to_torch(arrays, layout)
    found, again = from_torch({prefix + name: tensor for name, tensor in tensors.items()})
    assert found == layout and again.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)


@pytest.mark.parametrize(
    ("layout", "names"),
    [
        ("akamaster", ["conv1.weight", "layer3.1.bn2.running_var", "linear.bias"]),
        ("chenyaofo", ["layer2.0.downsample.0.weight", "layer2.0.downsample.1.bias", "fc.weight"]),
        (
            "pytorchcv",
            [
                "features.init_block.bn.running_mean",
                "features.stage3.unit2.body.conv1.conv.weight",
                "features.stage2.unit1.identity_conv.bn.weight",
                "output.weight",
            ],
        ),
    ],
)
def test_the_keys_are_those_of_the_repositories(layout, names):
    assert not set(names) - to_torch(random_arrays(depth=14, shortcut="B"), layout).keys()


def test_axes_follow_pytorch():
    arrays = random_arrays()
    tensors = to_torch(arrays, "akamaster")
    kernel, head = arrays["params/stage2_block1/conv1/kernel"], arrays["params/head/kernel"]
    assert tensors["layer2.0.conv1.weight"][7, 3, 0, 2] == kernel[0, 2, 3, 7]
    assert tensors["linear.weight"][4, 15] == head[15, 4]
    assert all(tensor.flags.c_contiguous for tensor in tensors.values())


def test_counters_of_batches_are_ignored():
    tensors = to_torch(random_arrays(), "akamaster")
    counter = {"layer1.0.bn1.num_batches_tracked": np.int64(3)}
    assert from_torch({**tensors, **counter})[1].keys() == random_arrays().keys()
    with pytest.raises(UserError, match=r"left over are 'bn9.num_batches_tracked'"):
        from_torch({**tensors, "bn9.num_batches_tracked": np.int64(3)})


@pytest.mark.parametrize(
    ("removed", "missing"),
    [
        ("linear", "'linear.weight', 'linear.bias'"),
        ("conv1", "'conv1.weight'"),
        ("layer2.0.bn1", "'layer2.0.bn1.weight', 'layer2.0.bn1.bias'"),
        ("layer3.1", "'layer3.1.conv1.weight', "),
    ],
)
def test_missing_and_extra_keys_are_listed(removed, missing):
    tensors = to_torch(random_arrays(depth=14), "akamaster")
    kept = {n: t for n, t in tensors.items() if not n.startswith(removed + ".")}
    with pytest.raises(UserError, match=rf"akamaster: missing are {missing}.*; .* 'extra'"):
        from_torch({**kept, "extra": np.zeros(1)})


def test_a_layout_with_projections_must_have_them():
    """Without them, it would pass for a network with shortcut A."""
    tensors = to_torch(random_arrays(shortcut="B"), "chenyaofo")
    kept = {name: tensor for name, tensor in tensors.items() if "downsample" not in name}
    with pytest.raises(UserError, match=r"missing are 'layer2.0.downsample.0.weight'"):
        from_torch(kept)


def test_another_shape_is_named():
    tensors = to_torch(random_arrays(), "akamaster")
    with pytest.raises(UserError, match=r"layer1.0.bn1.bias has the shape \[9\]"):
        from_torch({**tensors, "layer1.0.bn1.bias": np.zeros(9)})


def test_foreign_keys_are_listed_up_to_thirty():
    with pytest.raises(UserError, match=r"none of the layouts akamaster.*'k29' and 70 more$"):
        from_torch({f"k{i}": np.zeros(1) for i in range(100)})
