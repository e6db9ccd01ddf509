"""The training state: what a step updates, its initialization, and its moving averages.

Nothing here knows of configs, data sets, devices or files.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Float, Int, Key, PyTree

LossFn = Callable[[Float[Array, "b classes"], Int[Array, " b"]], Float[Array, " b"]]


class TrainState(struct.PyTreeNode):
    """Everything that a step updates, and the three functions that it calls.

    Attributes:
      step: int32 scalar, the number of updates made.
      params: parameters of the network, float32.
      batch_stats: running statistics of BatchNorm, float32. Empty without BatchNorm.
      opt_state: state of the optimizer.
      apply_fn: `model.apply`.
      tx: the optimizer.
      loss_fn: from logits and labels to one loss per example.
      ema: `{"params": ..., "batch_stats": ...}`, moving averages of both, float32. None without.
      ema_decay: of these averages per step; 0 for none.

    The functions and `ema_decay` are static: states share a compiled program only if these are
    equal.
    """

    step: Any  # Not Int[Array, ""]: JAX fills pytrees with placeholders, too.
    params: PyTree
    batch_stats: PyTree
    opt_state: optax.OptState
    apply_fn: Callable[..., Any] = struct.field(pytree_node=False)
    tx: optax.GradientTransformation = struct.field(pytree_node=False)
    loss_fn: LossFn = struct.field(pytree_node=False)
    ema: PyTree = None
    ema_decay: float = struct.field(pytree_node=False, default=0.0)


def array_fields(state: TrainState) -> dict[str, Any]:
    """Return the fields of a state that hold arrays, as `state.replace` takes them."""
    fields = {n: getattr(state, n) for n in ("step", "params", "batch_stats", "opt_state", "ema")}
    return {name: value for name, value in fields.items() if value is not None}


def create_train_state(
    key: Key[Array, ""],
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    loss_fn: LossFn = optax.softmax_cross_entropy_with_integer_labels,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    ema_decay: float = 0.0,
) -> TrainState:
    """Initialize a model and its optimizer at step 0.

    The parameters are those of `model.init`, but no activations are computed.

    Args:
      key: random key for the parameters.
      model: a linen module called as `model(images, train=bool)`, with BatchNorm or without.
      tx: the optimizer.
      loss_fn: from logits [batch, classes] and labels [batch] to losses [batch]. Two
        `functools.partial` of the same function and hashable arguments count as equal.
      image_shape: height, width and channels of the images. A `ResNet` takes any.
      ema_decay: if not 0, the state also keeps moving averages: see `averaged`.

    Example:
      >>> from resnet_cifar import ResNet, make_optimizer
      >>> state = create_train_state(jax.random.key(0), ResNet(depth=8), make_optimizer(0.1))
      >>> int(state.step), state.params["head"]["kernel"].shape
      (0, (64, 10))
    """
    variables = initialize(model, key, image_shape)
    params = variables["params"]
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(params),
        apply_fn=model.apply,
        tx=tx,
        loss_fn=comparable(loss_fn),
        ema_decay=ema_decay,
    )
    return start_averages(state)


def initialize(model: nn.Module, key: Key[Array, ""], image_shape: tuple[int, ...]) -> Any:
    """Return `model.init(key, zeros, train=False)`, evaluating only what the variables depend on.

    `jax.jit` of `init` would do so too, but compiles for minutes for a deep network.
    """

    def init(key):
        return model.init(key, jnp.zeros((1, *image_shape), jnp.float32), train=False)

    traced, shapes = jax.make_jaxpr(init, return_shape=True)(key)
    used = [True] * len(traced.jaxpr.outvars)
    jaxpr, _ = dce_jaxpr(traced.jaxpr, used, instantiate=True)
    leaves = jaxpr_as_fun(ClosedJaxpr(jaxpr, traced.consts))(key)
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


@dataclasses.dataclass(frozen=True)
class ComparablePartial:
    """A `functools.partial` that equals another of the same function and arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]

    def __call__(self, *args):
        return self.function(*self.args, *args, **dict(self.keywords))


def comparable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a partial comparable, unless its arguments, such as arrays, can't be hashed."""
    if not isinstance(function, functools.partial):
        return function
    keywords = tuple(sorted(function.keywords.items()))
    result = ComparablePartial(function.func, function.args, keywords)
    try:
        hash(result)
    except TypeError:
        return function
    return result


def averaged(state: TrainState) -> TrainState:
    """Return a state with its moving averages as parameters and statistics, for `eval_step`.

    After update number t, counted from 0, both kinds of averages become

        ema = decay * ema + (1 - decay) * new,   decay = min(ema_decay, (1 + t) / (10 + t))

    where the second term forgets the random start early on, as TensorFlow's
    `ExponentialMovingAverage` does. The running statistics of BatchNorm are averaged like the
    parameters, as timm's `ModelEmaV3` and `torch.optim.swa_utils.AveragedModel(use_buffers=True)`
    do. So they belong to the same steps, need no pass over the training images (`update_bn`) before
    each evaluation and checkpoint, and resume bit for bit. They fit the averaged weights at
    the low learning rate that ends a run; while it is high, statistics from a pass score higher.

    Example:
      >>> from resnet_cifar import ResNet, eval_step, make_optimizer, train_step
      >>> state = create_train_state(
      ...     jax.random.key(0), ResNet(depth=8), make_optimizer(0.1), ema_decay=0.999
      ... )
      >>> batch = {"image": jnp.zeros((4, 32, 32, 3)), "label": jnp.arange(4)}
      >>> state, _ = train_step(state, batch)
      >>> metrics = eval_step(averaged(state), batch)
    """
    if state.ema is None:
        raise ValueError("this state has no averages: create it with an ema_decay above 0")
    return state.replace(**state.ema)


def start_averages(state: TrainState) -> TrainState:
    """Begin the averages, if there are any, at the values of the state."""
    if not state.ema_decay:
        return state
    values = {"params": state.params, "batch_stats": state.batch_stats}
    # Copies, because a step donates the parameters.
    return state.replace(ema=jax.tree.map(lambda x: jnp.array(x, jnp.float32), values))


def update_averages(state: TrainState, t: Any) -> TrainState:
    """Add the values after update number t to the averages, if there are any."""
    if not state.ema_decay:
        return state
    t = t.astype(jnp.float32)
    decay = jnp.minimum(jnp.float32(state.ema_decay), (1 + t) / (10 + t))
    values = {"params": state.params, "batch_stats": state.batch_stats}
    ema = jax.tree.map(
        lambda old, new: decay * old + (1 - decay) * new.astype(jnp.float32), state.ema, values
    )
    return state.replace(ema=ema)
