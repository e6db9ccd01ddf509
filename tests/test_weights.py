"""Weights survive the file exactly, and a file that is not as saved is a sentence."""

import functools
import json
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers import make_pretrained
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from resnet_cifar import ResNet
from resnet_cifar.errors import UserError
from resnet_cifar.variables import array_shapes
from resnet_cifar.weights import (
    Preprocessing,
    Pretrained,
    compute_logits,
    read_weights,
    save_weights,
)

PREPROCESSING = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def pretrained(shortcut="A", num_classes=3, **others):
    rng = np.random.default_rng(0)
    model = ResNet(8, num_classes=num_classes, width=2, shortcut=shortcut)
    shapes = array_shapes(8, num_classes, 2, shortcut)
    arrays = {name: rng.uniform(0.5, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    fields = {
        "model": model,
        "variables": unflatten_dict(arrays, sep="/"),
        "preprocessing": PREPROCESSING,
        "class_names": ("cat", "dög", "a bird"),
        "config": {"depth": 8, "decay_epochs": [1, 2]},
        "source": "a run",
    }
    return Pretrained(**{**fields, **others})


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    save_weights(path, pretrained())
    return path


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_the_round_trip_is_exact(tmp_path, shortcut):
    saved = pretrained(shortcut)
    save_weights(tmp_path / "x.safetensors", saved)
    read = read_weights(tmp_path / "x.safetensors")
    jax.tree.map(np.testing.assert_array_equal, read.variables, saved.variables)
    for field in ("model", "preprocessing", "class_names", "config"):
        assert getattr(read, field) == getattr(saved, field)
    assert read.source == str(tmp_path / "x.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_stacked_blocks_come_back_as_a_rematerialized_network(tmp_path):
    saved = make_pretrained(("cat", "dog"), depth=20, width=2, remat=True)
    save_weights(tmp_path / "x.safetensors", saved)
    read = read_weights(tmp_path / "x.safetensors")
    assert read.model == saved.model and read.model.remat
    jax.tree.map(np.testing.assert_array_equal, read.variables, saved.variables)


def test_equal_weights_give_equal_files(tmp_path):
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        save_weights(path, pretrained())
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_file_explains_itself(file):
    with safe_open(file, "numpy") as content:
        metadata = {name: json.loads(text) for name, text in content.metadata().items()}
        assert content.get_tensor("params/stem_conv/kernel").shape == (3, 3, 3, 2)
    assert len(metadata.pop("sha256")) == 64
    assert metadata == {
        "format": 1,
        "config": {"depth": 8, "decay_epochs": [1, 2]},
        "model": {"depth": 8, "num_classes": 3, "width": 2, "shortcut": "A"},
        "preprocessing": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]},
        "class_names": ["cat", "dög", "a bird"],
    }


def test_a_file_cut_off_anywhere_is_a_sentence(file):
    data = file.read_bytes()
    for length in range(0, len(data), 31):
        file.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"model.safetensors (can't be read|was not written)"):
            read_weights(file)


def test_a_flipped_bit_anywhere_is_a_sentence(file):
    data = file.read_bytes()
    for place in range(0, len(data), 29):
        damaged = bytearray(data)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"model.safetensors"):
            read_weights(file)


def edit(file, *, metadata=(), arrays=()):
    """Write a file again with other content and its digest as it was."""
    with safe_open(file, "numpy") as content:
        old = content.metadata()
    save_file({**load_file(file), **dict(arrays)}, file, {**old, **dict(metadata)})


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"metadata": {"class_names": '["a", "b", "c"]'}}, "is damaged"),
        ({"metadata": {"config": "{}"}}, "is damaged"),
        ({"metadata": {"note": "hello"}}, "is damaged"),
        ({"arrays": {"params/head/bias": np.zeros(3, np.float32)}}, "is damaged"),
        ({"arrays": {"more": np.zeros(3, np.float32)}}, "is damaged"),
        ({"metadata": {"format": "2"}}, "has format 2; this version .* reads 1"),
        ({"metadata": {"config": "{"}}, "was not written by resnet_cifar"),
        ({"metadata": {"config": "[" * 100_000}}, "was not written by resnet_cifar"),
        ({"metadata": {"sha256": "7"}}, "is damaged"),
    ],
)
def test_edited_files_are_refused(file, edits, message):
    edit(file, **edits)
    with pytest.raises(UserError, match=message):
        read_weights(file)


def test_other_safetensors_are_refused(tmp_path):
    save_file(
        {"conv1.weight": np.zeros((16, 3, 3, 3))}, tmp_path / "x.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match=r"was not written by resnet_cifar.*import_torch"):
        read_weights(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"params/head/bias": None}, "does not hold the arrays of a ResNet"),
        ({"params/stage2_block1/bn1/scale": None}, r"bn1/scale is missing and must be .*4"),
        ({"params/extra": np.zeros(1, np.float32)}, "params/extra is .* and must be absent"),
        ({"params/head/kernel": np.zeros((8, 3))}, "head/kernel is .*float64"),
        ({"params/stem_conv/kernel": np.zeros(3, np.float32)}, "does not hold the arrays"),
    ],
)
def test_arrays_of_another_network_are_not_saved(tmp_path, change, message):
    arrays = flatten_dict(pretrained().variables, sep="/") | change
    arrays = {name: array for name, array in arrays.items() if array is not None}
    with pytest.raises(UserError, match=message):
        save_weights(tmp_path / "x", pretrained(variables=unflatten_dict(arrays, sep="/")))
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"x.safetensors can't be written \(.*: choose another"):
        save_weights(tmp_path / "none" / "x.safetensors", pretrained())


def test_preprocessing_normalizes_and_can_be_hashed():
    white = np.full((1, 1, 1, 3), 255, np.uint8)
    wanted = [(1 - 0.5) / 0.2, (1 - 0.4) / 0.3, (1 - 0.3) / 0.25]
    np.testing.assert_allclose(PREPROCESSING(white).ravel(), wanted, rtol=1e-6)
    assert hash(PREPROCESSING) == hash(Preprocessing(*PREPROCESSING))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (7, 32, 32, 3), np.uint8)


def test_logits_are_those_of_the_model(images):
    network = pretrained()
    model, variables, preprocessing = network
    apply = jax.jit(functools.partial(model.apply, train=False))
    wanted = apply(variables, preprocessing(images))
    logits = network.logits(images)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(network.probabilities(images), jax.nn.softmax(wanted), atol=1e-5)


def test_batches_are_padded_and_compiled_once(images):
    network = pretrained()
    whole = network.logits(images)
    before = compute_logits._cache_size()
    for number in (0, 5, 7):
        logits = network.logits(images[:number])
        assert logits.shape == (number, 3)
        np.testing.assert_allclose(logits, whole[:number], rtol=1e-5, atol=1e-5)
    assert compute_logits._cache_size() == before
    np.testing.assert_allclose(network.logits(images, batch_size=3), whole, rtol=1e-5, atol=1e-5)


def test_float32_is_not_rounded_on_gpus(images):
    model, variables, preprocessing = pretrained()
    program = compute_logits.lower(model, preprocessing, variables, images).as_text()
    assert set(re.findall(r"precision (\w+)", program)) == {"HIGHEST"}


@pytest.mark.parametrize("bad", [np.zeros((2, 32, 32, 3)), np.zeros((32, 32, 3), np.uint8)])
def test_images_that_are_not_uint8_are_a_sentence(bad):
    with pytest.raises(UserError, match=r"images are .*: they must be uint8 \[n, h, w, 3\]"):
        pretrained().logits(bad)
