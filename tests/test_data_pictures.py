"""Pictures of any size and mode become 32 x 32 pixels in RGB."""

import numpy as np
import pytest
from PIL import Image

from resnet_cifar.data.pictures import existing, files_below, read_picture
from resnet_cifar.errors import UserError


def noise():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


def test_a_32_x_32_picture_is_unchanged(tmp_path):
    image = noise()
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), image)


def test_a_larger_picture_shrinks_to_its_central_square(tmp_path):
    image = np.zeros((128, 256, 3), np.uint8)
    image[:, 64:128], image[:, 128:192] = (255, 0, 0), (0, 0, 255)  # The square; black around it.
    Image.fromarray(image).save(tmp_path / "a.png")
    small = read_picture(tmp_path / "a.png")
    assert (small[:, 2:14] == (255, 0, 0)).all() and (small[:, 18:30] == (0, 0, 255)).all()


def test_transparent_pixels_become_white(tmp_path):
    image = np.zeros((32, 32, 4), np.uint8)
    image[:16] = (10, 20, 30, 255)
    Image.fromarray(image).save(tmp_path / "a.png")
    found = read_picture(tmp_path / "a.png")
    assert (found[:16] == (10, 20, 30)).all() and (found[16:] == 255).all()


def test_16_bits_of_grey_become_8(tmp_path):
    Image.fromarray(np.full((32, 32), 0x8042, np.uint16)).save(tmp_path / "a.png")
    assert (read_picture(tmp_path / "a.png") == 0x80).all()


def test_a_photo_is_turned_upright(tmp_path):
    image = noise()
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by 90 degrees.
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), np.rot90(image, -1))


def test_a_picture_of_absurd_size_is_refused(tmp_path):
    Image.new("1", (10_000, 9_000)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a.png can't be read: .*decompression bomb"):
        read_picture(tmp_path / "a.png")


def test_files_below_a_folder_are_sorted_and_not_hidden(tmp_path):
    for name in ("b/2.png", "b/1.png", "a/deep/3.png", "a/.hidden", ".cache/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [str(path.relative_to(tmp_path)) for path in files_below(tmp_path)]
    assert found == ["a/deep/3.png", "b/1.png", "b/2.png"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no file or folder .*/none: check the path"):
        existing(tmp_path / "none")
