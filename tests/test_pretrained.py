"""Trained networks load from everything that holds one, and nothing that is read changes."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from functools import partial
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
from resnet_cifar.checkpoint.format import seal
from resnet_cifar.config import with_defaults
from resnet_cifar.errors import UserError
from resnet_cifar.pretrained import PUBLISHED, features, load, published_names, with_new_head
from resnet_cifar.recipes import make_config
from resnet_cifar.weights import save_weights

FIXTURES = Path(__file__).parent / "checkpoints"


def snapshot(folder):
    return {path: path.lstat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


@pytest.fixture
def workdir(tmp_path):
    """Return the workdir of an unfinished run, with what an interrupted save left."""
    for step in (6, 12):
        shutil.copytree(FIXTURES / "format_2", tmp_path / "run" / "checkpoints" / str(step))
    (tmp_path / "run" / "checkpoints" / "18.orbax-checkpoint-tmp").mkdir()
    return tmp_path / "run"


@pytest.fixture(scope="module")
def network():
    return load(FIXTURES / "format_2")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("version", [1, 2])
def test_every_format_of_checkpoint_loads(version):
    model, variables, preprocessing = pretrained = load(FIXTURES / f"format_{version}")
    assert model == ResNet(8, width=1) and variables.keys() == {"params", "batch_stats"}
    assert preprocessing == ((0.481,) * 3, (0.257,) * 3)
    assert pretrained.class_names[1] == "disk in columns" and pretrained.config["seed"] == 0
    assert pretrained.source == str(FIXTURES / f"format_{version}")


def test_all_that_holds_a_network_gives_the_same(workdir, tmp_path, network, capsys):
    save_weights(tmp_path / "model.safetensors", network)
    before = snapshot(tmp_path)
    paths = [workdir, workdir / "checkpoints" / "6", tmp_path, tmp_path / "model.safetensors"]
    for path in paths:
        loaded = load(path)
        jax.tree.map(np.testing.assert_array_equal, loaded.variables, network.variables)
        assert (loaded.model, loaded.config) == (network.model, network.config)
        assert (loaded.class_names, loaded.source) == (network.class_names, str(path))
    assert snapshot(tmp_path) == before
    assert capsys.readouterr() == ("", "")


def test_the_newest_good_checkpoint_is_used(workdir, capsys):
    (workdir / "checkpoints" / "12" / "metadata" / "metadata").write_text("{")
    before = snapshot(workdir)
    load(workdir)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "12 can't be read (" in lines[0]
    assert lines[0].startswith("warning: ") and lines[0].endswith("; using that of step 6")
    assert snapshot(workdir) == before
    shutil.rmtree(workdir / "checkpoints" / "6" / "state")
    with pytest.raises(UserError, match=r"no good checkpoint: .*12 can't be .*6 can't be read"):
        load(workdir)


def rewrite(folder, **changes):
    """Change the metadata of a checkpoint as another version would have written it."""
    file = folder / "metadata" / "metadata"
    metadata = {**json.loads(file.read_text()), **changes}
    metadata = {name: value for name, value in metadata.items() if value is not None}
    metadata["seal"] = seal(metadata)
    file.write_text(json.dumps(metadata))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preprocessing": None}, "12 lacks its preprocessing.*train again"),
        ({"preprocessing": {"mean": [0, 0, 0], "std": [1, 0, 1]}}, "lacks its preprocessing"),
        ({"class_names": ["cat", "dog"]}, "names 2 classes, but its network has 10"),
        ({"format": 9}, "has format 9; this version of resnet_cifar reads formats 1 and 2"),
    ],
)
def test_metadata_that_cannot_be_used_is_a_sentence(workdir, changes, message):
    rewrite(workdir / "checkpoints" / "12", **changes)
    with pytest.raises(UserError, match=message):
        load(workdir)


def test_unknown_names_and_config_have_defaults(workdir):
    rewrite(workdir / "checkpoints" / "12", class_names=None, config=None)
    pretrained = load(workdir)
    assert pretrained.class_names == tuple("0123456789") and pretrained.config == {}


def test_what_holds_no_network_is_a_sentence(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("hello, world")
    os.mkfifo(tmp_path / "pipe")
    for name, message in {
        "run": "run holds no checkpoint yet: wait for the first",
        "run/checkpoints": "holds no network: give a workdir",
        "none": "none does not exist: give a workdir",
        "notes.txt": "notes.txt can't be read as safetensors",
        "pipe": "holds no network: give a workdir",
        "x" * 300: "can't be read",
        "~nobody_here/x": "can't be found",
    }.items():
        with pytest.raises(UserError, match=message):
            load(name if name[0] == "~" else tmp_path / name)


def test_published_weights_load_by_name():
    assert published_names() == ", ".join(f"resnet{n}-cifar10" for n in (20, 32, 44, 56))
    for depth in (20, 32, 44, 56):
        name = f"resnet{depth}-cifar10"
        by_name, by_path = load(name), load(PUBLISHED / f"{name}.safetensors")
        assert by_name.source == name and by_name.model == ResNet(depth)
        jax.tree.map(np.testing.assert_array_equal, by_name.variables, by_path.variables)
        config = dataclasses.asdict(make_config("card", depth=depth, seed=0))
        assert with_defaults(by_name.config) == json.loads(json.dumps(config))


def test_what_is_in_the_working_directory_goes_first(tmp_path, monkeypatch, network):
    monkeypatch.chdir(tmp_path)
    save_weights("resnet20-cifar10", network)
    assert load("resnet20-cifar10").model == network.model
    Path("resnet32-cifar10").mkdir()
    with pytest.raises(UserError, match="resnet32-cifar10 holds no network"):
        load("resnet32-cifar10")


def test_an_unknown_name_is_told_the_published_ones(tmp_path):
    with pytest.raises(UserError, match=r"resnet110-cifar10 does not exist: .*, resnet56-cifar10$"):
        load("resnet110-cifar10")
    with pytest.raises(UserError, match="does not exist"):  # A name, not a path.
        load(f"../{PUBLISHED.name}/resnet20-cifar10")
    assert published_names(tmp_path).startswith("in a clone of the repository")


def test_a_safetensors_file_loads_without_orbax_and_tfds(tmp_path, network, images):
    """In another process, with the same logits."""
    save_weights(tmp_path / "model.safetensors", network)
    np.save(tmp_path / "images.npy", images)
    code = """
import sys, numpy as np
from resnet_cifar import load
pretrained = load(sys.argv[1])
print([name for name in ("orbax", "tensorflow_datasets", "matplotlib") if name in sys.modules])
np.save(sys.argv[1] + "/logits.npy", pretrained.logits(np.load(sys.argv[1] + "/images.npy")))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert (out.stdout, out.stderr) == ("[]\n", "")
    np.testing.assert_array_equal(np.load(tmp_path / "logits.npy"), network.logits(images))


def test_features_of_a_rematerialized_network_are_there():
    model, images = ResNet(14, width=2, remat=True), jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    outputs = jax.eval_shape(partial(features, model), variables, images)
    assert {f"stage{n}_block2" for n in (1, 2, 3)} < {*outputs}


def test_features_are_what_the_logits_are_made_of(network, images):
    model, variables, preprocessing = network
    outputs = features(model, variables, preprocessing(images))
    assert {name: output.shape for name, output in outputs.items()} == {
        "stem": (4, 32, 32, 1),
        "stage1_block1": (4, 32, 32, 1),
        "stage2_block1": (4, 16, 16, 2),
        "stage3_block1": (4, 8, 8, 4),
        "pooled": (4, 4),
    }
    assert list(outputs)[-2:] == ["stage3_block1", "pooled"]
    np.testing.assert_allclose(outputs["pooled"], outputs["stage3_block1"].mean((1, 2)), rtol=1e-5)
    head = variables["params"]["head"]
    logits = np.asarray(outputs["pooled"]) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, network.logits(images), rtol=1e-4, atol=1e-5)


def test_a_new_head_leaves_the_backbone(network):
    new = with_new_head(network, 3, ("cat", "dog", "bird"), jax.random.key(1))
    assert new.model == ResNet(8, num_classes=3, width=1) and new.class_names[2] == "bird"
    params, old = new.variables["params"], network.variables["params"]
    assert params["head"]["kernel"].shape == (4, 3) and not params["head"]["bias"].any()
    assert all(params[name] is old[name] for name in old if name != "head")
    assert new.variables["batch_stats"] is network.variables["batch_stats"]
    other = with_new_head(network, 3, None, jax.random.key(2))
    assert other.class_names == ("0", "1", "2")
    assert (other.variables["params"]["head"]["kernel"] != params["head"]["kernel"]).all()
    with pytest.raises(UserError, match="class_names has 1 names, but num_classes=3"):
        with_new_head(network, 3, ("cat",), jax.random.key(1))


def test_a_new_head_is_finetuned_by_train_step(network, images):
    """With the compiled program of tests/test_checkpoint_format.py."""
    model, variables, preprocessing = with_new_head(network, 10, None, jax.random.key(1))
    tx = make_optimizer(learning_rate_schedule(0.1, warmup_steps=2, decay_steps=(4,)))
    state = create_train_state(jax.random.key(0), model, tx).replace(**variables)
    batch = {"image": preprocessing(images), "label": np.arange(4)}
    losses = []
    for _ in range(5):
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss_sum"]))
    assert losses[-1] < losses[0] and int(state.step) == 5
    # The steps donate their state, not the arrays that were loaded.
    assert np.isfinite(variables["params"]["head"]["kernel"]).all()
