"""Write tensors to a file that `torch.load` reads, without torch."""

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

FUNCTION = pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n"
STORAGE = pickle.GLOBAL + b"torch\nFloatStorage\n"
EMPTY_DICT = pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE


def torch_bytes(tensors: Mapping[str, np.ndarray]) -> bytes:
    """Return the content of a file as `torch.save` writes it for an OrderedDict of tensors.

    `torch.load(path, weights_only=True)` reads it: a zip with a pickle that names nothing but
    tensors, and the raw bytes of each. The same tensors give the same bytes.

    Args:
      tensors: float32 arrays by name.
    """
    arrays = [np.ascontiguousarray(array, "<f4") for array in tensors.values()]
    files = {
        "data.pkl": state_dict({name: array.shape for name, array in tensors.items()}),
        "byteorder": b"little",
        **{f"data/{i}": array.tobytes() for i, array in enumerate(arrays)},
        "version": b"3\n",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
    return buffer.getvalue()


def state_dict(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """Return the pickle of an OrderedDict whose i-th tensor is in storage i."""
    items = [text(name) + tensor(i, shape) for i, (name, shape) in enumerate(shapes.items())]
    pairs = pickle.MARK + b"".join(items) + pickle.SETITEMS
    return pickle.PROTO + b"\x02" + EMPTY_DICT + pairs + pickle.STOP


def tensor(storage: int, shape: tuple[int, ...]) -> bytes:
    """Return `_rebuild_tensor_v2(storage, 0, shape, stride, False, OrderedDict())` as a pickle."""
    size = int(np.prod(shape))
    strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
    persistent = items(text("storage"), STORAGE, text(str(storage)), text("cpu"), number(size))
    arguments = items(
        persistent + pickle.BINPERSID,
        number(0),
        items(*map(number, shape)),
        items(*map(number, strides)),
        pickle.NEWFALSE,
        EMPTY_DICT,
    )
    return FUNCTION + arguments + pickle.REDUCE


def items(*members: bytes) -> bytes:
    return pickle.MARK + b"".join(members) + pickle.TUPLE


def text(value: str) -> bytes:
    encoded = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    return pickle.BININT + struct.pack("<i", value)
