"""A checkpoint comes back bit for bit, explains itself, and is not mistaken for another."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_cifar import ResNet, create_train_state, make_optimizer, train_step
from resnet_cifar.checkpoint import Checkpoints, fields
from resnet_cifar.errors import UserError

METADATA = {"config": {"depth": 8}, "preprocessing": {"mean": [0.5], "std": [0.2]}, "class_names": ["a"]}


@pytest.fixture(scope="module")
def trained():
    """Return a state after one step, so that no part of it is zero."""
    state = create_train_state(jax.random.key(0), ResNet(8), make_optimizer(0.05))
    batch = {"image": jax.random.normal(jax.random.key(1), (4, 32, 32, 3)), "label": jnp.arange(4)}
    return train_step(state, batch)[0]


def open_checkpoints(folder, *, validated=False):
    return Checkpoints(folder, METADATA, validated=validated)


def new_state():
    return create_train_state(jax.random.key(7), ResNet(8), make_optimizer(0.05))


def at_step(state, step):
    return state.replace(step=jnp.int32(step))


def steps_kept(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_a_state_comes_back_bit_for_bit(trained, tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(trained)
    with open_checkpoints(tmp_path) as checkpoints:
        restored, found = checkpoints.restore(new_state())
    assert found
    jax.tree.map(np.testing.assert_array_equal, fields(restored), fields(trained))
    types = [jax.tree.map(lambda leaf: leaf.dtype, fields(state)) for state in (restored, trained)]
    assert types[0] == types[1]


def test_the_saved_state_is_a_copy(trained, tmp_path):
    """The next step reuses the buffers while the checkpoint is still being written."""
    expected = jax.tree.map(np.array, trained.params)
    with open_checkpoints(tmp_path) as checkpoints:
        state = jax.tree.map(jnp.copy, trained)
        checkpoints.save(state)
        batch = {"image": jnp.ones((4, 32, 32, 3)), "label": jnp.arange(4)}
        train_step(state, batch)
    with open_checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(new_state())
    jax.tree.map(np.testing.assert_array_equal, restored.params, expected)


def test_without_a_checkpoint_the_given_state_comes_back(tmp_path):
    state = new_state()
    with open_checkpoints(tmp_path) as checkpoints:
        same, found = checkpoints.restore(state)
    assert same is state and not found


def test_the_two_newest_are_kept(trained, tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(at_step(trained, step))
    assert steps_kept(tmp_path) == [3, 4]


def test_the_best_by_validation_is_kept_and_no_nan_takes_its_place(trained, tmp_path):
    accuracies = {1: 0.5, 2: 0.9, 3: 0.7, 4: math.nan, 5: 0.2}
    with open_checkpoints(tmp_path, validated=True) as checkpoints:
        for step, accuracy in accuracies.items():
            checkpoints.save(at_step(trained, step), accuracy)
    assert steps_kept(tmp_path) == [2, 4, 5]
    with open_checkpoints(tmp_path, validated=True) as checkpoints:
        assert int(checkpoints.restore(new_state())[0].step) == 5


def test_a_checkpoint_explains_itself(trained, tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(trained, 9))
    saved = json.loads((tmp_path / "checkpoints" / "9" / "metadata" / "metadata").read_text())
    assert saved["format"] == 1
    assert {name: saved[name] for name in METADATA} == METADATA
    assert "params/stem_conv/kernel" in saved["sha256"]


def test_an_unknown_format_is_refused(trained, tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(trained, 9))
    path = tmp_path / "checkpoints" / "9" / "metadata" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with open_checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="has the format 2"):
        checkpoints.restore(new_state())


def test_a_flipped_bit_is_noticed(trained, tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(trained, 9))
    largest = max((tmp_path / "checkpoints" / "9" / "state").rglob("*"), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with (
        open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"checkpoints/9 (is damaged|can't be read)"),
    ):
        checkpoints.restore(new_state())
