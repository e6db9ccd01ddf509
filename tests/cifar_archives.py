"""Small archives like those of CIFAR-10 and CIFAR-100."""

import hashlib
import io
import tarfile

import numpy as np
import pytest

from resnet_cifar.data import cifar, download

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
    with tarfile.open(folder / download.ARCHIVES[name].file, "w:gz") as archive:
        for file, content in files.items():
            info = tarfile.TarInfo(prefix + file)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return tuple(np.concatenate([parts[file][i] for file in train]) for i in (0, 1))


@pytest.fixture
def manual(tmp_path, monkeypatch):
    """Return a function that puts a small archive where a user would put the original."""
    from tensorflow_datasets.core.download import checksums
    from tensorflow_datasets.image_classification import cifar as tfds_cifar

    def put(name):
        monkeypatch.setattr(
            cifar, "SIZES", {"train": PER_FILE * (5 if name == "cifar10" else 1), "test": PER_FILE}
        )
        expected = make_archive(name, tmp_path / "downloads" / "manual")
        path = tmp_path / "downloads" / "manual" / download.ARCHIVES[name].file
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
