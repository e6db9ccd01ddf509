"""The synthetic images."""

import numpy as np
import pytest

from resnet_cifar.data import DATASETS, class_names, load_images


@pytest.mark.parametrize(("dataset", "num_classes"), [("synthetic", 10), ("synthetic100", 100)])
def test_synthetic_images_have_the_statistics_of_cifar(dataset, num_classes):
    images, labels = load_images(dataset, "test")
    assert (
        images.shape == (2_000, 32, 32, 3) and images.dtype == np.uint8 and labels.dtype == np.int32
    )
    assert set(np.bincount(labels)) == {2_000 // num_classes}
    assert len(set(class_names(dataset))) == num_classes
    pixels = images.reshape(-1, 3) / 255
    np.testing.assert_allclose(pixels.mean(0), DATASETS[dataset].mean, atol=0.01)
    np.testing.assert_allclose(pixels.std(0), DATASETS[dataset].std, atol=0.01)


def test_synthetic_images_are_a_function_of_the_seed():
    one, again, other = (load_images("synthetic", "test", seed=seed).images for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.mark.slow
def test_templates_do_not_solve_the_synthetic_classes():
    """The nearest class mean, the best of templates, finds little more than chance."""
    train, test = load_images("synthetic", "train"), load_images("synthetic", "test")
    means = np.stack([train.images[train.labels == k].mean(0).ravel() for k in range(10)])
    pixels = test.images.reshape(len(test.labels), -1).astype(np.float32)
    distance = (means**2).sum(1)[None] - 2 * pixels @ means.T
    assert (distance.argmin(1) == test.labels).mean() < 0.3
