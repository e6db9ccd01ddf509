"""Foreign functions under JAX's transformations, which know nothing of them."""

from functools import partial

import jax
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import Primitive, jaxpr_as_fun
from jax.interpreters import mlir
from jax.sharding import NamedSharding, PartitionSpec

native_or_plain = Primitive("native_or_plain")
native_or_plain.multiple_results = True
native_or_plain.def_impl(lambda *args, native, plain: jaxpr_as_fun(native)(*args))
native_or_plain.def_abstract_eval(lambda *avals, native, plain: native.out_avals)


def lower(ctx, *args, native, plain):
    exported = getattr(ctx.module_context.lowering_parameters, "for_export", False)
    return mlir.lower_fun(plain if exported else jaxpr_as_fun(native))(ctx, *args)


mlir.register_lowering(native_or_plain, lower)


def replaced_by(plain):
    """Let `plain` replace a native function in derivatives and in exported programs.

    Under `vmap` the native function is called once for each element.
    """

    def decorate(function) -> jax.custom_jvp:
        @partial(jax.custom_jvp, nondiff_argnums=(0, 1))
        def either(stride, keep, *args):
            flat, tree = jax.tree.flatten(args)
            trace = jax.make_jaxpr(partial(function, stride, keep), return_shape=True)
            native, results = trace(*args)

            def flat_plain(*flat):
                return jax.tree.leaves(plain(stride, keep, *tree.unflatten(flat)))

            bind = partial(native_or_plain.bind, native=native, plain=flat_plain)
            return jax.tree.structure(results).unflatten(sequential_vmap(bind)(*flat))

        @either.defjvp
        def jvp(stride, keep, primals, tangents):
            derivative = jax.jvp(partial(plain, stride, keep), primals, tangents)[1]
            return either(stride, keep, *primals), derivative

        return either

    return decorate


def split_over_devices(function, args: list[str], results: list[str]):
    """Let each device call a function on its own images, and add up the results without n."""

    def partition(mesh, arg_shapes, result_shapes):
        del result_shapes
        spec = arg_shapes[0].sharding.spec
        axis = spec[0] if len(spec) else None
        split, whole = (NamedSharding(mesh, PartitionSpec(a)) for a in (axis, None))

        def on_each(*arrays):
            pairs = zip(results, function(*arrays), strict=True)
            return [a if "n" in axes or axis is None else lax.psum(a, axis) for axes, a in pairs]

        def shardings(all_axes):
            return tuple(split if "n" in axes else whole for axes in all_axes)

        return mesh, on_each, list(shardings(results)), shardings(args)

    partitioned = custom_partitioning(function)
    rule = f"{', '.join(args)} -> {', '.join(results)}"
    partitioned.def_partition(partition=partition, sharding_rule=rule)
    return partitioned
