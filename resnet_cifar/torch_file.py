"""Read the tensors of a PyTorch checkpoint: of the zip and the legacy layout, and safetensors."""

import io
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from resnet_cifar.errors import UserError
from resnet_cifar.torch_pickle import Machine, Refused, Tensor, text

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # They begin the legacy layout.
NESTED = ("state_dict", "model_state_dict", "model", "net")  # Where training scripts put weights.


def read_torch(path: str | Path) -> dict[str, np.ndarray]:
    """Return the tensors of a state_dict by key, read-only.

    Args:
      path: file of `torch.save`, zip or legacy layout, or of safetensors. The state_dict may be
        under "state_dict", "model_state_dict", "model" or "net".

    Raises:
      UserError: it is damaged, too large for what it holds, or has anything but plain tensors.
    """
    try:
        if not Path(path).is_file():
            raise Refused("there is no such file")
        return parse(Path(path).read_bytes())
    except Exception as error:  # pickletools, zipfile, numpy and safetensors raise many types.
        raise UserError(f"{path} can't be read as a PyTorch checkpoint: {reason(error)}") from error


def parse(data: bytes) -> dict[str, np.ndarray]:
    """Return the tensors in the bytes of a file; damage may raise any Exception."""
    if data[:2] == b"PK":
        return read_zip(data)
    if data[8:9] == b"{":
        from safetensors.numpy import load

        return load(data)
    return read_legacy(io.BytesIO(data))


def reason(error: Exception) -> str:
    message = str(error).partition("\n")[0][:300]
    plain = isinstance(error, Refused | OSError)
    return message if plain else f"it is damaged ({type(error).__name__}: {message})"


def read_zip(data: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > len(data):
            raise Refused("its entries are compressed or overlap, as those of torch.save never do")
        roots = [e.filename.removesuffix("data.pkl") for e in entries if is_pickle(e.filename)]
        if len(roots) != 1:
            raise Refused("it is a zip file without the data.pkl of torch.save")
        names = archive.namelist()
        order = f"{roots[0]}byteorder"
        if order in names and archive.read(order) != b"little":
            raise Refused("its numbers are big-endian: save it again on another machine")
        machine = Machine()
        content = machine.run(io.BytesIO(archive.read(f"{roots[0]}data.pkl")))
        stored = {key: archive.read(f"{roots[0]}data/{key}") for key in machine.storages}
    return arrays(content, stored)


def is_pickle(name: str) -> bool:
    return name == "data.pkl" or name.endswith("/data.pkl")


def read_legacy(file: IO[bytes]) -> dict[str, np.ndarray]:
    """Read four pickles (magic number, version, system, content), one of keys, and the storages."""
    try:
        magic = Machine().run(file)
    except Exception as error:
        raise Refused(f"torch.save did not write it, or {reason(error)}") from error
    if magic != MAGIC or Machine().run(file) != PROTOCOL:
        raise Refused("it is a pickle, but torch.save did not write it")
    if Machine().run(file)["little_endian"] is not True:
        raise Refused("its numbers are big-endian: save it again on another machine")
    machine = Machine()
    content, stored = machine.run(file), {}
    for key in Machine().run(file):
        storage = machine.storages[text(key)]
        if int.from_bytes(file.read(8), "little") != storage.size:
            raise Refused("it is damaged: a storage has another size than its tensors say")
        stored[key] = file.read(storage.size * storage.dtype.itemsize)
    return arrays(content, stored)


def arrays(content: Any, stored: dict[str, bytes]) -> dict[str, np.ndarray]:
    """Return the tensors of a state_dict as views of the bytes of their storages."""
    found = state_dict(content)
    storages = {tensor.storage for tensor in found.values()}
    for storage in storages:
        if len(stored.get(storage.key, b"")) != storage.size * storage.dtype.itemsize:
            raise Refused("it is damaged or cut off: a storage lacks bytes")
    views = {key: view(tensor, stored[tensor.storage.key]) for key, tensor in found.items()}
    # Many tensors could be views of the same few bytes, and fill the memory once copied.
    if sum(array.size for array in views.values()) > sum(storage.size for storage in storages):
        raise Refused("its tensors claim more numbers than the file holds")
    return views


def state_dict(content: Any) -> dict[str, Tensor]:
    """Return the dict of tensors in what a training script has saved; Refused if none."""
    if isinstance(content, dict):
        content = next((content[name] for name in NESTED if name in content), content)
    if not isinstance(content, dict) or not content:
        raise Refused("it holds no state_dict: save model.state_dict(), not the model")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise Refused(
                f"its entry {key!r:.100} is no tensor: it must hold a state_dict, at the top or "
                f"under {', '.join(NESTED)}"
            )
    return content


def view(tensor: Tensor, data: bytes) -> np.ndarray:
    """Return a read-only array; numpy checks that it stays within the bytes."""
    dtype = tensor.storage.dtype
    strides = [stride * dtype.itemsize for stride in tensor.strides]
    offset = tensor.offset * dtype.itemsize
    return np.ndarray(tensor.shape, dtype, buffer=data, offset=offset, strides=strides)
