"""Hostile and damaged PyTorch files: always a sentence, never a crash, and nothing is run.

The files are written here, instruction by instruction, as torch.save would.
"""

import io
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections import Counter

import numpy as np
import pytest

from resnet_cifar import torch_file, torch_pickle
from resnet_cifar.errors import UserError
from resnet_cifar.torch_file import parse, read_torch, reason

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.array([1.5, -2.5])


def code(value):
    """Return the instructions that push a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(
    key="0", kind="FloatStorage", size=6, shape=(2, 3), strides=(3, 1), offset=0,
    rebuild="torch._utils\n_rebuild_tensor_v2",
):  # fmt: skip
    storage = b"(" + code("storage") + f"ctorch\n{kind}\n".encode() + code(key) + code("cuda:0")
    parts = code(offset) + code(shape) + code(strides)
    hooks = code(False) + b"ccollections\nOrderedDict\n)R"
    return f"c{rebuild}\n(".encode() + storage + code(size) + b"tQ" + parts + hooks + b"tR"


def state(**entries):
    """Return the instructions for an OrderedDict with its versions, as of a module."""
    items = b"".join(code(name) + entry for name, entry in entries.items())
    return b"ccollections\nOrderedDict\n)R(" + items + b"u}(" + code("_metadata") + b"}ub"


def pickled(body):
    return b"\x80\x02" + body + b"."


def legacy(body, **storages):
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    start = [torch_file.MAGIC, torch_file.PROTOCOL, system]
    numbers = [struct.pack("<q", array.size) + array.tobytes() for array in storages.values()]
    head = b"".join(pickle.dumps(value, 2) for value in start)
    return head + pickled(body) + pickle.dumps([*storages], 2) + b"".join(numbers)


def zipped(body, compression=zipfile.ZIP_STORED, byteorder=b"little", **storages):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("net/data.pkl", pickled(body))
        archive.writestr("net/byteorder", byteorder)
        for key, array in storages.items():
            archive.writestr(f"net/data/{key}", array.tobytes())
    return file.getvalue()


LAYOUTS = {"legacy": legacy, "zip": zipped}
TWO = state(a=tensor("s0"), b=tensor("s1", "DoubleStorage", 2, (2,), (1,)))


def refused(data, message):
    """Assert that bytes are refused; `read_torch` turns any Exception into a sentence."""
    with pytest.raises(Exception) as raised:
        parse(data)
    assert re.search(message, reason(raised.value)), reason(raised.value)


def assert_a_and_b(found):
    assert list(found) == ["a", "b"]
    np.testing.assert_array_equal(found["a"], A)
    np.testing.assert_array_equal(found["b"], B)


@pytest.mark.parametrize("layout", LAYOUTS.values())
@pytest.mark.parametrize(
    "body",
    [
        TWO,
        b"}" + code("state_dict") + TWO + b"s",
        b"}(" + code("epoch") + code(3) + code("lr") + code(0.5) + code("model") + TWO + b"u",
        TWO.replace(b"ctorch._utils\n_rebuild_tensor_v2", b"ctorch._utils\n_rebuild_tensor"),
        # As Python 2 wrote it: with pairs.
        b"ccollections\nOrderedDict\n(](]("
        + code("a") + tensor("s0") + b"e]("
        + code("b") + tensor("s1", "DoubleStorage", 2, (2,), (1,)) + b"eetR",
    ],
)  # fmt: skip
def test_state_dicts_are_read_wherever_scripts_put_them(layout, body):
    assert_a_and_b(parse(layout(body, s0=A, s1=B)))


@pytest.mark.parametrize("value", [np.float64(0.5), Counter({100: 1, 150: 1})])
def test_what_scripts_save_beside_the_weights_is_ignored(value):
    body = b"}(" + code("best") + code(value) + code("state_dict") + TWO + b"u"
    assert_a_and_b(parse(zipped(body, s0=A, s1=B)))


def test_strides_offsets_and_parameters():
    transposed = tensor("s", size=12, shape=(3, 2), strides=(1, 3), offset=6)
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + tensor("s", size=12) + b"\x88}tR"
    found = parse(legacy(state(a=parameter, b=transposed), s=np.stack([A, A + 10])))
    np.testing.assert_array_equal(found["a"], A)
    np.testing.assert_array_equal(found["b"], A.T + 10)


@pytest.mark.parametrize("kind", torch_pickle.DTYPES)
def test_every_dtype(kind):
    numbers = np.array([1, 0, 1], torch_pickle.DTYPES[kind])
    found = parse(zipped(state(a=tensor("s", kind, 3, (3,), (1,))), s=numbers))["a"]
    assert found.dtype == numbers.dtype and (found == numbers).all()


def test_safetensors_are_read_too():
    from safetensors.numpy import save

    assert_a_and_b(dict(sorted(parse(save({"a": A, "b": B})).items())))


@pytest.mark.parametrize("layout", LAYOUTS.values())
def test_a_file_cut_off_anywhere_is_a_sentence(layout):
    data = layout(TWO, s0=A, s1=B)
    for length in range(len(data)):
        refused(data[:length], "")


@pytest.mark.parametrize("layout", LAYOUTS.values())
def test_a_flipped_bit_anywhere_is_read_or_a_sentence(layout):
    data = layout(TWO, s0=A, s1=B)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of duplicate names.
        for place in range(len(data)):
            for mask in (1 << place % 8, 255):
                damaged = bytearray(data)
                damaged[place] ^= mask
                try:
                    found = parse(bytes(damaged))
                except Exception as error:
                    assert reason(error)
                    continue
                assert all(isinstance(array, np.ndarray) for array in found.values())
                if layout is zipped:  # Its checksums cover the numbers.
                    assert_a_and_b(dict(zip("ab", found.values(), strict=True)))


class Attack:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("layout", ["bare", *LAYOUTS])
def test_a_foreign_pickle_is_refused_by_name_and_not_run(tmp_path, protocol, layout):
    attack = Attack(os.mkdir, str(tmp_path / "attacked"))
    body = pickle.dumps({"state_dict": attack}, protocol)
    if layout != "bare":
        body = LAYOUTS[layout](b"N").replace(pickled(b"N"), body)
    name = "it refers to 'posix.mkdir'"
    # Zip: the checksum and the lengths of the pickle are those of another.
    refused(body, name if layout != "zip" and protocol > 1 else "")
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    "names",
    [
        "os\nsystem", "builtins\neval", "builtins\ngetattr", "torch\nload", "numpy\nload",
        "torch._utils\n_rebuild_sparse_tensor", "torch\nQInt8Storage", "argparse\nNamespace",
        "torch.nn.modules.conv\nConv2d", "collections\ndeque",
        "resnet_cifar.torch_file\nread_torch", "torch._utils\n_rebuild_tensor_v2.__globals__",
    ],
)  # fmt: skip
@pytest.mark.parametrize("layout", LAYOUTS.values())
def test_any_other_name_is_refused_by_name(layout, names):
    wanted = f"it refers to '{names.replace(chr(10), '.')}', and only plain tensors are read"
    refused(layout(state(a=f"c{names}\n)R".encode())), wanted)
    stacked = b"".join(code(part) for part in names.split("\n"))
    refused(layout(state(a=stacked + b"\x93)R")), wanted)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"(ios\nsystem\n", "the instruction INST, which is refused"),
        (b"(cos\nsystem\no", "it refers to 'os.system'"),
        (b"ccollections\nOrderedDict\n)\x81", "the instruction NEWOBJ, which is refused"),
        (b"\x82\x01", "the instruction EXT1, which is refused"),
        (b"Pkey\n", "the instruction PERSID, which is refused"),
        (code("os.system") + b"\x85)R", "it calls a function that it may not"),
        (b"ccollections\nOrderedDict\n}b", "sets the attributes of an object"),
        (tensor("s0") + b"}b", "sets the attributes of an object"),
        (b"N", "holds no state_dict"),
        (b"}", "holds no state_dict"),
        (tensor("s0"), "holds no state_dict"),
        (b"}" + code("a") + code(3) + b"s", "its entry 'a' is no tensor"),
        (b"}" + code(1) + tensor("s0") + b"s", "its entry 1 is no tensor"),
        (b"}" + code((1, 2)) + code(3) + b"s", "a key that is not text"),
        (code(3) + code("a") + b"s", "damaged|sets items of something that is no dict"),
        (b"h\x07", "it is damaged"),
        (b"0", "the instruction POP, which is refused"),
        (b"R", "it is damaged"),
        (b"t", "it is damaged"),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS.values())
def test_other_instructions_and_contents_are_refused(layout, body, message):
    refused(layout(body, **({"s0": A} if b"s0" in body else {})), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 7}, "damaged"),
        ({"size": 2**60}, "damaged"),
        ({"size": 2**80}, "damaged"),
        ({"size": -1}, "storages that are not plain"),
        ({"size": 6.0}, "storages that are not plain"),
        ({"key": 0}, "a key that is not text"),
        ({"shape": (2, 4)}, "strides is incompatible|too small"),
        ({"shape": (2**40,), "strides": (0,)}, "claim more numbers than the file holds"),
        ({"shape": (2**62, 2**62), "strides": (0, 0)}, "too big|too large|maximum"),
        ({"shape": (2**80,), "strides": (0,)}, "Maximum allowed dimension|too large"),
        ({"shape": (-2, 3)}, "tensors that are not plain"),
        ({"shape": [2, 3]}, "tensors that are not plain"),
        ({"strides": (-3, 1)}, "tensors that are not plain"),
        ({"strides": (3,)}, "strides"),
        ({"offset": 1}, "strides is incompatible|too small"),
        ({"offset": 2**62}, "damaged|too large|smaller"),
        ({"shape": (1,) * 200, "strides": (1,) * 200}, "maximum supported dimension"),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS.values())
def test_sizes_beyond_the_file_are_refused(layout, arguments, message):
    refused(layout(state(a=tensor(**{"key": "s0", **arguments})), s0=A), message)


def test_many_views_of_few_bytes_are_refused():
    entries = {f"k{i}": tensor("s0") for i in range(3)}
    refused(zipped(state(**entries), s0=A), "claim more numbers than the file holds")


def test_deep_nesting_is_a_sentence():
    """To hash, compare or print it would overflow the stack."""
    lists, tuples = b"]" * 100_000 + b"a" * 99_999, b"N" + b"\x85" * 100_000
    refused(legacy(lists), "holds no state_dict")
    refused(legacy(b"}" + tuples + b"Ns"), "a key that is not text")
    refused(legacy(tuples + b")R"), "calls a function")
    keys = legacy(b"N").removesuffix(pickle.dumps([], 2)) + pickled(tuples)
    refused(keys, "a key that is not text")


def test_long_pickles_end(monkeypatch):
    monkeypatch.setattr(torch_pickle, "MOST_INSTRUCTIONS", 1000)
    refused(legacy(b"N" * 2000), "more than 1,000 instructions")
    pairs = b"ccollections\nOrderedDict\nq\x50](" + code(["a", 1]) * 100 + b"e\x85q\x51"
    refused(legacy(pairs + b"h\x50h\x51R" * 20), "it is too large")


def test_zip_bombs_are_refused():
    zeros = np.zeros(10**6, np.float32)
    body = state(a=tensor("s0", size=10**6, shape=(10**6,), strides=(1,)))
    refused(zipped(body, zipfile.ZIP_DEFLATED, s0=zeros), "compressed or overlap")
    claimed = zipped(body, s0=A)
    size = struct.pack("<II", A.nbytes, A.nbytes)
    refused(claimed.replace(size, struct.pack("<II", A.nbytes, 2**31)), "compressed or overlap")


def test_other_zip_files_are_refused():
    refused(zipped(TWO, byteorder=b"big", s0=A, s1=B), "big-endian")
    refused(zipped(TWO, s0=A), "damaged")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "hello")
    refused(file.getvalue(), "without the data.pkl of torch.save")


@pytest.mark.parametrize("data", [b"", b"PK", b"hello, world", b"\x80", bytes(100), b"{" * 100])
def test_other_files_are_refused(data):
    refused(data, "")


def test_a_path_that_is_no_file_is_a_sentence(tmp_path):
    for path in (tmp_path, tmp_path / "none.pt", "/dev/zero"):
        with pytest.raises(UserError, match="there is no such file"):
            read_torch(path)
