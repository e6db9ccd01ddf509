"""Prepared CIFAR read without TensorFlow: versions, the cache and their faults."""

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from cifar_archives import NAMES, PER_FILE

from resnet_cifar.data import DATASETS, cifar, class_names, load_images
from resnet_cifar.errors import UserError


def test_the_environment_names_the_folder(manual, tmp_path, monkeypatch):
    labels, _ = manual("cifar10")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert len(load_images("cifar10", "train").labels) == len(labels)


@pytest.fixture
def prepared(manual, tmp_path):
    """Return the folder of a prepared and cached CIFAR-10, and the pixels of its train split."""
    _, pixels = manual("cifar10")
    load_images("cifar10", "train", str(tmp_path))
    folder = cifar.prepared_folder("cifar10", str(tmp_path))
    assert folder
    return folder, pixels


def test_nothing_is_unpickled_from_data(prepared):
    """Python tells its audit hooks of every class that a pickle names."""
    folder, _ = prepared
    code = """
import sys
from pathlib import Path
import tensorflow_datasets
from resnet_cifar.data import cifar
cifar.SIZES.update(train=150)
seen = []
sys.addaudithook(lambda event, _: seen.append(event) if event == "pickle.find_class" else None)
assert len(cifar.read_prepared(Path(sys.argv[1]), "train")) == 150 * 3073
print(seen)
"""
    out = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
    )
    assert out.stdout == "[]\n"


def test_the_second_load_reads_the_cache(prepared, tmp_path, monkeypatch):
    _, pixels = prepared
    monkeypatch.setattr(cifar, "read_prepared", None)  # Calling it would raise.
    np.testing.assert_array_equal(load_images("cifar10", "train", str(tmp_path)).images, pixels)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:500] + bytes([b[500] ^ 1]) + b[501:], lambda b: b""]
)
def test_a_damaged_cache_is_named_and_rebuilt(prepared, tmp_path, damage, capsys):
    folder, pixels = prepared
    cache = folder / "train.resnet_cifar_cache"
    whole = cache.read_bytes()
    cache.write_bytes(damage(whole))
    np.testing.assert_array_equal(load_images("cifar10", "train", str(tmp_path)).images, pixels)
    assert cache.read_bytes() == whole
    assert f"warning: {cache} is damaged" in capsys.readouterr().err


def test_partial_caches_of_killed_processes_are_removed(prepared, tmp_path):
    folder, _ = prepared
    (left := folder / "test.resnet_cifar_cache.7.part").write_bytes(b"half")
    os.utime(left, (0, 0))
    load_images("cifar10", "test", str(tmp_path))
    assert not list(folder.glob("*.part"))


def test_a_cache_of_other_shards_is_rebuilt(prepared, tmp_path):
    folder, _ = prepared
    (cache := folder / "train.resnet_cifar_cache").write_bytes(b"\0" * 32 + cache.read_bytes()[32:])
    before = cache.read_bytes()
    load_images("cifar10", "train", str(tmp_path))
    assert cache.read_bytes() != before


def test_a_damaged_shard_is_named(prepared, tmp_path):
    folder, _ = prepared
    (shard,) = folder.glob("cifar10-train.array_record*")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(
        UserError, match=rf"train split in {folder} is damaged .*: delete that folder"
    ):
        load_images("cifar10", "train", str(tmp_path))


@pytest.mark.parametrize(
    "damage", [lambda shard: os.truncate(shard, shard.stat().st_size // 2), Path.unlink]
)
def test_a_cut_or_missing_shard_is_named(prepared, tmp_path, damage):
    folder, _ = prepared
    (shard,) = folder.glob("cifar10-train.array_record*")
    damage(shard)
    with pytest.raises(
        UserError, match=rf"train split in {folder} is damaged .*: delete that folder"
    ):
        load_images("cifar10", "train", str(tmp_path))


def test_a_split_with_images_missing_is_named(prepared, tmp_path, monkeypatch):
    folder, _ = prepared
    (folder / "train.resnet_cifar_cache").unlink()
    monkeypatch.setitem(cifar.SIZES, "train", 5 * PER_FILE + 1)
    with pytest.raises(
        UserError, match=rf"train split in {folder} is damaged \(it must hold 151 images of 32 x 32"
    ):
        load_images("cifar10", "train", str(tmp_path))


@pytest.mark.parametrize(
    "side", [33, 9000, 10_000, 20_000], ids=["small", "no warning", "warning", "error"]
)
def test_a_huge_image_is_refused_before_it_is_decoded(prepared, tmp_path, monkeypatch, side):
    """A PNG of a few kilobytes can stand for gigabytes of pixels."""
    import tensorflow_datasets as tfds

    folder, _ = prepared
    (folder / "train.resnet_cifar_cache").unlink()
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(
        ">I4sIIBBBBB", 13, b"IHDR", side, side, 8, 2, 0, 0, 0
    )
    bomb = (
        header
        + struct.pack(">I", zlib.crc32(header[12:]))
        + struct.pack(">I4sI", 0, b"IDAT", zlib.crc32(b"IDAT"))
    )
    examples = [{"id": b"0", "label": 0, "image": bomb}]
    source = mock.MagicMock(__len__=lambda _: 1, __getitems__=lambda rows: examples)
    monkeypatch.setattr(
        tfds, "builder_from_directory", lambda _: mock.Mock(as_data_source=lambda *_, **__: source)
    )
    monkeypatch.setitem(cifar.SIZES, "train", 1)
    with pytest.raises(
        UserError, match=r"is damaged .*(must hold 1 images of 32 x 32|decompression bomb)"
    ):
        load_images("cifar10", "train", str(tmp_path))


def test_a_folder_that_cannot_be_written_goes_without_a_cache(
    prepared, tmp_path, monkeypatch, capsys
):
    folder, pixels = prepared
    (folder / "train.resnet_cifar_cache").unlink()

    def refuse(*_):
        raise PermissionError("read-only")

    monkeypatch.setattr(cifar.os, "replace", refuse)
    np.testing.assert_array_equal(load_images("cifar10", "train", str(tmp_path)).images, pixels)
    assert "no cache beside the data" in capsys.readouterr().err
    assert not list(folder.glob("*.part"))


def test_a_cache_can_be_read_by_all_who_share_the_folder(prepared):
    folder, _ = prepared
    (shard,) = folder.glob("cifar10-train.array_record*")
    assert (folder / "train.resnet_cifar_cache").stat().st_mode == shard.stat().st_mode


def test_a_tfrecord_copy_gets_a_sentence(prepared, tmp_path):
    folder, _ = prepared
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    for cache in folder.glob("*_cache"):
        cache.unlink()
    with pytest.raises(
        UserError, match=r"was prepared as tfrecord, which needs TensorFlow .* --config.data_dir="
    ):
        load_images("cifar10", "train", str(tmp_path))


def test_a_folder_of_another_name_is_no_version(prepared, tmp_path):
    folder, _ = prepared
    shutil.copytree(folder, folder.with_name("9.9.9.old"))
    assert cifar.prepared_folder("cifar10", str(tmp_path)) == folder


@pytest.mark.parametrize("content", ["[]", '{"name'])
def test_a_damaged_dataset_info_is_named(prepared, tmp_path, content):
    folder, _ = prepared
    (folder / "dataset_info.json").write_text(content)
    (folder / "train.resnet_cifar_cache").unlink()
    with pytest.raises(UserError, match=r"dataset_info.json is damaged"):
        load_images("cifar10", "train", str(tmp_path))


def test_a_data_dir_that_is_no_folder_gets_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be read"):
        load_images("cifar10", "train", str(tmp_path / "file"))


def test_an_unreadable_cache_is_ignored(prepared, tmp_path, monkeypatch):
    _, pixels = prepared
    read_bytes = Path.read_bytes

    def deny(path):
        if path.name.endswith("_cache"):
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", deny)
    np.testing.assert_array_equal(load_images("cifar10", "train", str(tmp_path)).images, pixels)


def test_a_cache_gets_the_permissions_of_the_shards(prepared, tmp_path):
    folder, _ = prepared
    (folder / "train.resnet_cifar_cache").unlink()
    (shard,) = folder.glob("cifar10-train.array_record*")
    shard.chmod(0o640)
    load_images("cifar10", "train", str(tmp_path))
    assert (folder / "train.resnet_cifar_cache").stat().st_mode & 0o777 == 0o640


def test_another_users_leftovers_do_not_prevent_a_cache(prepared, tmp_path):
    folder, _ = prepared
    left = folder / "test.resnet_cifar_cache.7.part"
    left.mkdir()  # unlink raises, as for a file of another user in a sticky folder.
    os.utime(left, (0, 0))
    load_images("cifar10", "test", str(tmp_path))
    assert (folder / "test.resnet_cifar_cache").is_file()


def newer(folder, info):
    (copy := folder.with_name("3.10.0")).mkdir()
    (copy / "dataset_info.json").write_text(info)
    return copy


@pytest.mark.parametrize(
    "info", ['{"fileFormat": "tfrecord"}', '{"fileFormat": "array_record"}', "", "[]", "{}"]
)
def test_the_newest_readable_version_is_used(prepared, tmp_path, info, capsys):
    folder, pixels = prepared
    copy = newer(folder, info)
    np.testing.assert_array_equal(load_images("cifar10", "train", str(tmp_path)).images, pixels)
    warning = capsys.readouterr().err
    assert f"warning: using {folder}, because " in warning and str(copy) in warning
    assert cifar.prepared_folder("cifar10", str(tmp_path)) == folder
    assert class_names("cifar10", str(tmp_path)) == NAMES["cifar10"]


def test_versions_are_ordered_as_numbers(prepared, tmp_path):
    folder, _ = prepared
    shutil.copytree(folder, copy := folder.with_name("3.10.0"))
    assert cifar.prepared_folder("cifar10", str(tmp_path)) == copy


def test_the_error_names_every_version_that_was_skipped(prepared, tmp_path):
    folder, _ = prepared
    copy = newer(folder, '{"fileFormat": "tfrecord"}')
    for shard in folder.glob("*array_record*"):
        shard.unlink()
    with pytest.raises(UserError) as error:
        load_images("cifar10", "train", str(tmp_path))
    assert f"{copy} was prepared as tfrecord" in str(error.value)
    assert f"train split in {folder} is damaged" in str(error.value)


def test_a_data_dir_inside_a_data_set_is_an_error(prepared, tmp_path):
    folder, _ = prepared
    for inside in (folder, folder.parent):
        for name in ("cifar10", "cifar100"):
            with pytest.raises(UserError, match=rf"is inside a data set.*data_dir={tmp_path}$"):
                load_images(name, "train", str(inside))


def test_a_home_that_cannot_be_found_is_an_error():
    with pytest.raises(UserError, match="home folder in data_dir='~nobody_here/x' can't be found"):
        load_images("cifar10", "train", "~nobody_here/x")


@pytest.mark.slow
@pytest.mark.real_data
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_real_images(name):
    if not cifar.prepared_folder(name, None):
        pytest.skip(f"{name} is not prepared in {cifar.resolve(None)}")
    train, test = load_images(name, "train"), load_images(name, "test")
    assert len(train.labels) == 50_000 and len(test.labels) == 10_000
    assert set(np.bincount(train.labels)) == {50_000 // DATASETS[name].num_classes}
    pixels = train.images.reshape(-1, 3) / 255
    np.testing.assert_allclose(pixels.mean(0), DATASETS[name].mean, atol=1e-5)
    np.testing.assert_allclose(pixels.std(0), DATASETS[name].std, atol=1e-5)


@pytest.mark.real_data
def test_the_real_images_load_in_a_second_of_cpu_time_once_cached():
    if not cifar.prepared_folder("cifar10", None):
        pytest.skip(f"cifar10 is not prepared in {cifar.resolve(None)}")
    code = (
        "import time; from resnet_cifar.data import load_images; "
        "load_images('cifar10', 'test[:1]'); "
        "start = time.process_time(); "
        "load_images('cifar10', 'train'); load_images('cifar10', 'test'); "
        "print(time.process_time() - start)"
    )
    load_images("cifar10", "train")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert float(out.stdout) < 1
