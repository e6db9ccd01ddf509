"""A checkpoint explains itself, is verified, and reading it changes nothing on the disk."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_cifar import (
    ResNet,
    create_train_state,
    learning_rate_schedule,
    make_optimizer,
    train_step,
)
from resnet_cifar.checkpoint import Checkpoint, read
from resnet_cifar.checkpoint.format import Damaged, by_path, digests, saved_steps
from resnet_cifar.errors import UserError
from resnet_cifar.state import array_fields

FIXTURES = Path(__file__).parent / "checkpoints"


def like():
    """Return the state that tests/checkpoints/README.md saved."""
    tx = make_optimizer(learning_rate_schedule(0.1, warmup_steps=2, decay_steps=(4,)))
    return jax.eval_shape(lambda: create_train_state(jax.random.key(0), ResNet(8, width=1), tx))


@pytest.mark.parametrize("version", [1, 2])
def test_every_format_loads_and_trains_on(version):
    metadata, arrays = checkpoint = read(FIXTURES / f"format_{version}")
    assert metadata["format"] == version and metadata["config"]["depth"] == 8
    assert digests(arrays) == metadata["sha256"]
    state = like().replace(**checkpoint.tree(array_fields(like())))
    state, metrics = train_step(state, {"image": jnp.ones((4, 32, 32, 3)), "label": jnp.arange(4)})
    assert state.step == 7 and jnp.isfinite(metrics["loss_sum"])


def test_reading_changes_nothing(tmp_path):
    shutil.copytree(FIXTURES / "format_2", tmp_path / "6")
    (tmp_path / "7.orbax-checkpoint-tmp").mkdir()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    read(tmp_path / "6")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert saved_steps(tmp_path) == [6] and saved_steps(tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [("state/manifest.ocdbt", "can't be read"), ("metadata/metadata", "can't be read")],
)
def test_a_missing_file_is_damage(tmp_path, name, reason):
    shutil.copytree(FIXTURES / "format_2", tmp_path / "6")
    (tmp_path / "6" / name).unlink()
    with pytest.raises(Damaged, match=reason):
        read(tmp_path / "6")


def test_an_edited_number_is_damage(tmp_path):
    shutil.copytree(FIXTURES / "format_2", tmp_path / "6")
    path = tmp_path / "6" / "metadata" / "metadata"
    metadata = json.loads(path.read_text())
    metadata["config"]["depth"] = 14
    path.write_text(json.dumps(metadata))
    with pytest.raises(Damaged, match="its metadata is not what was saved"):
        read(tmp_path / "6")


def test_arrays_are_arranged_by_path():
    checkpoint = Checkpoint({}, {"b/0": np.zeros(2), "a": np.ones(3)})
    tree = checkpoint.tree({"a": np.empty(3), "b": (np.empty(2),)})
    assert (tree["a"] == 1).all() and (tree["b"][0] == 0).all()


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"a": np.empty(4)}, r"a is float64\[3\] in the checkpoint and float64\[4\] here"),
        ({"a": np.empty(3, np.float32)}, r"a is float64\[3\] .* JAX_ENABLE_X64"),
        ({"a": np.empty(3), "c": np.empty(1)}, "c is missing in the checkpoint"),
        ({}, "a is .* absent here"),
    ],
)
def test_another_tree_is_a_sentence(wanted, message):
    with pytest.raises(UserError, match=message):
        Checkpoint({}, {"a": np.ones(3)}).tree(wanted)


def test_digests_depend_on_dtype_and_shape():
    zeros = [np.zeros(4, np.float32), np.zeros(4, np.int32), np.zeros((2, 2), np.float32)]
    assert len({digests(by_path({"a": array}))["a"] for array in zeros}) == 3


def test_nothing_is_unpickled():
    """Python reports every class that a pickle names to its audit hooks."""
    code = """
import sys
from pathlib import Path
from resnet_cifar.checkpoint import read
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event == "pickle.find_class" else None)
assert read(Path(sys.argv[1])).arrays["step"] == 6
print(seen)
"""
    command = [sys.executable, "-c", code, str(FIXTURES / "format_2")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert out.stdout == "[]\n"
