"""Count the kernels, bytes and launches of a GPU program, from the text of its HLO and thunks."""

import re
from dataclasses import dataclass
from functools import cached_property

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
BYTES |= {"s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
SHAPE = re.compile(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]")
# Instructions without a kernel; `-done` only waits for what `-start` launched.
NO_KERNEL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"}


@dataclass
class Instruction:
    """One line of HLO."""

    name: str
    op: str
    result: str  # The type: one shape, or a tuple of them.
    inside: str  # What is in the parentheses.
    attributes: str
    is_root: bool

    @cached_property
    def shapes(self) -> list[tuple[str, int]]:
        """The dtype and the number of elements of each array of the result."""
        return shapes(self.result)

    @property
    def bytes(self) -> int:
        """The size of the result."""
        return sum(BYTES[dtype] * size for dtype, size in self.shapes)

    @cached_property
    def operands(self) -> list[str]:
        """The names of the operands."""
        return re.findall(r"%([\w.\-]+)", self.inside)

    def calls(self, attribute: str = "calls") -> str | None:
        """Return the name of the computation that an attribute names."""
        match = re.search(rf"\b{attribute}=%([\w.\-]+)", self.attributes)
        return match and match[1]


Computation = dict[str, Instruction]


def shapes(text: str) -> list[tuple[str, int]]:
    """Return the dtype and the number of elements of each array in a type."""
    found = []
    for dtype, dimensions in SHAPE.findall(text):
        size = 1
        for length in filter(None, dimensions.split(",")):
            size *= int(length)
        found.append((dtype, size))
    return found


def count(text: str, *, batch_size: int) -> dict[str, float]:
    """Return the kernels of one step of a program and what they move.

    A step is the body of the program's `while` loop, or the whole program without one. Bytes are
    the operands and results of every kernel, as if no cache held any. An array is large with at
    least 8x8x64 elements an image, the smallest activation of the family.
    """
    computations, entry = parse(text)
    step = step_of(computations, entry)
    kernels = [i for i in step.values() if i.op not in NO_KERNEL and not i.op.endswith("-done")]
    large = batch_size * 8 * 8 * 64

    def inner(kernel: Instruction) -> list[Instruction]:
        return [kernel, *computations.get(kernel.calls() or "", {}).values()]

    return {
        "kernels": len(kernels),
        "convolutions": sum("__cudnn$conv" in kernel.attributes for kernel in kernels),
        "bytes_per_image": sum(moved(k, step, computations) for k in kernels) / batch_size,
        "large_float32": sum(
            dtype == "f32" and size >= large for kernel in kernels for dtype, size in kernel.shapes
        ),
        "large_copies": sum(
            i.op in ("copy", "transpose") and any(size >= large for _, size in i.shapes)
            for kernel in kernels
            for i in inner(kernel)
        ),
    }


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Return the computations of a module, and the name of the entry."""
    computations, entry, current = {}, "", {}
    for line in text.splitlines():
        if match := re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line):
            current = computations[match[2]] = {}
            entry = match[2] if match[1] else entry
        elif match := re.match(r"\s+(ROOT )?%([\w.\-]+) = (.*)", line):
            result, rest = split(re.sub(r"/\*.*?\*/", "", match[3]))
            op, parenthesis, rest = rest.strip().partition("(")
            inside, attributes = split(parenthesis + rest)
            current[match[2]] = Instruction(
                match[2], op, result, inside, attributes, bool(match[1])
            )
    return computations, entry


def split(text: str) -> tuple[str, str]:
    """Split after a first word or, where it begins with one, after a balanced parenthesis."""
    if not text.startswith("("):
        word, _, rest = text.partition(" ")
        return word, rest
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: i + 1], text[i + 1 :]
    raise ValueError(f"unbalanced parentheses in {text[:80]!r}")


def step_of(computations: dict[str, Computation], entry: str) -> Computation:
    """Return the largest loop body that the entry calls, or the entry if there is none."""
    loops = [i.calls("body") for i in computations[entry].values() if i.op == "while"]
    bodies = [computations[name] for name in loops if name]
    return max(bodies, key=len, default=computations[entry])


def launches(thunks: str) -> int:
    """Return what the host launches in a step: command buffers (CUDA graphs) and what is in none.

    `thunks` is XLA's dump of its thunk sequence, in which indentation is nesting.
    """
    lines = [line for line in thunks.splitlines() if line.strip()]
    indents = [len(line) - len(line.lstrip()) for line in lines]
    bodies = [range(len(lines))]
    for i, line in enumerate(lines):
        if line.strip() == "body:":
            end = next((j for j in bodies[0][i + 1 :] if indents[j] <= indents[i]), len(lines))
            bodies.append(range(i + 1, end))
    body = max(bodies[1:] or bodies, key=len)
    return sum(
        indents[j] == indents[body[0]]
        and re.match(r"\d+: k(?!AsyncDone)", lines[j].strip()) is not None
        for j in body
    )


def moved(kernel: Instruction, step: Computation, computations: dict[str, Computation]) -> int:
    """Return the bytes that a kernel reads and writes."""
    body = computations.get(kernel.calls() or "")
    if body is None:
        operands = dict.fromkeys(kernel.operands)
        return kernel.bytes + sum(step[name].bytes for name in operands if name in step)
    parameters = {int(i.inside[1:-1]): i for i in body.values() if i.op == "parameter"}
    reads = {name: read(parameters[n], body) for n, name in enumerate(kernel.operands)}
    (root,) = (i for i in body.values() if i.is_root)
    return written(root, body) + sum(reads.values())


def read(parameter: Instruction, body: Computation) -> int:
    """Return the bytes that a fusion reads of a parameter: only what slices and gathers take."""
    names, users = {parameter.name}, []
    for i in body.values():
        if names.isdisjoint(i.operands):
            continue
        if i.op == "bitcast":
            names.add(i.name)
        else:
            users.append(i)
    if users and all(i.operands[0] in names for i in users):
        if all(i.op in ("gather", "dynamic-slice", "slice") for i in users):
            return min(parameter.bytes, sum(i.bytes for i in users))
        if all(i.op == "dynamic-update-slice" for i in users):
            return 0  # Updated in place.
    return parameter.bytes


def written(root: Instruction, body: Computation) -> int:
    """Return the bytes that a fusion writes: only the changed part of an update in place."""
    if root.op == "tuple":
        return sum(written(body[name], body) for name in root.operands)
    if root.op == "bitcast":
        return written(body[root.operands[0]], body)
    if root.op == "dynamic-update-slice":
        return body[root.operands[1]].bytes
    return root.bytes
