"""The native unit computes its definition, under all transformations of JAX."""

import hashlib
import os
import subprocess
import sys
from functools import partial

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_cifar import native
from resnet_cifar.norm_conv import Normalized, activation, check, definition, norm_conv

pytestmark = pytest.mark.usefixtures("native_kernels")
TOLERANCE = {"float32": 2e-5, "bfloat16": 1e-2}  # Relative to the largest entry.
# Images, height, width, channels in and out, stride: the family's shapes, and odd ones.
SHAPES = [
    (2, 32, 32, 16, 16, 1),
    (1, 32, 32, 16, 32, 2),
    (2, 16, 16, 32, 32, 1),
    (1, 16, 16, 32, 64, 2),
    (17, 8, 8, 64, 64, 1),
    (2, 9, 7, 48, 16, 1),
    (3, 7, 10, 16, 48, 2),
    (2, 13, 11, 16, 16, 1),
    (2, 1, 2, 16, 16, 1),
    (2, 2, 1, 16, 16, 2),
]


def normal(seed, *shape, dtype="float32"):
    """Return numbers that bfloat16 can represent."""
    numbers = np.random.default_rng(seed).standard_normal(shape, np.float32)
    return jnp.asarray(numbers.astype("bfloat16").astype(dtype))


def arguments(shape, affine=False, shortcut=False, dtype="float32"):
    n, h, w, c, c2, _ = shape
    x, other = (normal(seed, n, h, w, c, dtype=dtype) for seed in (0, 2))
    given = Normalized(x, normal(3, 2, c) if affine else None, other if shortcut else None)
    return given, normal(1, 3, 3, c, c2)


def values_and_gradients(function, args):
    """Return the result and gradients for random cotangents, the same for all functions."""
    results, gradients = jax.vjp(function, *args)
    seeds = iter(range(10, 20))
    cotangents = jax.tree.map(lambda a: normal(next(seeds), *a.shape, dtype=a.dtype), results)
    return results, gradients(cotangents)


def assert_close(got, expected, tolerance):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape
        one, other = (np.asarray(array, np.float32) for array in (a, b))
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * abs(other).max())


def check_against_definition(shape, *, keep=True, **kind):
    """In both dtypes; the definition is computed in float32."""
    both = {dtype: arguments(shape, dtype=dtype, **kind) for dtype in TOLERANCE}
    unit, plain = (partial(f, stride=shape[5], keep=keep) for f in (norm_conv, definition))

    @jax.jit
    def everything(args):
        got = {dtype: values_and_gradients(unit, args[dtype]) for dtype in args}
        return got, values_and_gradients(plain, args["float32"])

    got, expected = everything(both)
    for dtype, tolerance in TOLERANCE.items():
        result, (given, kernel) = got[dtype]
        assert result.y.dtype == given.x.dtype == dtype
        assert result.moments.dtype == kernel.dtype == "float32"
        assert_close(got[dtype], expected, tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_unit_with_a_shortcut(shape):
    check_against_definition(shape, affine=True, shortcut=True)


@pytest.mark.parametrize("keep", [True, False])
def test_a_unit_without_a_shortcut(keep):
    check_against_definition((3, 12, 12, 16, 32, 2), affine=True, keep=keep)


@pytest.mark.parametrize(("c", "stride"), [(3, 1), (3, 2), (16, 1)])
def test_a_convolution_of_an_array(c, stride):
    check_against_definition((2, 6, 9, c, 32, stride), keep=c > 3)


@pytest.fixture(scope="module")
def block():
    return arguments((4, 4, 4, 16, 16, 1), affine=True, shortcut=True)


PLAIN = partial(definition, keep=True)


def loss(unit, kernel, given):
    result = unit(given, kernel)
    return (
        jnp.sin(result.y).mean()
        + jnp.sin(1e-4 * result.moments).sum()
        + jnp.cos(result.input).mean()
    )


def test_scan_remat_and_donation(block):
    """Three steps of descent."""

    def steps(unit, kernel):
        def step(kernel, _):
            gradient = jax.grad(jax.checkpoint(partial(loss, unit)))(kernel, block[0])
            return kernel - 0.1 * gradient, None

        return jax.lax.scan(step, kernel, length=3)[0]

    got = jax.jit(partial(steps, norm_conv), donate_argnums=0)(block[1] + 0)
    assert_close(got, jax.jit(partial(steps, PLAIN))(block[1]), 1e-5)


def test_vmap_over_seeds(block):
    """Kernels differ, images are shared."""
    kernels = jnp.stack([block[1], 2 * block[1], -block[1]])
    got, expected = (
        jax.jit(jax.vmap(jax.grad(partial(loss, unit)), (0, None)))(kernels, block[0])
        for unit in (norm_conv, PLAIN)
    )
    assert_close(got, expected, 1e-5)


def test_vmap_of_vmap(block):
    """Images of each seed, two augmentations each."""
    x, *others = block[0]
    xs = jnp.stack([jnp.stack([x, 2 * x, -x]), jnp.stack([3 * x, -2 * x, x])])

    def units(unit):
        moments = lambda x, kernel: unit(Normalized(x, *others), kernel).moments  # noqa: E731
        kernels = jnp.stack([block[1], -block[1]])
        return jax.jit(jax.vmap(jax.vmap(moments, (0, None)), (0, 0)))(xs, kernels)

    assert_close(units(norm_conv), units(PLAIN), 1e-5)


def test_second_derivatives(block):
    """A product with the Hessian, and the gradient of a gradient's norm."""

    def both(unit):
        gradient = jax.grad(partial(loss, unit))
        product = jax.jvp(lambda k: gradient(k, block[0]), block[1:], (jnp.cos(block[1]),))[1]
        return product, jax.grad(lambda k: (gradient(k, block[0]) ** 2).sum())(block[1])

    assert_close(jax.jit(partial(both, norm_conv))(), jax.jit(partial(both, PLAIN))(), 1e-4)


def test_without_jit(block):
    with jax.disable_jit():
        assert_close(norm_conv(*block), PLAIN(*block), 1e-5)


@pytest.mark.parametrize("platforms", [None, ("cpu", "cuda")])
def test_an_exported_program_is_the_definition(block, platforms):
    """A value and its gradients, for any number of images. Compiled as usual, it is native."""
    given, kernel = block

    def program(unit, *args):
        *images, affine, kernel = args
        given = Normalized(images[0], affine, images[1])
        return jax.tree.leaves(jax.value_and_grad(partial(loss, unit), (0, 1))(kernel, given))

    args = given.x, given.shortcut, given.affine, kernel
    images = jax.ShapeDtypeStruct(jax.export.symbolic_shape("n, 4, 4, 16"), jnp.float32)
    native_program = jax.jit(partial(program, norm_conv))
    exported = jax.export.export(native_program, platforms=platforms)(images, images, *args[2:])
    got = jax.export.deserialize(exported.serialize()).call(*args)
    assert_close(got, jax.jit(partial(program, PLAIN))(*args), 1e-5)
    assert native.PREFIX in native_program.lower(*args).as_text()


def test_a_split_batch_stays_on_its_devices(block):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (jax.NamedSharding(mesh, jax.P(axis)) for axis in ("data", None))
    args = jax.device_put(block, (Normalized(split, whole, split), whole))
    program = jax.jit(
        lambda given, kernel: jax.value_and_grad(partial(loss, norm_conv))(kernel, given)
    )
    compiled = program.lower(*args).compile()
    assert "all-gather" not in compiled.as_text()
    assert_close(compiled(*args), jax.value_and_grad(partial(loss, PLAIN))(*block[::-1]), 1e-5)


def test_shard_map(block):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    n, whole = jax.P("data"), jax.P()

    def on_each(given, kernel):
        result = norm_conv(given, kernel)
        return result._replace(moments=jax.lax.psum(result.moments, "data"))

    out = type(PLAIN(*block))(n, whole, n)
    specs = {"in_specs": (Normalized(n, whole, n), whole), "out_specs": out, "check_vma": False}
    got = jax.jit(jax.shard_map(on_each, mesh=mesh, **specs))(*block)
    assert_close(got, PLAIN(*block), 1e-5)


def test_activation_leaves_arrays_alone(block):
    x, (scale, bias), shortcut = block[0]
    scale, bias = scale.reshape(1, 1, 1, -1), bias.reshape(1, 1, 1, -1)
    assert activation(x) is x and activation(Normalized(x)) is x
    np.testing.assert_allclose(
        activation(block[0]), np.maximum(x * scale + bias + shortcut, 0), rtol=1e-6
    )


WRONG = {
    "x must be": {"x": jnp.zeros((4, 8, 16))},
    "x must be float32 or bfloat16": {"x": jnp.zeros((4, 4, 4, 16), int)},
    "kernel must be": {"kernel": jnp.zeros((5, 5, 16, 16))},
    "16 to 8 channels": {"kernel": jnp.zeros((3, 3, 16, 8))},
    r"affine must be \(2, 16\)": {"affine": jnp.zeros((2, 8))},
    "affine must be float32": {"affine": jnp.zeros((2, 16), "bfloat16")},
    "a shortcut needs an affine": {"affine": None},
    r"shortcut must be \(4": {"shortcut": jnp.zeros((2, 4, 4, 16))},
    "shortcut must be float32": {"shortcut": jnp.zeros((4, 4, 4, 16), "bfloat16")},
    "stride 1 or 2": {"stride": 3},
    "3 to 16 channels": {"x": jnp.zeros((4, 4, 4, 3)), "shortcut": None},
    "5 to 16 channels": {"x": jnp.zeros((4, 4, 4, 5)), "affine": None, "shortcut": None},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_errors(block, message):
    args = {**block[0]._asdict(), "kernel": block[1], "stride": 1} | WRONG[message]
    given = Normalized(*(args[name] for name in Normalized._fields))
    with pytest.raises((TypeError, ValueError), match=message):
        check(given, args["kernel"], args["stride"])


@pytest.mark.parametrize("function", native.FUNCTIONS)
@pytest.mark.parametrize(("count", "stride"), [(0, 1), (1, 1), (2, 0), (2, 1), (4, 2), (9, 1)])
def test_wrong_native_calls_are_errors(block, function, count, stride):
    """The library checks its arguments by itself."""
    result = jax.ShapeDtypeStruct((1, 4, 4, 16), jnp.float32)
    call = jax.ffi.ffi_call(native.target(function), [result])
    args = [block[0].x, block[1], block[0].affine, *6 * [block[0].x]]
    with pytest.raises(jax.errors.JaxRuntimeError, match="unexpected types or shapes"):
        jax.block_until_ready(call(*args[:count], stride=np.int64(stride)))


def test_a_native_gradient_of_images_is_an_error(block):
    """Without an affine there is only the gradient of the kernel."""
    x, kernel = block[0].x, block[1]
    results = [jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in (kernel, x)]
    call = jax.ffi.ffi_call(native.target("backward_float32"), results)
    with pytest.raises(jax.errors.JaxRuntimeError, match="unexpected types or shapes"):
        jax.block_until_ready(call(x, kernel, x, x, block[0].affine, stride=np.int64(1)))


ON_ONE_CORE = """
import os
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
import test_norm_conv
print(test_norm_conv.digest())
"""


def digest():
    """Return a digest of the results for enough images to have several tasks."""
    args = arguments((40, 8, 8, 16, 32, 2), affine=True, shortcut=True)
    results = jax.jit(partial(values_and_gradients, partial(norm_conv, stride=2)))(args)
    leaves = map(np.asarray, jax.tree.leaves(results))
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="can't restrict the threads")
def test_bits_do_not_depend_on_the_threads():
    """They are the same from run to run, too."""
    command = [sys.executable, "-c", ON_ONE_CORE]
    here = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=here, check=True, capture_output=True, text=True)
    alone = done.stdout.strip()
    assert {digest(), digest()} == {alone}


def test_the_blocks_for_avx512(monkeypatch):
    """They are larger. Any processor can run them, if slowly."""
    flags, compiler = ["-O0", "-DLANES=16"], native.find_compiler(os.environ)
    monkeypatch.setattr(native, "registered", [])
    native.register(native.library(compiler, flags, os.environ), "avx512_blocks_")
    for shape in SHAPES[4:7]:
        check_against_definition(shape, affine=True, shortcut=True)
    for stride in (1, 2):
        check_against_definition((2, 6, 9, 3, 32, stride), keep=False)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_nan_stays_nan(dtype):
    """Else a run that diverges would not be noticed."""
    given, kernel = arguments((1, 4, 4, 16, 16, 1), affine=True, dtype=dtype)
    result = norm_conv(given._replace(affine=given.affine * jnp.nan), kernel)
    assert all(jnp.isnan(leaf).all() for leaf in (result.y, result.moments))


def test_nan_reaches_the_outputs_of_its_neighbors_only():
    given, kernel = arguments((1, 9, 9, 16, 16, 1), affine=True)
    given = given._replace(x=given.x.at[0, 4, 3, 5].set(jnp.nan))
    got, expected = (jnp.isnan(unit(given, kernel).y) for unit in (norm_conv, definition))
    np.testing.assert_array_equal(got, expected)
