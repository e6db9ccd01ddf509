"""No rank promotion and four CPU devices for every test."""

import jax
import pytest

from resnet_cifar.config import Config

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def strict_dtypes():
    """Refuse implicit promotion; not for every test, as optax's schedules and flax's BatchNorm rely on it."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def tiny() -> Config:
    """Return a run of 4 epochs of 4 steps that takes a few seconds: depth 8 is the smallest of the family."""
    return Config(
        depth=8,
        dataset="synthetic",
        train_split="train[:130]",
        batch_size=32,
        num_epochs=4,
        learning_rate=0.1,
        warmup_epochs=1,
        decay_epochs=(2, 3),
        checkpoint_every_epochs=1,
    )
