"""Read the tensors of a PyTorch checkpoint, without PyTorch and without running its pickle.

A pickle is a program for a stack machine that may call any function of Python. `Machine` knows the
instructions that `torch.save` writes. It looks the names of functions up in `FUNCTIONS` and refuses
all others, so that nothing of the file is ever imported or called.
"""

import io
import pickletools
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from resnet_cifar.errors import UserError

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # Of the legacy layout.
NESTED = ("state_dict", "model_state_dict", "model", "net")  # Where training scripts put weights.
MOST_INSTRUCTIONS = 2_000_000  # A ResNet1202 with its optimizer has some 300,000.
DTYPES = {
    "FloatStorage": np.dtype("float32"),
    "DoubleStorage": np.dtype("float64"),
    "HalfStorage": np.dtype("float16"),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype("int64"),
    "IntStorage": np.dtype("int32"),
    "ShortStorage": np.dtype("int16"),
    "CharStorage": np.dtype("int8"),
    "ByteStorage": np.dtype("uint8"),
    "BoolStorage": np.dtype("bool"),
}


class Name(NamedTuple):
    """A class or function that a pickle refers to."""

    name: str


class Storage(NamedTuple):
    """Where the numbers of a tensor are in the file."""

    dtype: np.dtype
    key: str
    size: int  # In elements.


class Tensor(NamedTuple):
    """A view of a storage; offset and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Ignored:
    """A number of numpy's, such as the accuracy that a training script stores."""


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
            raise ValueError("there is no such file")
        data = Path(path).read_bytes()
        if data[:2] == b"PK":
            return read_zip(data)
        if data[8:9] == b"{":
            from safetensors.numpy import load

            return load(data)
        return read_legacy(io.BytesIO(data))
    except Exception as error:  # pickletools, zipfile, numpy and safetensors raise many types.
        raise UserError(f"{path} can't be read as a PyTorch checkpoint: {reason(error)}") from error


def reason(error: Exception) -> str:
    message = str(error).partition("\n")[0][:300]
    plain = type(error) in (ValueError, zipfile.BadZipFile) or isinstance(error, OSError)
    return message if plain and message else f"it is damaged ({type(error).__name__}: {message})"


def read_zip(data: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > len(data):
            raise ValueError(
                "its entries are compressed or overlap, as those of torch.save never do"
            )
        roots = [e.filename.removesuffix("data.pkl") for e in entries if is_pickle(e.filename)]
        if len(roots) != 1:
            raise ValueError("it is a zip file without the data.pkl of torch.save")
        names = archive.namelist()
        order = f"{roots[0]}byteorder"
        if order in names and archive.read(order) != b"little":
            raise ValueError("its numbers are big-endian: save it again on another machine")
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
        raise ValueError(f"torch.save did not write it, or not so: {reason(error)}") from error
    if magic != MAGIC or Machine().run(file) != PROTOCOL:
        raise ValueError("it is a pickle, but torch.save did not write it")
    if Machine().run(file)["little_endian"] is not True:
        raise ValueError("its numbers are big-endian: save it again on another machine")
    machine = Machine()
    content, stored = machine.run(file), {}
    for key in Machine().run(file):
        storage = machine.storages[text(key)]
        if int.from_bytes(file.read(8), "little") != storage.size:
            raise ValueError("it is damaged: a storage has another size than its tensors say")
        stored[key] = file.read(storage.size * storage.dtype.itemsize)
    return arrays(content, stored)


def arrays(content: Any, stored: dict[str, bytes]) -> dict[str, np.ndarray]:
    """Return the tensors of a state_dict as views of the bytes of their storages."""
    found = state_dict(content)
    storages = {tensor.storage for tensor in found.values()}
    for storage in storages:
        if len(stored.get(storage.key, b"")) != storage.size * storage.dtype.itemsize:
            raise ValueError("it is damaged or cut off: a storage lacks bytes")
    views = {key: view(tensor, stored[tensor.storage.key]) for key, tensor in found.items()}
    # Many tensors could be views of the same few bytes, and fill the memory once copied.
    if sum(array.size for array in views.values()) > sum(storage.size for storage in storages):
        raise ValueError("its tensors claim more numbers than the file holds")
    return views


def state_dict(content: Any) -> dict[str, Tensor]:
    """Return the dict of tensors in what a training script has saved; ValueError if none."""
    if isinstance(content, dict):
        content = next((content[name] for name in NESTED if name in content), content)
    if not isinstance(content, dict) or not content:
        raise ValueError("it holds no state_dict: save model.state_dict(), not the model")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(
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


class Machine:
    """Evaluates one pickle over plain values.

    Attributes:
      storages: those that it refers to, by key.
    """

    def __init__(self):
        self.storages: dict[str, Storage] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._work = 0

    def run(self, file: IO[bytes]) -> Any:
        """Return the value of the pickle at the position of a file; ValueError if refused."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if opcode.name == "STOP":
                return self._stack.pop()
            if opcode.name not in INSTRUCTIONS:
                raise ValueError(f"its pickle has the instruction {opcode.name}, which is refused")
            if count > MOST_INSTRUCTIONS:
                raise ValueError(f"its pickle has more than {MOST_INSTRUCTIONS:,} instructions")
            INSTRUCTIONS[opcode.name](self, argument)
        raise ValueError("its pickle has no end")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def mark(self, _) -> None:
        self._marks.append(len(self._stack))

    def pop_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def push_tuple(self, _, *, length: int | None = None) -> None:
        if length is not None:
            self._marks.append(len(self._stack) - length)
        self.push(tuple(self.pop_mark()))

    def put(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def get(self, index: int) -> None:
        self.push(self._memo[index])

    def append(self, _) -> None:
        value = self._stack.pop()
        self._stack[-1].append(value)

    def extend(self, _) -> None:
        values = self.pop_mark()
        self._stack[-1].extend(values)

    def set_item(self, _) -> None:
        self._marks.append(len(self._stack) - 2)
        self.set_items(_)

    def set_items(self, _) -> None:
        values = self.pop_mark()
        if not isinstance(self._stack[-1], dict):
            raise ValueError("it sets items of something that is no dict")
        fill(self._stack[-1], zip(values[::2], values[1::2], strict=True))

    def name(self, name: str) -> None:
        """Push a name: "module name" in one instruction."""
        module, _, own = name.partition(" ")
        self.push(allowed(f"{module}.{own}"))

    def name_from_stack(self, _) -> None:
        module, own = self._stack[-2:]
        del self._stack[-2:]
        self.push(allowed(f"{module}.{own}"))

    def call(self, _) -> None:
        """Replace a name and a tuple of arguments by what our function for that name returns."""
        name, arguments = self._stack[-2:]
        del self._stack[-2:]
        if not isinstance(name, Name) or len(arguments) > 8:
            raise ValueError("it calls a function that it may not")
        self._work += sum(len(a) for a in arguments if isinstance(a, list | tuple))
        if self._work > MOST_INSTRUCTIONS:  # Few instructions may repeat a long argument.
            raise ValueError("it is too large")
        self.push(FUNCTIONS[name.name](*arguments))

    def build(self, _) -> None:
        """Drop the attributes of an object, such as the versions of a state_dict's modules."""
        self._stack.pop()
        if not isinstance(self._stack[-1], dict | Ignored):
            raise ValueError("it sets the attributes of an object that is no plain tensor")

    def persistent(self, _) -> None:
        """Replace the description of a storage by a `Storage`."""
        description = self._stack.pop()
        if len(description) not in (5, 6) or any(description[5:]):
            raise ValueError("it has storages that are not plain")
        kind, name, key, _, size = description[:5]
        if kind != "storage" or not isinstance(name, Name) or not natural(size):
            raise ValueError("it has storages that are not plain")
        storage = Storage(DTYPES[name.name.removeprefix("torch.")], text(key), size)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError("it is damaged: its tensors disagree on a storage")
        self.push(storage)


def allowed(name: str) -> Name:
    if name not in FUNCTIONS and name not in {f"torch.{storage}" for storage in DTYPES}:
        raise ValueError(f"it refers to {name!r:.100}, and only plain tensors are read")
    return Name(name)


def text(key: Any) -> str:
    """Return a key that is text; to hash a tuple nested deeply could overflow Python's stack."""
    if not isinstance(key, str):
        raise ValueError("it has a key that is not text")
    return key


def fill(target: Any, pairs: Any) -> dict[Any, Any]:
    """Set items of a dict; integers are the keys of an optimizer's state."""
    for key, value in pairs:
        target[key if isinstance(key, int) else text(key)] = value
    return target


def ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    return fill({}, pairs)


def rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    plain = isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)
    if not plain or not all(map(natural, (offset, *shape, *strides))):
        raise ValueError("it has tensors that are not plain")
    return Tensor(storage, offset, shape, strides)


def natural(number: Any) -> bool:
    return isinstance(number, int) and number >= 0


def rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def ignore(*_: Any) -> Ignored:
    return Ignored()


# What stands for the functions that a pickle may call.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": ordered_dict,
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_parameter": rebuild_parameter,
    "numpy.core.multiarray.scalar": ignore,
    "numpy._core.multiarray.scalar": ignore,
    "numpy.dtype": ignore,
    "_codecs.encode": ignore,
}
PLAIN = (
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING", "SHORT_BINBYTES"),
)
INSTRUCTIONS: dict[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(PLAIN, Machine.push),
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": Machine.mark,
    "TUPLE": Machine.push_tuple,
    "TUPLE1": partial(Machine.push_tuple, length=1),
    "TUPLE2": partial(Machine.push_tuple, length=2),
    "TUPLE3": partial(Machine.push_tuple, length=3),
    "BINPUT": Machine.put,
    "LONG_BINPUT": Machine.put,
    "MEMOIZE": Machine.put,
    "BINGET": Machine.get,
    "LONG_BINGET": Machine.get,
    "APPEND": Machine.append,
    "APPENDS": Machine.extend,
    "SETITEM": Machine.set_item,
    "SETITEMS": Machine.set_items,
    "GLOBAL": Machine.name,
    "STACK_GLOBAL": Machine.name_from_stack,
    "REDUCE": Machine.call,
    "BUILD": Machine.build,
    "BINPERSID": Machine.persistent,
}
