"""Whatever can change the bits of a result is recorded, and a resume under another is noticed."""

import jax
import pytest

from resnet_cifar.config import Config
from resnet_cifar.provenance import (
    JAX_DEFAULTS,
    checkpoint_metadata,
    differences,
    environment,
    settings,
)


@pytest.fixture
def metadata():
    return checkpoint_metadata(Config(dataset="synthetic"), "float32")


def test_nothing_changed_is_no_difference(metadata):
    assert differences(metadata, metadata) == []


def test_flags_versions_and_dtype_are_compared(metadata, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--other")
    now = checkpoint_metadata(Config(dataset="synthetic"), "bfloat16")
    saved = {**metadata, "versions": {**metadata["versions"], "jax": "0.0.1"}}
    assert differences(saved, now) == [
        f"jax was '0.0.1' and is '{jax.__version__}'",
        f"XLA_FLAGS was {metadata['XLA_FLAGS']!r} and is '--other'",
        "dtype was 'float32' and is 'bfloat16'",
    ]


def test_settings_of_jax_are_recorded(metadata):
    before = settings()
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        changed = {"jax_enable_x64": "True", "jax_default_matmul_precision": "highest"}
        assert settings() == before | changed
        now = {**metadata, **environment()}
    assert differences(metadata, now) == [
        "jax_enable_x64 was '' and is 'True'",
        "jax_default_matmul_precision was '' and is 'highest'",
    ]


def test_the_defaults_are_those_of_jax():
    assert set(JAX_DEFAULTS) <= set(jax.config.values)
    assert not set(settings()) & set(JAX_DEFAULTS)


def test_old_checkpoints_are_compared_by_what_they_recorded(metadata):
    old = {name: v for name, v in metadata.items() if name not in ("settings", "dtype")}
    assert differences(old, {**metadata, "settings": {"jax_enable_x64": "True"}}) == []


@pytest.mark.parametrize("saved", [{}, {"kernels": "XLA's"}])
def test_a_change_of_kernels_is_noticed(metadata, saved):
    """Checkpoints that don't name any are from before the native ones."""
    saved = {name: v for name, v in metadata.items() if name != "kernels"} | saved
    now = checkpoint_metadata(Config(dataset="synthetic"), "float32", "native, AVX2")
    assert differences(saved, now) == ["kernels was \"XLA's\" and is 'native, AVX2'"]
