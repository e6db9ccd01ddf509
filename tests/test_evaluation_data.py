"""Which images networks are scored on, and whether their classes fit."""

import numpy as np
import pytest
from helpers import FakeNetwork, images_saying
from PIL import Image

from resnet_cifar.data import load_images, synthetic
from resnet_cifar.errors import UserError
from resnet_cifar.evaluation_data import common_names, read_data

UNKNOWN = tuple("012")


@pytest.fixture
def few(monkeypatch):
    for split in ("train", "test"):
        monkeypatch.setitem(synthetic.SIZES, split, 40)


def synthetic_network(source="a", **config):
    names = tuple(synthetic.class_names(10))
    return FakeNetwork(source, names, {"dataset": "synthetic", "seed": 3, **config})


def save(path, labels=(0, 1, 2), **arrays):
    np.savez(path, images=images_saying(labels), labels=np.array(labels), **arrays)
    return str(path)


def folder_of(path, names):
    for name in names:
        (path / name).mkdir(parents=True)
        Image.fromarray(images_saying([0])[0]).save(path / name / "a.png")
    return str(path)


def test_by_default_they_are_the_test_images_of_the_training_data(few):
    title, (images, labels) = read_data([synthetic_network(), synthetic_network("b", seed=4)])
    expected = load_images("synthetic", "test", seed=3)
    np.testing.assert_array_equal(images, expected.images)
    np.testing.assert_array_equal(labels, expected.labels)
    assert title == "synthetic test of seed 3"


def test_a_network_that_does_not_say_follows_the_others(few):
    imported = FakeNetwork("b", tuple(map(str, range(10))))
    assert read_data([synthetic_network(), imported])[0] == "synthetic test of seed 3"


def test_class_names_tell_the_data_set(few, tmp_path):
    imported = FakeNetwork("a", tuple(synthetic.class_names(10)))
    title, _ = read_data([imported], data_dir=str(tmp_path))
    assert title == "synthetic test of seed 0"


def test_any_slice_of_a_data_set(few):
    title, (images, _) = read_data([synthetic_network()], split="train[-7:]")
    expected = load_images("synthetic", "train[-7:]", seed=3).images
    np.testing.assert_array_equal(images, expected)
    assert title == "synthetic train[-7:] of seed 3"


def test_files_and_their_slices(tmp_path):
    data = save(tmp_path / "a.npz")
    assert read_data([FakeNetwork()], data)[0] == data
    title, (images, labels) = read_data([FakeNetwork()], data, "test[1:]")
    assert title == f"{data} test[1:]" and labels.tolist() == [1, 2] and len(images) == 2


def test_a_split_of_files(tmp_path):
    for split in ("train", "test"):
        folder_of(tmp_path / split, ["bee"])
    assert read_data([FakeNetwork()], str(tmp_path), "train")[0] == f"{tmp_path} train"


@pytest.mark.parametrize("names", [["cat", "ant"], ["bee"]])
def test_classes_of_files_are_matched_by_name(names, tmp_path):
    _, (_, labels) = read_data([FakeNetwork()], folder_of(tmp_path, names))
    known = ("ant", "bee", "cat")
    assert labels.tolist() == [known.index(name) for name in sorted(names)]


def test_unknown_names_are_taken_from_another_network():
    networks = [FakeNetwork("a", UNKNOWN), FakeNetwork("b")]
    assert common_names(networks) == ("ant", "bee", "cat")


@pytest.mark.parametrize("names", [("x", "y", "z"), ("ant", "bee")])
def test_networks_of_other_classes_are_refused(names):
    with pytest.raises(UserError, match="a and b have other classes"):
        common_names([FakeNetwork("a"), FakeNetwork("b", names)])


def test_numbers_match_numbers(tmp_path):
    data = save(tmp_path / "a.npz", [0, 1])
    assert read_data([FakeNetwork("a", UNKNOWN)], data)[1].labels.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("network", "labels", "message"),
    [
        (FakeNetwork("a"), [0, 3], "a.npz has 4 classes, and a has 3"),
        (FakeNetwork("a", UNKNOWN), [0, 3], "a.npz has 4 classes, and a has 3"),
    ],
)
def test_more_classes_than_the_network_has(network, labels, message, tmp_path):
    with pytest.raises(UserError, match=message):
        read_data([network], save(tmp_path / "a.npz", labels))


def test_a_class_that_the_network_does_not_know(tmp_path):
    with pytest.raises(UserError, match=r"has the class 'dog', which fake does not know: it has 3"):
        read_data([FakeNetwork()], folder_of(tmp_path, ["ant", "dog"]))


def test_a_data_set_of_another_number_of_classes(few):
    with pytest.raises(
        UserError, match=r"synthetic100 test of seed 0 has 100 classes, and a has 3"
    ):
        read_data([FakeNetwork("a", UNKNOWN)], "synthetic100")
    with pytest.raises(UserError, match=r"has the class 'disk in checkers', which a does not know"):
        read_data([synthetic_network()], "synthetic100")


@pytest.mark.parametrize(
    ("networks", "data", "split", "message"),
    [
        ([FakeNetwork("a")], "", "test", "a does not say what it was trained on: give the images"),
        (
            [synthetic_network("a"), synthetic_network("b", dataset="cifar10")],
            "", "test", "trained on cifar10 and synthetic: give the images",
        ),
        ([FakeNetwork()], "cifar11", "test", "cifar11 is neither a file, nor a folder, nor"),
        ([FakeNetwork()], "x" * 300, "test", "x+ is neither a file, nor a folder, nor"),
        ([FakeNetwork()], "~nobody_here/x", "test", "~nobody_here/x is neither a file"),
        ([FakeNetwork()], "four.npz", "train", "four.npz has no splits: leave out --split=train"),
        ([FakeNetwork()], "four.npz", "val", "the split 'val' is unknown"),
        ([FakeNetwork()], "four.npz", "test[9:]", "reaches beyond the 4 images"),
    ],
)  # fmt: skip
def test_images_that_can_not_be_found(networks, data, split, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("four.npz", [0, 1, 2, 0])
    with pytest.raises(UserError, match=message):
        read_data(networks, data, split)
