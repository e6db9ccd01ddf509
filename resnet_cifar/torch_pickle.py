"""Evaluate the pickles of `torch.save` without running them.

A pickle is a program for a stack machine that may call any function of Python. `Machine` knows the
instructions that `torch.save` writes. It looks the names of functions up in `FUNCTIONS` and refuses
all others, so that nothing of the file is ever imported or called.
"""

import pickletools
from collections.abc import Callable
from functools import partial
from typing import IO, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

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


class Refused(Exception):
    """What is wrong with a file, to be printed after its path."""


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
    """What training scripts store beside the weights: numpy's numbers, a schedule's milestones."""


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
        """Return the value of the pickle that begins here; damage may raise any Exception."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if opcode.name == "STOP":
                return self._stack.pop()
            if opcode.name not in INSTRUCTIONS:
                raise Refused(f"its pickle has the instruction {opcode.name}, which is refused")
            if count > MOST_INSTRUCTIONS:
                raise Refused(f"its pickle has more than {MOST_INSTRUCTIONS:,} instructions")
            INSTRUCTIONS[opcode.name](self, argument)
        raise Refused("its pickle has no end")

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
            raise Refused("it sets items of something that is no dict")
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
            raise Refused("it calls a function that it may not")
        self._work += sum(len(a) for a in arguments if isinstance(a, list | tuple))
        if self._work > MOST_INSTRUCTIONS:  # Few instructions may repeat a long argument.
            raise Refused("it is too large")
        self.push(FUNCTIONS[name.name](*arguments))

    def build(self, _) -> None:
        """Drop the attributes of an object, such as the versions of a state_dict's modules."""
        self._stack.pop()
        if not isinstance(self._stack[-1], dict | Ignored):
            raise Refused("it sets the attributes of an object that is no plain tensor")

    def persistent(self, _) -> None:
        """Replace the description of a storage by a `Storage`."""
        description = self._stack.pop()
        if len(description) not in (5, 6) or any(description[5:]):
            raise Refused("it has storages that are not plain")
        kind, name, key, _, size = description[:5]
        if kind != "storage" or not isinstance(name, Name) or not natural(size):
            raise Refused("it has storages that are not plain")
        storage = Storage(DTYPES[name.name.removeprefix("torch.")], text(key), size)
        if self.storages.setdefault(key, storage) != storage:
            raise Refused("it is damaged: its tensors disagree on a storage")
        self.push(storage)


def allowed(name: str) -> Name:
    if name not in FUNCTIONS and name not in {f"torch.{storage}" for storage in DTYPES}:
        raise Refused(
            f"it refers to {name!r:.100}, and only plain tensors are read: save model.state_dict() "
            "alone"
        )
    return Name(name)


def text(key: Any) -> str:
    """Return a key that is text; to hash a tuple nested deeply could overflow Python's stack."""
    if not isinstance(key, str):
        raise Refused("it has a key that is not text")
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
        raise Refused("it has tensors that are not plain")
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
    "collections.Counter": ignore,
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
