"""The networks are those of the paper."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import normal

from resnet_cifar.models import ResidualBlock, ResNet, he_normal, pad_channels, uniform_scale
from resnet_cifar.optim import make_optimizer
from resnet_cifar.state import create_train_state, initialize
from resnet_cifar.steps import train_step
from resnet_cifar.variables import stack_blocks

# Closed form, and He et al. 2015, table 6. Shortcut B adds two 1x1 convolutions with BatchNorm, a
# class 65 parameters.
PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962}
SHORTCUT_B = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
IMAGES = jnp.zeros((1, 32, 32, 3))


def count(model) -> int:
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), IMAGES)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize("depth", PARAMETERS)
def test_parameters_of_the_family(depth):
    assert count(ResNet(depth)) == PARAMETERS[depth]


@pytest.mark.parametrize(("depth", "num_classes"), [(20, 10), (56, 100)])
def test_shortcut_b_and_more_classes_add_parameters(depth, num_classes):
    expected = PARAMETERS[depth] + SHORTCUT_B + 65 * (num_classes - 10)
    assert count(ResNet(depth, num_classes=num_classes, shortcut="B")) == expected


def test_width_scales_every_stage():
    shapes = jax.eval_shape(
        partial(ResNet(8, width=8).init, train=False), jax.random.key(0), IMAGES
    )["params"]
    assert [shapes[f"stage{i}_block1"]["conv2"]["kernel"].shape[-1] for i in (1, 2, 3)] == [
        8,
        16,
        32,
    ]


@pytest.mark.parametrize(
    ("depth", "nearest"), [(21, "20 and 26"), (7, "8"), (2, "8"), (55, "50 and 56")]
)
def test_illegal_depth_names_the_nearest_legal_ones(depth, nearest):
    with pytest.raises(ValueError, match=rf"depth={depth} .* {nearest}$"):
        ResNet(depth)


def test_unknown_shortcut_is_refused():
    with pytest.raises(ValueError, match="shortcut='C' is unknown"):
        ResNet(8, shortcut="C")


def test_convolutions_pad_one_pixel_on_each_side_at_stride_two():
    block, x = ResidualBlock(filters=32, stride=2), normal(0, 2, 8, 8, 16)
    variables = jax.jit(partial(block.init, train=False))(jax.random.key(1), x)
    apply = jax.jit(partial(block.apply, train=False, capture_intermediates=True))
    _, state = apply(variables, x)
    got = state["intermediates"]["conv1"]["__call__"][0]

    conv = partial(
        jax.lax.conv_general_dilated,
        x,
        variables["params"]["conv1"]["kernel"],
        (2, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(got, conv(padding=((1, 1), (1, 1))), atol=1e-5)
    assert not np.allclose(got, conv(padding="SAME"), atol=1e-2)


@pytest.mark.parametrize("shortcut", "AB")
def test_a_block_is_the_equation_of_the_paper(shortcut):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)), at the initial statistics."""
    block = ResidualBlock(filters=32, stride=2, shortcut=shortcut, scale_init=uniform_scale)
    x = normal(0, 2, 8, 8, 16)
    variables = jax.jit(partial(block.init, train=False))(jax.random.key(1), x)
    params = variables["params"]

    def conv(name, x, stride, pad):
        return jax.lax.conv_general_dilated(
            x, params[name]["kernel"], (stride, stride), ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    def norm(name, x):
        return x * params[name]["scale"].reshape(1, 1, 1, -1) / np.sqrt(1 + 1e-5)

    y = norm("bn2", conv("conv2", jax.nn.relu(norm("bn1", conv("conv1", x, 2, 1))), 1, 1))
    if shortcut == "A":
        x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (8, 8)))
    else:
        x = norm("shortcut_bn", conv("shortcut_conv", x, 2, 0))
    got = jax.jit(partial(block.apply, train=False))(variables, normal(0, 2, 8, 8, 16))
    np.testing.assert_allclose(got, jax.nn.relu(x + y), atol=1e-5)


def test_shortcut_a_takes_every_second_pixel_and_pads_zeros():
    x = jnp.arange(4 * 4 * 2.0).reshape(1, 4, 4, 2)
    padded = pad_channels(x[:, ::2, ::2], 4)
    assert padded.shape == (1, 2, 2, 4)
    np.testing.assert_array_equal(padded[0, 1, 1], [0, *x[0, 2, 2], 0])


def test_batch_statistics_move_by_a_tenth_towards_the_batch():
    model, images = ResNet(8, width=2), normal(0, 16, 16, 16, 3)
    variables = initialize(model, jax.random.key(1), (16, 16, 3))
    _, state = jax.jit(
        partial(
            model.apply,
            train=True,
            mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
        )
    )(variables, images)
    stem = np.asarray(state["intermediates"]["stem_conv"]["__call__"][0])
    stats = state["batch_stats"]["stem_bn"]
    np.testing.assert_allclose(stats["mean"], 0.1 * stem.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * stem.var((0, 1, 2)), rtol=1e-4)


def test_evaluation_reads_the_running_statistics_and_changes_nothing():
    model, images = ResNet(8, width=2), normal(0, 4, 16, 16, 3)
    variables = initialize(model, jax.random.key(1), (16, 16, 3))
    apply = jax.jit(partial(model.apply, train=False))
    alone, together = apply(variables, images[:1]), apply(variables, images)
    np.testing.assert_allclose(alone, together[:1], atol=1e-5)


def test_initial_values():
    kernel = np.asarray(he_normal(jax.random.key(0), (3, 3, 64, 64), jnp.float32))
    sigma = np.sqrt(2 / (9 * 64))
    assert abs(kernel.std() / sigma - 1) < 0.02
    assert abs(kernel).max() > 3 * sigma  # Not truncated, as `nn.initializers.he_normal` would be.
    scale = np.asarray(uniform_scale(jax.random.key(0), (10_000,)))
    assert scale.min() >= 0 and scale.max() < 1 and abs(scale.mean() - 0.5) < 0.02


def test_kernels_drawn_as_matrices_have_the_values_of_flax():
    init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    expected = init(jax.random.key(0), (2, 2, 2, 4), jnp.float32)
    np.testing.assert_array_equal(he_normal(jax.random.key(0), (2, 2, 2, 4)), expected)


def test_the_model_uses_its_initializers():
    model = ResNet(8, shortcut="B", scale_init=uniform_scale)
    params = jax.device_get(initialize(model, jax.random.key(0), (32, 32, 3))["params"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith("kernel"):
            expected = np.sqrt(2 / np.prod(leaf.shape[:-1]))
            assert abs(leaf.std() / expected - 1) < 4 / np.sqrt(leaf.size), name
        elif name.endswith("scale"):
            assert 0 <= leaf.min() < leaf.max() < 1 and leaf.std() > 0.15, name
        else:
            assert not leaf.any(), name


def test_bfloat16_keeps_parameters_statistics_and_logits_in_float32():
    model = ResNet(8, dtype=jnp.bfloat16)
    init = partial(model.init, train=False)
    variables = jax.eval_shape(init, jax.random.key(0), IMAGES)
    apply = partial(model.apply, train=True, mutable=["batch_stats"])
    logits, state = jax.eval_shape(apply, variables, IMAGES)
    assert {leaf.dtype for leaf in jax.tree.leaves((variables, logits, state))} == {
        jnp.dtype("float32")
    }


@pytest.fixture(scope="module")
def deep():
    """Variables, images and a function that compiles the gradient of a ResNet20 of width 2."""
    model = ResNet(20, width=2, shortcut="B")
    images = normal(1, 32, 32, 32, 3)
    variables = initialize(model, jax.random.key(0), (32, 32, 3))

    def loss(model, params, stats):
        logits, updates = model.apply(
            {"params": params, "batch_stats": stats}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.square(logits).sum(), updates

    def compiled(model, variables):
        gradient = jax.jit(jax.value_and_grad(partial(loss, model), has_aux=True))
        return gradient.lower(variables["params"], variables["batch_stats"]).compile()

    return model, variables, images, compiled


@pytest.mark.slow
def test_remat_changes_no_gradient_and_no_statistics_and_saves_memory(deep):
    model, variables, _, compiled = deep
    stacked = stack_blocks(variables)
    stored, computed_again = compiled(model, variables), compiled(model.clone(remat=True), stacked)
    (loss, stats), grads = stored(variables["params"], variables["batch_stats"])
    expected = loss, stack_blocks({"params": grads, **stats})
    (loss, stats), grads = computed_again(stacked["params"], stacked["batch_stats"])
    actual = loss, {"params": grads, **stats}
    assert jax.tree.structure(expected) == jax.tree.structure(actual)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), actual, expected)
    less, more = (
        program.memory_analysis().temp_size_in_bytes for program in (computed_again, stored)
    )
    assert less < 0.75 * more


@pytest.mark.slow
def test_remat_of_the_native_network_changes_no_gradient(native_kernels):
    model, images = ResNet(20, native=True), normal(1, 8, 16, 16, 3)
    variables = initialize(model.clone(native=False), jax.random.key(0), (16, 16, 3))
    stacked = stack_blocks(variables)

    def gradient(model, variables):
        def loss(params):
            variables_ = {"params": params, "batch_stats": variables["batch_stats"]}
            logits, updates = model.apply(variables_, images, train=True, mutable=["batch_stats"])
            return jnp.square(logits).sum(), updates["batch_stats"]

        grads, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        return {"params": grads, "batch_stats": stats}

    expected, actual = gradient(model, variables), gradient(model.clone(remat=True), stacked)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max()),
        actual,
        stack_blocks(expected),
    )


def test_remat_evaluates_the_same_network(deep):
    model, variables, images, _ = deep
    stacked = stack_blocks(variables)
    expected = jax.jit(partial(model.apply, train=False))(variables, images)
    actual = jax.jit(partial(model.clone(remat=True).apply, train=False))(stacked, images)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_program_with_remat_does_not_grow_with_depth():
    def equations(depth):
        model = ResNet(depth, width=2, remat=True)
        state = jax.eval_shape(
            lambda: create_train_state(jax.random.key(0), model, make_optimizer(0.1))
        )
        batch = {"image": jnp.ones((2, 32, 32, 3)), "label": jnp.arange(2)}
        return str(jax.make_jaxpr(train_step)(state, batch)).count(" = ")

    assert equations(14) == equations(110)


def test_remat_of_one_block_a_stage_is_the_plain_network():
    model, images = ResNet(8, width=2, remat=True), normal(0, 1, 8, 8, 3)
    variables = initialize(model, jax.random.key(0), (8, 8, 3))
    rematerialized, plain = (
        jax.jit(partial(network.apply, train=False))(variables, images)
        for network in (model, model.clone(remat=False))
    )
    np.testing.assert_array_equal(rematerialized, plain)
