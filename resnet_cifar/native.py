"""Build and load the kernels of `norm_conv.cc`, once for each kind of processor.

The C++ compiler at hand ($CXX, c++, g++ or clang++) compiles them at first use with jaxlib's
headers. The library is kept in ~/.cache/resnet_cifar.

RESNET_CIFAR_NATIVE=0 turns the kernels off. RESNET_CIFAR_NATIVE=avx512 builds them for AVX-512,
which no test has run on such a processor.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import jax

SOURCE = Path(__file__).with_name("norm_conv.cc")
FUNCTIONS = ("forward_float32", "forward_bfloat16", "backward_float32", "backward_bfloat16")
OPTIONS = ("-std=c++20", "-O2", "-fno-math-errno", "-ffp-contract=fast", "-shared", "-fPIC", "-w")
PREFIX = "resnet_cifar_norm_conv_"  # Of the names under which XLA finds the functions.
XLA = "XLA's"  # The kernels that are not native.
# What Linux calls the instructions of x86-64-v3 and v4.
AVX2 = {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


class Native(NamedTuple):
    """Whether the native kernels can be used.

    Attributes:
      usable: whether they are known to XLA.
      reason: their instructions, or why XLA's kernels are used instead.
    """

    usable: bool
    reason: str

    @property
    def name(self) -> str:
        """Whose kernels run, as far as it can change the bits of a result."""
        return f"native, {self.reason}" if self.usable else XLA

    def __str__(self) -> str:
        whose = "native" if self.usable else XLA
        return f"{whose} kernels ({self.reason})"


@functools.cache
def load() -> Native:
    """Build the kernels for this processor if need be, and register them; never fails."""
    return load_for(read_cpuinfo(), os.environ)


def load_for(cpuinfo: str, environ: Mapping[str, str]) -> Native:
    """Do what `load` does, for a processor and an environment."""
    wanted = environ.get("RESNET_CIFAR_NATIVE", "")
    if wanted == "0":
        return Native(False, "RESNET_CIFAR_NATIVE=0")
    instructions, flags = choose_instructions(cpuinfo, wanted)
    if not instructions:
        return Native(False, "no x86-64 processor with AVX2")
    compiler = find_compiler(environ)
    if not compiler:
        return Native(False, "no C++ compiler")
    try:
        register(library(compiler, flags, environ))
    except (OSError, RuntimeError, BuildError, subprocess.SubprocessError) as error:
        return Native(False, str(error).partition("\n")[0])
    return Native(True, instructions)


def target(function: str) -> str:
    """Return the name under which XLA finds a function; RuntimeError if there is no library."""
    if not registered and not load().usable:
        raise RuntimeError(f"there are no native kernels here: {load().reason}")
    return registered[-1] + function


def read_cpuinfo() -> str:
    """Return what Linux knows about the processor; empty elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def choose_instructions(cpuinfo: str, wanted: str) -> tuple[str, list[str]]:
    """Return the instructions to use and the compiler's flags for them; empty if there are none."""
    lines = (line for line in cpuinfo.splitlines() if line.startswith("flags"))
    has = set(next(lines, "").split())
    if wanted == "avx512" and has >= AVX512:
        return "AVX-512", ["-march=x86-64-v4", "-DLANES=16"]
    return ("AVX2", ["-march=x86-64-v3"]) if has >= AVX2 else ("", [])


def find_compiler(environ: Mapping[str, str]) -> str | None:
    """Return the path of a C++ compiler."""
    names = [environ.get("CXX", ""), "c++", "g++", "clang++"]
    paths = (shutil.which(name, path=environ.get("PATH")) for name in names if name)
    return next(filter(None, paths), None)


def library(compiler: str, flags: Sequence[str], environ: Mapping[str, str]) -> ctypes.CDLL:
    """Return the library for some flags, from the cache or built."""
    build = functools.partial(compile_library, compiler, flags)
    cache = environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    name = f"norm_conv-{build_key(compiler, flags)}.so"
    return open_library(Path(cache, "resnet_cifar", name), build)


def build_key(compiler: str, flags: Sequence[str]) -> str:
    """Return a name for everything that the library depends on."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=30)
    jaxlib = metadata.version("jaxlib")
    parts = [SOURCE.read_bytes(), version.stdout, str([*OPTIONS, *flags, jaxlib]).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def open_library(path: Path, build: Callable[[Path], None]) -> ctypes.CDLL:
    """Load a library or build it, in a temporary folder if its own is read-only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return cached_library(path, build)
    except OSError:
        with tempfile.TemporaryDirectory() as temporary:
            return cached_library(Path(temporary, path.name), build)


class BuildError(Exception):
    """The compiler failed."""


def cached_library(path: Path, build: Callable[[Path], None]) -> ctypes.CDLL:
    """Load a library, after building it if it is not there or can't be loaded.

    It gets its name only when it is complete, so that several processes may do this at once.
    """
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            pass  # Built on another system that shares this home.
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".tmp")
    os.close(handle)
    try:
        build(Path(unfinished))
        os.replace(unfinished, path)
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return ctypes.CDLL(str(path))


def compile_library(compiler: str, flags: Sequence[str], path: Path) -> None:
    """Compile the kernels into a shared library."""
    command = [compiler, *OPTIONS, *flags, f"-I{jax.ffi.include_dir()}", str(SOURCE)]
    command += ["-o", str(path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["it failed"]
        raise BuildError(f"{compiler}: {lines[0]}")


registered: list[str] = []  # The prefixes of the libraries that XLA knows.


def register(built: ctypes.CDLL, prefix: str = PREFIX) -> None:
    """Make the functions of a library known to XLA; the last one registered is used."""
    for function in FUNCTIONS:
        capsule = jax.ffi.pycapsule(getattr(built, function))
        jax.ffi.register_ffi_target(prefix + function, capsule, platform="cpu")
    registered.append(prefix)
