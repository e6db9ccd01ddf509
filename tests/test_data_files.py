"""Images from files: each layout, and files that are wrong."""

import numpy as np
import pytest
from PIL import Image

from resnet_cifar.data.files import corruptions, read_files, splits
from resnet_cifar.data.pictures import read_picture
from resnet_cifar.errors import UserError

RNG = np.random.default_rng(0)


def pixels(n=6, h=32, w=32, *rest):
    return RNG.integers(0, 256, (n, h, w, *(rest or (3,))), np.uint8)


def save_pictures(folder, images, classes):
    """Write image i as `<class>/<i>.png` with the class `classes[i]`."""
    for i, (image, name) in enumerate(zip(images, classes, strict=True)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / name / f"{i}.png")


@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y")])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_an_npz_round_trips(keys, dtype, tmp_path):
    images, labels = pixels(), np.array([2, 0, 1, 1, 0, 2], dtype)
    np.savez(tmp_path / "a.npz", **dict(zip(keys, (images, labels[:, None]), strict=True)))
    (found, found_labels), names = read_files(tmp_path / "a.npz")
    np.testing.assert_array_equal(found, images)
    np.testing.assert_array_equal(found_labels, labels)
    assert found_labels.dtype == np.int32 and names == ("0", "1", "2")
    assert splits(tmp_path / "a.npz") == ()


@pytest.mark.parametrize("keys", [("x_{}", "y_{}"), ("{}_images", "{}_labels")])
def test_an_npz_may_have_two_splits(keys, tmp_path):
    images, labels = keys
    arrays = {images.format(split): pixels(4) for split in ("train", "test")}
    arrays |= {labels.format(split): np.arange(4) for split in ("train", "test")}
    np.savez(tmp_path / "a.npz", **arrays)
    assert splits(tmp_path / "a.npz") == ("train", "test")
    found = read_files(tmp_path / "a.npz", "test").images.images
    np.testing.assert_array_equal(found, arrays[images.format("test")])


def test_an_npz_may_name_its_classes(tmp_path):
    names = ["cat", "dog", "unused"]
    np.savez(tmp_path / "a.npz", images=pixels(2), labels=[0, 1], class_names=names)
    assert read_files(tmp_path / "a.npz").class_names == tuple(names)


def test_a_folder_of_pictures_by_class(tmp_path):
    images, classes = pixels(4), ["frog", "bird", "frog", "cat"]
    save_pictures(tmp_path, images, classes)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / ".DS_Store").write_text("hidden")
    (found, labels), names = read_files(tmp_path)
    assert names == ("bird", "cat", "frog") and labels.tolist() == [0, 1, 2, 2]
    np.testing.assert_array_equal(found, images[[1, 3, 0, 2]])


def test_both_splits_of_a_folder_share_their_classes(tmp_path):
    save_pictures(tmp_path / "train", pixels(3), ["a", "b", "c"])
    save_pictures(tmp_path / "test", pixels(2), ["c", "b"])
    (_, labels), names = read_files(tmp_path, "test")
    assert names == ("a", "b", "c") and labels.tolist() == [1, 2]
    with pytest.raises(UserError, match="has splits: give train or test instead of split=''"):
        read_files(tmp_path)


def test_cifar_10_1_has_its_labels_beside_it(tmp_path):
    images = pixels(4)
    np.save(tmp_path / "cifar10.1_v6_data.npy", images)
    np.save(tmp_path / "cifar10.1_v6_labels.npy", np.array([3, 9, 0, 1], np.int32))
    (found, labels), names = read_files(tmp_path / "cifar10.1_v6_data.npy")
    np.testing.assert_array_equal(found, images)
    assert labels.tolist() == [3, 9, 0, 1] and len(names) == 10


def test_cifar_10_c_has_a_file_for_each_corruption(tmp_path):
    for name in ("fog", "snow"):
        np.save(tmp_path / f"{name}.npy", pixels(10))
    np.save(tmp_path / "labels.npy", np.arange(10, dtype=np.uint8))
    assert list(corruptions(tmp_path)) == ["fog", "snow"]
    assert list(corruptions(tmp_path / "snow.npy")) == ["snow"]
    assert read_files(tmp_path / "fog.npy").images.labels.tolist() == list(range(10))


def test_files_without_corruptions_have_none(tmp_path):
    np.savez(tmp_path / "a.npz", images=pixels(2), labels=[0, 1])
    assert corruptions(tmp_path) == corruptions(tmp_path / "a.npz") == {}


def test_arrays_of_another_size_are_resized_as_pictures_are(tmp_path):
    image = pixels(1, 48, 40)
    Image.fromarray(image[0]).save(tmp_path / "a.png")
    np.savez(tmp_path / "a.npz", images=image, labels=[0])
    found = read_files(tmp_path / "a.npz").images.images
    np.testing.assert_array_equal(found[0], read_picture(tmp_path / "a.png"))


@pytest.mark.parametrize("shape", [(28, 28), (32, 32, 1)])
def test_grey_arrays_become_rgb(shape, tmp_path):
    np.savez(tmp_path / "a.npz", images=np.full((2, *shape), 77, np.uint8), labels=[0, 1])
    images = read_files(tmp_path / "a.npz").images.images
    assert images.shape == (2, 32, 32, 3) and (images == 77).all()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": pixels(2) / 255, "labels": [0, 1]}, r"float64\[2, 32, 32, 3\].* must be uint8"),
        ({"images": pixels(2, 3, 32, 32), "labels": [0, 1]}, r"\[n, height, width, 3\]"),
        ({"images": pixels(2)[0, 0], "labels": [0, 1]}, r"uint8\[32, 3\]"),
        ({"images": pixels(0), "labels": []}, r"uint8\[0, 32, 32, 3\]"),
        ({"images": pixels(2), "labels": [0, 1, 2]}, "one for each of the 2 images"),
        ({"images": pixels(2), "labels": [0.0, 1.0]}, "must be integers"),
        ({"images": pixels(2), "labels": [-1, 0]}, "are -1 to 0: they must be class numbers"),
        ({"images": pixels(2), "labels": [0, 2**40]}, "must be class numbers from 0 on, below"),
        ({"pixels": pixels(2), "labels": [0, 1]}, "arrays labels, pixels: rename them to im"),
        (
            {"images": pixels(2), "labels": np.array([None, 1])},
            r"can't be read \(Object arrays .*: copy or save",
        ),
        (
            {"images": pixels(2), "labels": [0, 1], "class_names": ["one"]},
            "class_names .* each of the 2 classes",
        ),
    ],
)
def test_wrong_arrays_are_an_error(arrays, message, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_files(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_a_truncated_file_is_an_error(name, tmp_path):
    save = np.savez if name == "a.npz" else lambda path, **arrays: np.save(path, arrays["images"])
    save(tmp_path / name, images=pixels(2), labels=[0, 1])
    np.save(tmp_path / "labels.npy", [0, 1])
    whole = (tmp_path / name).read_bytes()
    for length in (0, 1, 10, 60, 200, len(whole) // 2, len(whole) - 1):
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(UserError, match="can't be read"):
            read_files(tmp_path / name)


def test_missing_labels_are_named(tmp_path):
    np.save(tmp_path / "x_data.npy", pixels(2))
    with pytest.raises(UserError, match=r"put x_labels.npy beside it"):
        read_files(tmp_path / "x_data.npy")


def test_unknown_files_are_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    for path, message in [("a.txt", "give a .npz"), ("", "give a .npz"), ("b", "there is no file")]:
        with pytest.raises(UserError, match=message):
            read_files(tmp_path / path)


def test_a_split_of_files_without_splits_is_an_error(tmp_path):
    np.savez(tmp_path / "a.npz", images=pixels(2), labels=[0, 1])
    with pytest.raises(UserError, match="has no splits: leave out split='test'"):
        read_files(tmp_path / "a.npz", "test")


def test_a_bad_picture_is_named(tmp_path):
    save_pictures(tmp_path, pixels(1), ["a"])
    (tmp_path / "a" / "notes.txt").write_text("text")
    with pytest.raises(UserError, match=r"notes.txt is not a picture .*: move it out of"):
        read_files(tmp_path)
    whole = (tmp_path / "a" / "0.png").read_bytes()
    (tmp_path / "a" / "0.png").write_bytes(whole[:-300])
    with pytest.raises(UserError, match=r"the picture .*0.png can't be read: .*truncated"):
        read_files(tmp_path)
