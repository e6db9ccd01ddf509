"""Many steps in one dispatch are the same steps."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_cifar import (
    Images,
    ResNet,
    augment,
    create_train_state,
    make_optimizer,
    normalize,
    train_step,
)
from resnet_cifar.epochs import eval_indices, eval_steps, train_steps

pytestmark = pytest.mark.usefixtures("strict_dtypes")

KEY = jax.random.key(3)
PREPROCESS = partial(normalize, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    return Images(jnp.asarray(images), jnp.asarray(rng.integers(0, 10, 50, dtype=np.int32)))


class Linear(nn.Module):
    """Enough where only the images count."""

    @nn.compact
    def __call__(self, images, *, train: bool):
        return nn.Dense(10, name="head")(images.reshape(len(images), -1))


LINEAR = Linear()


def new_state(model=LINEAR):
    return create_train_state(jax.random.key(0), model, make_optimizer(0.01))


@pytest.mark.slow
def test_one_dispatch_of_three_steps_is_three_steps(data):
    indices = jnp.arange(24).reshape(3, 8)
    together, metrics = jax.jit(partial(train_steps, preprocess=PREPROCESS))(
        new_state(ResNet(8)), data, indices, KEY
    )
    one_by_one = new_state(ResNet(8))
    for step, rows in enumerate(indices):
        images = augment(jax.random.fold_in(KEY, step), data.images[rows])
        one_by_one, single = train_step(
            one_by_one, {"image": PREPROCESS(images), "label": data.labels[rows]}
        )
        np.testing.assert_allclose(metrics["loss_sum"][step], single["loss_sum"], rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), together.params, one_by_one.params
    )


def test_the_same_seed_and_step_give_the_same_batch(data):
    def seen(state, step):
        batches = []

        def spy(images):
            batches.append(images)
            return PREPROCESS(images)

        train_steps(
            state.replace(step=jnp.int32(step)), data, jnp.arange(8)[None], KEY, preprocess=spy
        )
        return np.asarray(batches[0])

    fifth = seen(new_state(), 5)
    np.testing.assert_array_equal(fifth, seen(new_state(), 5))
    assert (fifth != seen(new_state(), 6)).any()


@pytest.mark.parametrize(
    ("n", "batch_size", "rows"), [(50, 16, 4), (48, 16, 3), (10_000, 1024, 10), (3, 8, 1)]
)
def test_eval_indices_name_each_image_once(n, batch_size, rows):
    indices = eval_indices(n, batch_size)
    assert indices.shape == (rows, batch_size)
    np.testing.assert_array_equal(indices[indices >= 0], np.arange(n))


@pytest.mark.parametrize("batch_size", [7, 50, 64])
def test_every_image_is_scored_once_whatever_the_batch_size(data, batch_size):
    state = new_state()
    indices = jnp.asarray(eval_indices(50, batch_size))
    metrics = jax.device_get(
        jax.jit(partial(eval_steps, preprocess=PREPROCESS))(state, data, indices)
    )
    logits = state.apply_fn(
        {"params": state.params, "batch_stats": state.batch_stats},
        PREPROCESS(data.images),
        train=False,
    )
    assert metrics["count"].sum() == 50
    assert metrics["correct"].sum() == int((logits.argmax(1) == data.labels).sum())
