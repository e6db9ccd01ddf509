"""Your own images: a data set like the others, whose facts come from the files."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from resnet_cifar.config import Config, validate
from resnet_cifar.data import (
    class_names,
    dataset_title,
    find_dataset,
    load_images,
    own,
    shared_images,
    whereabouts,
)
from resnet_cifar.errors import UserError
from resnet_cifar.plan import blank_splits, load_splits, make_plan
from resnet_cifar.provenance import check_same_images, checkpoint_metadata
from resnet_cifar.workdir import run_name

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (50, 32, 32, 3), np.uint8)
LABELS = np.arange(50) % 3


def write(path, pixels=PIXELS, train=40):
    np.savez(
        path,
        x_train=pixels[:train], y_train=LABELS[:train],
        x_test=pixels[train:], y_test=LABELS[train:],
        class_names=np.array(["fig", "kiwi", "lime"]),
    )  # fmt: skip
    return str(path)


@pytest.fixture
def npz(tmp_path):
    return write(tmp_path / "fruit.npz")


@pytest.fixture
def folder(tmp_path):
    """Write the same images as `npz` has, as pictures."""
    for i, (image, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        split = "train" if i < 40 else "test"
        path = tmp_path / "fruit" / split / ["fig", "kiwi", "lime"][label] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return str(tmp_path / "fruit")


def test_the_statistics_are_those_of_the_train_pixels(npz):
    facts = find_dataset(npz)
    assert (facts.num_classes, facts.sizes) == (3, {"train": 40, "test": 10})
    pixels = PIXELS[:40].reshape(-1, 3) / 255
    np.testing.assert_allclose(facts.mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(facts.std, pixels.std(0), rtol=1e-12)


def test_pictures_and_arrays_are_the_same_data_set(npz, folder):
    for split in ("train", "test"):
        arrays, pictures = load_images(npz, split), load_images(folder, split)
        for image, label in zip(pictures.images, pictures.labels, strict=True):
            assert any((image == arrays.images[arrays.labels == label]).all((1, 2, 3)))
    assert find_dataset(npz).mean == find_dataset(folder).mean
    assert class_names(npz) == class_names(folder) == ["fig", "kiwi", "lime"]


def test_a_slice_counts_in_the_train_split(npz):
    part = load_images(npz, "train[30:]")
    np.testing.assert_array_equal(part.images, PIXELS[30:40])


def test_a_slice_of_a_folder_has_all_classes(folder):
    assert set(load_images(folder, "train[:50%]").labels) == {0, 1, 2}
    again = load_images(folder, "train"), load_images(folder, "train")
    np.testing.assert_array_equal(*(images for images, _ in again))


def test_splits_and_their_guards_hold(npz):
    config = Config(
        dataset=npz, batch_size=8, train_split="train[:75%]", validation_split="train[75%:]"
    )
    plan = make_plan(config)
    assert plan.ranges == {"train": range(30), "validation": range(30, 40), "test": range(10)}
    loaded, blank = load_splits(config, plan), blank_splits(plan)
    np.testing.assert_array_equal(loaded["validation"].images, PIXELS[30:40])
    assert {name: len(split.labels) for name, split in blank.items()} == {
        name: len(split.labels) for name, split in loaded.items()
    }
    for fields, message in (
        ({"train_split": "train[:80%]"}, "overlap"),
        ({"train_split": "test"}, "must be part of train"),
        ({"batch_size": 31}, "larger than the 30 training images"),
    ):
        with pytest.raises(UserError, match=message):
            make_plan(dataclasses.replace(config, **fields))


def test_files_are_read_once_until_they_change(npz):
    first = own.read(npz)
    assert own.read(npz) is first
    write(npz, pixels=255 - PIXELS)
    assert own.read(npz).facts.sha256 != first.facts.sha256


def test_test_images_among_the_train_images_are_counted(tmp_path):
    pixels = PIXELS.copy()
    pixels[48:] = pixels[7]
    path = write(tmp_path / "leak.npz", pixels)
    assert shared_images(path).startswith("2 of the 10 test images are also train images")
    assert shared_images(write(tmp_path / "clean.npz")) == shared_images("cifar10") == ""


def test_a_run_is_named_after_the_file(npz, folder):
    assert dataset_title(npz) == dataset_title(folder) == "fruit"
    config = Config(depth=20, dataset=npz, init_from="runs/x")
    assert run_name("card", config) == "resnet20-fruit-finetuned-seed0"
    assert whereabouts(npz).startswith(f"3 classes from {npz} (sha256 ")


def test_checkpoints_record_statistics_names_and_digest(npz):
    metadata = checkpoint_metadata(Config(dataset=npz), "float32")
    facts = find_dataset(npz)
    assert metadata["preprocessing"] == {"mean": list(facts.mean), "std": list(facts.std)}
    assert metadata["class_names"] == ["fig", "kiwi", "lime"]
    assert metadata["images"] == {"train": 40, "test": 10, "sha256": facts.sha256}
    assert "images" not in checkpoint_metadata(Config(dataset="synthetic"), "float32")


def test_a_run_does_not_resume_on_other_images(npz):
    saved = checkpoint_metadata(Config(dataset=npz), "float32")
    check_same_images(saved, saved)
    write(npz, train=39)
    with pytest.raises(UserError, match=r"began with 40 train and 10 test .* 39 train and 11"):
        check_same_images(saved, checkpoint_metadata(Config(dataset=npz), "float32"))


def test_what_is_no_data_set_is_a_sentence(tmp_path):
    np.savez(tmp_path / "whole.npz", images=PIXELS, labels=LABELS)
    with pytest.raises(UserError, match="has no train and test images to train with"):
        find_dataset(str(tmp_path / "whole.npz"))
    same = write(tmp_path / "same.npz", np.zeros_like(PIXELS))
    with pytest.raises(UserError, match="all have the same value in a colour channel"):
        find_dataset(same)
    one = dict(x_train=PIXELS, y_train=0 * LABELS, x_test=PIXELS, y_test=0 * LABELS)
    np.savez(tmp_path / "one.npz", **one)
    with pytest.raises(UserError, match="has one class"):
        find_dataset(str(tmp_path / "one.npz"))
    for missing in ("fruits.npz", "~nobody_here/x", "", "\0"):
        with pytest.raises(UserError, match=r"is unknown: .*the path of a folder or an \.npz"):
            validate(Config(dataset=missing))
