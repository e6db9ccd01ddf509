"""Checkpoints are saved whole, pruned by rule, and restored from the newest good one."""

import asyncio
import gc
import json
import os
import shutil
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_cifar import ResNet, create_train_state, make_optimizer
from resnet_cifar.checkpoint import Checkpoints
from resnet_cifar.checkpoint.format import seal
from resnet_cifar.errors import UserError
from resnet_cifar.state import array_fields

METADATA = {
    "config": {"depth": 8},
    "preprocessing": {"mean": [0.5], "std": [0.2]},
    "class_names": ["a"],
}


@cache
def shapes(width=16):
    """Return the shapes of a state."""

    def new_state():
        return create_train_state(jax.random.key(0), ResNet(8, width=width), make_optimizer(0.05))

    return jax.eval_shape(new_state)


@pytest.fixture(scope="module")
def trained():
    """Return a state at step 1 of which no part is zero."""
    rng = np.random.default_rng(0)

    def values(leaf):
        return jnp.asarray(rng.uniform(1, 2, leaf.shape), leaf.dtype)

    return jax.tree.map(values, shapes()).replace(step=jnp.int32(1))


def open_checkpoints(folder):
    return Checkpoints(folder, METADATA)


def at_step(state, step):
    return state.replace(step=jnp.int32(step))


def steps_kept(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_a_state_comes_back_bit_for_bit(trained, tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(trained)
    with open_checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(shapes()).state
    jax.tree.map(np.testing.assert_array_equal, array_fields(restored), array_fields(trained))
    types = [
        jax.tree.map(lambda leaf: leaf.dtype, array_fields(state)) for state in (restored, trained)
    ]
    assert types[0] == types[1]


def test_the_saved_state_is_a_copy(trained, tmp_path):
    """The next step reuses the buffers while the checkpoint is still being written."""
    expected = jax.tree.map(np.array, trained.params)
    with open_checkpoints(tmp_path) as checkpoints:
        state = jax.tree.map(jnp.copy, trained)
        checkpoints.save(state)
        jax.jit(partial(jax.tree.map, jnp.negative), donate_argnums=0)(state.params)
        assert jax.tree.leaves(state.params)[0].is_deleted()
    with open_checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(shapes()).state
    jax.tree.map(np.testing.assert_array_equal, restored.params, expected)


def test_without_a_checkpoint_there_is_nothing_to_restore(tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(shapes()) is None


def test_the_two_newest_are_kept(trained, tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(at_step(trained, step))
    assert steps_kept(tmp_path) == [3, 4]


def test_the_best_by_validation_is_kept(trained, tmp_path):
    accuracies = {1: 0.5, 2: 0.9, 3: 0.7, 4: None, 5: 0.2}
    with open_checkpoints(tmp_path) as checkpoints:
        for step, accuracy in accuracies.items():
            checkpoints.save(at_step(trained, step), validation_accuracy=accuracy)
    assert steps_kept(tmp_path) == [2, 4, 5]
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(shapes()).state.step == 5


def test_a_checkpoint_explains_itself(trained, tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(trained, 9))
    saved = json.loads((tmp_path / "checkpoints" / "9" / "metadata" / "metadata").read_text())
    assert saved["format"] == 2
    assert {name: saved[name] for name in METADATA} == METADATA
    assert "params/stem_conv/kernel" in saved["sha256"]


def test_an_unknown_format_is_refused(trained, tmp_path):
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(trained, 9))
    path = tmp_path / "checkpoints" / "9" / "metadata" / "metadata"
    newer = json.loads(path.read_text()) | {"format": 3}
    path.write_text(json.dumps(newer | {"seal": seal(newer)}))
    with (
        open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"has format 3; .* reads formats 1 and 2"),
    ):
        checkpoints.restore(shapes())


def test_an_accuracy_can_be_added_later(trained, tmp_path):
    """As when a run is stopped in an evaluation."""
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(at_step(trained, 1), validation_accuracy=0.5)
        checkpoints.save(at_step(trained, 2))
    with open_checkpoints(tmp_path) as checkpoints:
        for step, accuracy in {2: 0.9, 3: 0.7, 4: 0.7}.items():
            checkpoints.save(at_step(trained, step), validation_accuracy=accuracy)
    assert steps_kept(tmp_path) == [2, 3, 4]
    saved = json.loads((tmp_path / "checkpoints" / "2" / "metadata" / "metadata").read_text())
    assert saved["validation_accuracy"] == 0.9 and saved["seal"] == seal(saved)


def test_the_sums_of_the_epoch_in_progress_come_back(trained, tmp_path):
    sums = {"loss_sum": 1 / 3, "count": 96.0, "steps": 3}
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(trained, sums=sums)
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(shapes()).metadata["sums"] == sums


def test_a_state_that_is_not_finite_is_not_saved(trained, tmp_path):
    bad = trained.replace(
        batch_stats=jax.tree.map(lambda leaf: leaf.at[0].set(jnp.inf), trained.batch_stats)
    )
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(trained)
        with pytest.raises(UserError, match="state after step 2 is not finite and was not saved"):
            checkpoints.save(at_step(bad, 2))
    assert steps_kept(tmp_path) == [1]


def test_a_failed_save_says_one_thing(trained, tmp_path, caplog):
    """Orbax writes many arrays at once: asyncio would print a page for each after the first."""
    failed = pytest.raises(UserError, match="checkpoint of step 1 can't be written to")
    with failed, open_checkpoints(tmp_path) as checkpoints:
        shutil.rmtree(tmp_path / "checkpoints")
        (tmp_path / "checkpoints").write_text("")
        checkpoints.save(trained)
    loop = asyncio.new_event_loop()
    loop.create_future().set_exception(OSError("another array"))
    gc.collect()
    loop.close()
    assert "another array" not in caplog.text


@pytest.mark.parametrize("damage", ["a number", "not JSON"])
def test_a_damaged_accuracy_is_none(trained, tmp_path, damage):
    """A flipped digit must not make a checkpoint the best one, nor hide the others."""
    with open_checkpoints(tmp_path) as checkpoints:
        for step, accuracy in {1: 0.5, 2: 0.9}.items():
            checkpoints.save(at_step(trained, step), validation_accuracy=accuracy)
    path = tmp_path / "checkpoints" / "1" / "metadata" / "metadata"
    path.write_text(path.read_text().replace("0.5", "0.99") if damage == "a number" else "{")
    with open_checkpoints(tmp_path) as checkpoints:
        for step in (3, 4):
            checkpoints.save(at_step(trained, step), validation_accuracy=0.1)
    assert steps_kept(tmp_path) == [2, 3, 4]


@pytest.fixture(scope="module")
def two_saved(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with open_checkpoints(folder) as checkpoints:
        checkpoints.save(at_step(trained, 8), sums={"steps": 1})
        checkpoints.save(at_step(trained, 9), sums={"steps": 1})
    return folder


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset % len(content)] ^= 1
    path.write_bytes(content)


def largest_array(folder):
    return max((folder / "state").rglob("*"), key=lambda path: path.stat().st_size)


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES = {
    "flipped bit": lambda folder: flip(
        largest_array(folder), largest_array(folder).stat().st_size // 2
    ),
    "flipped bit in the metadata": lambda folder: flip(
        folder / "metadata" / "metadata",
        (folder / "metadata" / "metadata").read_bytes().index(b'"steps": 1') + 9,
    ),
    "truncated file": lambda folder: os.truncate(largest_array(folder), 1000),
    "emptied folder": empty,
    "missing arrays": lambda folder: shutil.rmtree(folder / "state"),
    "missing metadata": lambda folder: shutil.rmtree(folder / "metadata"),
    "missing manifest": lambda folder: (folder / "state" / "manifest.ocdbt").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside(two_saved, tmp_path, capsys, damage):
    shutil.copytree(two_saved, tmp_path, dirs_exist_ok=True)
    DAMAGES[damage](tmp_path / "checkpoints" / "9")
    with open_checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(shapes())
        assert restored.state.step == 8
        # The damaged one is no longer in the way.
        checkpoints.save(restored.state.replace(step=np.int32(9)))
    assert f"warning: the checkpoint {tmp_path / 'checkpoints' / '9'} " in capsys.readouterr().err
    assert len(list((tmp_path / "damaged_checkpoints").glob("9-*"))) == 1
    with open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore(shapes()).state.step == 9


def test_if_every_checkpoint_is_damaged_nothing_is_moved(two_saved, tmp_path):
    shutil.copytree(two_saved, tmp_path, dirs_exist_ok=True)
    for step in ("8", "9"):
        DAMAGES["flipped bit"](tmp_path / "checkpoints" / step)
    before = sorted(tmp_path.rglob("*"))
    with open_checkpoints(tmp_path) as checkpoints, pytest.raises(UserError) as error:
        checkpoints.restore(shapes())
    for part in ("checkpoints/8 ", "checkpoints/9 ", "Nothing was deleted", "another --workdir"):
        assert part in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_of_another_network_is_a_sentence(two_saved, tmp_path):
    shutil.copytree(two_saved, tmp_path, dirs_exist_ok=True)
    with (
        open_checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"does not fit this network .* batch_stats/\S+ is float32"),
    ):
        checkpoints.restore(shapes(width=1))


@pytest.mark.parametrize("name", ["[a]", "a\\b", "a*b", "50%", "what?", "ü日", "a\nb"])
def test_a_workdir_may_have_any_name(trained, name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    small = {"params": {"w": np.ones(3)}, "batch_stats": {}, "opt_state": ()}
    state = trained.replace(step=np.int32(4), **small)
    with open_checkpoints(folder) as checkpoints:
        checkpoints.save(state)
        checkpoints.save(at_step(state, np.int32(5)))
        checkpoints.save(at_step(state, np.int32(6)))
    assert steps_kept(folder) == [5, 6]
    with open_checkpoints(folder) as checkpoints:
        assert checkpoints.restore(state).state.step == 6
    assert [path.name for path in tmp_path.iterdir()] == [name]
