"""Archives downloaded, verified and prepared by TFDS without TensorFlow."""

import hashlib
import http.server
import io
import socket
import sys
import tarfile
import threading
import time

import numpy as np
import pytest
from cifar_archives import NAMES, PER_FILE, make_archive
from tensorflow_datasets.core.download import checksums

from resnet_cifar.data import class_names, download, load_images
from resnet_cifar.errors import UserError


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
    download.prepare("cifar10", tmp_path)
    source = tfds.data_source("cifar10", split="train", data_dir=tmp_path, download=False)
    got = {example["id"]: example["label"] for example in source}
    assert [got[f"train_{i:05d}".encode()] for i in range(len(labels))] == labels.tolist()


def test_tensorflow_is_never_imported(manual, tmp_path):
    manual("cifar10")
    load_images("cifar10", "train", str(tmp_path))
    assert "tensorflow" not in sys.modules


def test_an_archive_writes_no_file_of_its_own(manual, tmp_path):
    """Its members are read into memory, whatever their names."""
    manual("cifar10")
    path = tmp_path / "downloads" / "manual" / download.ARCHIVES["cifar10"].file
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
        download.ARCHIVES["cifar100"].sha256,
        str(tmp_path / "downloads" / "manual" / "cifar-100-binary.tar.gz"),
        "quickstart",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("answer", [b"", b"x", b"junk\r\n\r\n"], ids=["silent", "dripping", "junk"])
def test_a_silent_server_times_out(answer, monkeypatch):
    monkeypatch.setattr(download, "PROBE_SECONDS", 1)
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
        assert download.probe(f"http://127.0.0.1:{server.getsockname()[1]}/archive.tar.gz")
        assert time.monotonic() - start < 2
        stop.set()


def test_a_server_that_answers_is_enough():
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert download.probe(f"http://127.0.0.1:{server.server_port}/") == ""


def test_an_archive_with_another_digest_is_named(tmp_path):
    make_archive("cifar10", tmp_path / "downloads" / "manual")
    with pytest.raises(UserError, match="is not the original one: delete it or replace it"):
        load_images("cifar10", "train", str(tmp_path))


def test_the_digests_are_those_that_tfds_checks():
    from tensorflow_datasets.image_classification import cifar as tfds_cifar

    for name, base in {"cifar10": tfds_cifar.Cifar10, "cifar100": tfds_cifar.Cifar100}.items():
        (info,) = base.url_infos.values()
        assert (
            info.checksum == download.ARCHIVES[name].sha256
            and info.filename == download.ARCHIVES[name].file
        )
