"""The file is what `torch.save` writes, by two readers of pickles that are not ours."""

import io
import pickle
import pickletools
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from resnet_cifar.torch_file import read_torch
from resnet_cifar.torch_writer import torch_bytes

TENSORS = {
    "conv1.weight": np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5),
    "bn1.bias": np.array([1.5, -2.0], np.float32),
    "scalar": np.array(3, np.float32),
}


def rebuild(storage, offset, shape, stride, requires_grad, hooks):
    assert (offset, requires_grad, hooks) == (0, False, OrderedDict())
    strides = [4 * step for step in stride]
    return np.lib.stride_tricks.as_strided(storage, shape, strides)


class Reader(pickle.Unpickler):
    """Python's own machine, with numpy in place of torch."""

    def __init__(self, archive):
        super().__init__(io.BytesIO(archive.read("archive/data.pkl")))
        self.archive = archive

    def find_class(self, module, name):
        return {
            "collections.OrderedDict": OrderedDict,
            "torch._utils._rebuild_tensor_v2": rebuild,
            "torch.FloatStorage": "<f4",
        }[f"{module}.{name}"]

    def persistent_load(self, pid):
        kind, dtype, key, place, size = pid
        assert (kind, place) == ("storage", "cpu")
        array = np.frombuffer(self.archive.read(f"archive/data/{key}"), dtype)
        assert len(array) == size
        return array


def test_python_reads_the_tensors():
    archive = zipfile.ZipFile(io.BytesIO(torch_bytes(TENSORS)))
    read = Reader(archive).load()
    assert list(read) == list(TENSORS)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(read[name], tensor)
    assert archive.read("archive/version") == b"3\n"
    assert all(file.compress_type == zipfile.ZIP_STORED for file in archive.infolist())
    pickletools.dis(archive.read("archive/data.pkl"), out=io.StringIO())


def test_our_reader_reads_the_tensors(tmp_path):
    (tmp_path / "x.pt").write_bytes(torch_bytes(TENSORS))
    read = read_torch(tmp_path / "x.pt")
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(read[name], tensor)


def test_the_same_tensors_give_the_same_bytes():
    turned = {name: tensor.T.copy().T for name, tensor in TENSORS.items()}
    assert torch_bytes(turned) == torch_bytes(TENSORS)


def test_torch_reads_the_tensors():
    torch = pytest.importorskip("torch")
    read = torch.load(io.BytesIO(torch_bytes(TENSORS)), weights_only=True)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(read[name].numpy(), tensor)
