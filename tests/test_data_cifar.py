"""CIFAR through TFDS without TensorFlow: preparing, reading, the cache and their faults."""

import hashlib
import http.server
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zlib
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from tensorflow_datasets.core.download import checksums

from resnet_cifar.data import DATASETS, cifar, class_names, load_images
from resnet_cifar.errors import UserError

PER_FILE = 30
NAMES = {"cifar10": [f"kind{i}" for i in range(10)], "cifar100": [f"sort{i}" for i in range(100)]}


def records(name, seed):
    """Return (labels, pixels, bytes) of a file in the archive's binary format."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(NAMES[name]), PER_FILE, dtype=np.uint8)
    pixels = rng.integers(0, 256, (PER_FILE, 3, 32, 32), dtype=np.uint8)
    columns = [labels[:, None], pixels.reshape(PER_FILE, -1)]
    if name == "cifar100":
        columns.insert(0, labels[:, None] // 5)
    return labels, pixels.transpose(0, 2, 3, 1), np.concatenate(columns, axis=1).tobytes()


def make_archive(name, folder):
    """Write a small archive like the original one; returns the (labels, pixels) of train."""
    if name == "cifar10":
        prefix, train, test = (
            "cifar-10-batches-bin/",
            [f"data_batch_{i}.bin" for i in range(1, 6)],
            "test_batch.bin",
        )
        texts = {"batches.meta.txt": NAMES[name]}
    else:
        prefix, train, test = "cifar-100-binary/", ["train.bin"], "test.bin"
        texts = {
            "fine_label_names.txt": NAMES[name],
            "coarse_label_names.txt": [f"group{i}" for i in range(20)],
        }
    parts = {file: records(name, seed) for seed, file in enumerate([*train, test])}
    files = {file: part[2] for file, part in parts.items()} | {
        f: "\n".join(t).encode() for f, t in texts.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / cifar.ARCHIVES[name].file, "w:gz") as archive:
        for file, content in files.items():
            info = tarfile.TarInfo(prefix + file)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return tuple(np.concatenate([parts[file][i] for file in train]) for i in (0, 1))


@pytest.fixture
def manual(tmp_path, monkeypatch):
    """Return a function that puts a small archive where a user would put the original."""
    from tensorflow_datasets.image_classification import cifar as tfds_cifar

    def put(name):
        monkeypatch.setattr(
            cifar, "SIZES", {"train": PER_FILE * (5 if name == "cifar10" else 1), "test": PER_FILE}
        )
        expected = make_archive(name, tmp_path / "downloads" / "manual")
        path = tmp_path / "downloads" / "manual" / cifar.ARCHIVES[name].file
        base = {"cifar10": tfds_cifar.Cifar10, "cifar100": tfds_cifar.Cifar100}[name]
        url = next(iter(base.url_infos))
        known = checksums.UrlInfo(
            size=path.stat().st_size,
            checksum=hashlib.sha256(path.read_bytes()).hexdigest(),
            filename=path.name,
        )
        monkeypatch.setattr(checksums, "get_all_url_infos", lambda: {url: known})
        return expected

    return put


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_manual_archive_is_prepared_and_keeps_its_order(name, manual, tmp_path):
    labels, pixels = manual(name)
    data = load_images(name, "train", str(tmp_path))
    np.testing.assert_array_equal(data.labels, labels)
    np.testing.assert_array_equal(data.images, pixels)
    part = load_images(name, "train[:7]", str(tmp_path))
    np.testing.assert_array_equal(part.images, pixels[:7])
    assert len(load_images(name, "test", str(tmp_path)).labels) == PER_FILE
    assert class_names(name, str(tmp_path)) == NAMES[name]


def test_a_stock_tfds_reads_what_was_prepared(manual, tmp_path):
    import tensorflow_datasets as tfds

    labels, _ = manual("cifar10")
    cifar.prepare("cifar10", str(tmp_path))
    source = tfds.data_source("cifar10", split="train", data_dir=tmp_path, download=False)
    got = {example["id"]: example["label"] for example in source}
    assert [got[f"train_{i:05d}".encode()] for i in range(len(labels))] == labels.tolist()


def test_tensorflow_is_never_imported(manual, tmp_path):
    manual("cifar10")
    load_images("cifar10", "train", str(tmp_path))
    assert "tensorflow" not in sys.modules


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


def test_an_archive_writes_no_file_of_its_own(manual, tmp_path):
    """Its members are read into memory, whatever their names."""
    manual("cifar10")
    path = tmp_path / "downloads" / "manual" / cifar.ARCHIVES["cifar10"].file
    with tarfile.open(path, "r:gz") as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
        evil = tarfile.TarInfo(f"../../../../{tmp_path}/escaped")
        evil.size = 4
        archive.addfile(evil, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    (info,) = checksums.get_all_url_infos().values()
    info.size, info.checksum = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    load_images("cifar10", "train", str(tmp_path))
    assert not list(tmp_path.rglob("escaped")) and not list(tmp_path.rglob("link"))


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


def test_without_a_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        load_images("cifar100", "train", str(tmp_path))
    assert time.monotonic() - start < 15
    for part in (
        str(tmp_path / "cifar100"),
        str(tmp_path / "downloads"),
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        cifar.ARCHIVES["cifar100"].sha256,
        str(tmp_path / "downloads" / "manual" / "cifar-100-binary.tar.gz"),
        "quickstart",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("answer", [b"", b"x", b"junk\r\n\r\n"], ids=["silent", "dripping", "junk"])
def test_a_silent_server_times_out(answer, monkeypatch):
    monkeypatch.setattr(cifar, "PROBE_SECONDS", 1)
    stop = threading.Event()

    def serve():
        connection, _ = server.accept()
        with connection:
            while not stop.wait(0.2) and answer:
                connection.sendall(answer)
            stop.wait(5)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, daemon=True).start()
        start = time.monotonic()
        assert cifar.probe(f"http://127.0.0.1:{server.getsockname()[1]}/archive.tar.gz")
        assert time.monotonic() - start < 2
        stop.set()


def test_a_server_that_answers_is_enough():
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert cifar.probe(f"http://127.0.0.1:{server.server_port}/") == ""


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


def test_an_archive_with_another_digest_is_named(tmp_path):
    make_archive("cifar10", tmp_path / "downloads" / "manual")
    with pytest.raises(UserError, match="is not the original one: delete it or replace it"):
        load_images("cifar10", "train", str(tmp_path))


def test_a_data_dir_that_is_no_folder_gets_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be read"):
        load_images("cifar10", "train", str(tmp_path / "file"))


def test_the_digests_are_those_that_tfds_checks():
    from tensorflow_datasets.image_classification import cifar as tfds_cifar

    for name, base in {"cifar10": tfds_cifar.Cifar10, "cifar100": tfds_cifar.Cifar100}.items():
        (info,) = base.url_infos.values()
        assert (
            info.checksum == cifar.ARCHIVES[name].sha256
            and info.filename == cifar.ARCHIVES[name].file
        )


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
def test_the_real_images_load_within_a_second_once_cached():
    if not cifar.prepared_folder("cifar10", None):
        pytest.skip(f"cifar10 is not prepared in {cifar.resolve(None)}")
    code = (
        "import time; from resnet_cifar.data import load_images; "
        "load_images('cifar10', 'test[:1]'); "
        "start = time.perf_counter(); "
        "load_images('cifar10', 'train'); load_images('cifar10', 'test'); "
        "print(time.perf_counter() - start)"
    )
    load_images("cifar10", "train")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert float(out.stdout) < 1
