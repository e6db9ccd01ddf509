"""Splits, the order of an epoch, augmentation and normalization."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_cifar.data import (
    DATASETS,
    augment,
    epoch_order,
    load_images,
    load_split,
    normalize,
    positions,
    synthetic,
)
from resnet_cifar.errors import UserError

pytestmark = pytest.mark.usefixtures("strict_dtypes")

KEY = jax.random.key(0)


def some_images(n, side=32):
    return jnp.asarray(np.random.default_rng(9).integers(1, 256, (n, side, side, 3), np.uint8))


def find_crop(image, original, pad):
    """Return (top, left, mirrored) of the crop that an augmented image is, or None."""
    padded = np.pad(original, ((pad, pad), (pad, pad), (0, 0)))
    h, w, _ = original.shape
    for mirrored in (False, True):
        view = image[:, ::-1] if mirrored else image
        for top in range(2 * pad + 1):
            for left in range(2 * pad + 1):
                if np.array_equal(view, padded[top : top + h, left : left + w]):
                    return top, left, mirrored
    return None


def test_augmented_images_are_crops_of_padded_ones():
    images = some_images(64)
    augmented = augment(KEY, images)
    assert augmented.dtype == jnp.uint8 and augmented.shape == images.shape
    found = [
        find_crop(*pair, pad=4)
        for pair in zip(np.asarray(augmented), np.asarray(images), strict=True)
    ]
    assert None not in found
    assert {mirrored for _, _, mirrored in found} == {False, True}


def test_offsets_and_flips_are_uniform():
    n = 4000
    original = np.asarray(some_images(1, side=4))[0]
    images = np.broadcast_to(original, (n, 4, 4, 3))
    offsets = np.array(
        [find_crop(image, original, pad=1) for image in np.asarray(augment(KEY, images, pad=1))]
    )
    _, counts = np.unique(offsets, axis=0, return_counts=True)
    assert len(counts) == 3 * 3 * 2
    assert 0.7 * n / 18 < counts.min() and counts.max() < 1.3 * n / 18


def test_augmentation_is_a_function_of_its_key():
    images = some_images(8)
    augmented = np.asarray(augment(KEY, images))
    np.testing.assert_array_equal(augmented, augment(KEY, images))
    assert (augmented != np.asarray(augment(jax.random.key(1), images))).any()


def test_no_padding_only_flips():
    images = np.asarray(some_images(32))
    augmented = np.asarray(augment(KEY, images, pad=0))
    kept = [np.array_equal(a, b) for a, b in zip(augmented, images, strict=True)]
    flipped = [np.array_equal(a, b[:, ::-1]) for a, b in zip(augmented, images, strict=True)]
    assert all(a != b for a, b in zip(kept, flipped, strict=True)) and any(kept) and any(flipped)


def test_normalize_is_minus_mean_over_std():
    mean, std = DATASETS["cifar10"].mean, DATASETS["cifar10"].std
    images = some_images(3)
    expected = (np.asarray(images) / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(normalize(images, mean, std), expected, atol=1e-5)
    assert normalize(images, mean, std, jnp.bfloat16).dtype == jnp.bfloat16


def test_an_epoch_visits_every_index_once():
    first, second = (np.asarray(epoch_order(KEY, epoch, 1000)) for epoch in (0, 1))
    for order in (first, second):
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert (first != second).any()
    np.testing.assert_array_equal(first, epoch_order(KEY, 0, 1000))


@pytest.mark.parametrize(
    "split",
    ["train", "test", "train[:90]", "train[90:]", "train[-7:]", "train[25%:75%]", "train[-9:-3]"],
)
def test_splits_mean_the_same_to_tfds(split, monkeypatch):
    import tensorflow_datasets as tfds

    lengths = {"train": 200, "test": 100}
    for name, length in lengths.items():
        monkeypatch.setitem(synthetic.SIZES, name, length)
    infos = {
        name: tfds.core.SplitInfo(
            name=name,
            shard_lengths=[length],
            num_bytes=0,
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=".", dataset_name="x", split=name, filetype_suffix="array_record"
            ),
        )
        for name, length in lengths.items()
    }
    (wanted,) = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    whole = load_images("synthetic", wanted.splitname)
    np.testing.assert_array_equal(
        load_images("synthetic", split).labels, whole.labels[slice(wanted.from_, wanted.to)]
    )


@pytest.mark.parametrize("split", ["trian", "train[:", "train[a:b]", "train+test", "train[:10", ""])
def test_an_unknown_split_is_an_error(split):
    with pytest.raises(UserError, match="is unknown: use"):
        load_images("synthetic", split)


def test_an_unknown_dataset_is_an_error():
    with pytest.raises(UserError, match=r"dataset='mnist' is unknown: the choices are cifar10, "):
        load_images("mnist", "train")


def test_an_empty_split_is_an_error():
    with pytest.raises(UserError, match=r"the split 'test\[9:9\]' holds no images"):
        load_images("synthetic", "test[9:9]")


@pytest.mark.parametrize("split", ["test[:2001]", "test[-2001:]", "test[200%:]"])
def test_a_split_beyond_the_data_is_an_error(split):
    with pytest.raises(UserError, match="reaches beyond the 2,000 images that there are"):
        load_images("synthetic", split)


def test_a_slice_is_a_part_of_the_whole_split():
    whole, part = load_split("synthetic", "test"), load_images("synthetic", "test[-7:]")
    chosen = positions("test[-7:]", len(whole.labels))
    np.testing.assert_array_equal(part.images, whole.images[chosen.start : chosen.stop])
    np.testing.assert_array_equal(part.labels, whole.labels[chosen.start : chosen.stop])


def test_order_and_augmentation_do_not_depend_on_x64():
    images = np.asarray(some_images(16))
    order, augmented = epoch_order(KEY, 3, 100), augment(KEY, images)
    with jax.enable_x64(True):
        other_order, other = epoch_order(KEY, 3, 100), augment(KEY, images)
        assert normalize(images, (0.5,) * 3, (0.5,) * 3).dtype == np.float32
    assert other_order.dtype == np.int32
    np.testing.assert_array_equal(order, other_order)
    np.testing.assert_array_equal(augmented, other)


def test_the_order_is_the_permutation_of_jax():
    expected = jax.random.permutation(jax.random.fold_in(KEY, 3), 100)
    np.testing.assert_array_equal(epoch_order(KEY, 3, 100), expected)
