"""The native library is built once, at first use, wherever that is possible."""

import importlib.util
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resnet_cifar import native
from resnet_cifar.native import cached_library, choose_instructions, load_for, open_library

AVX2 = "flags\t\t: fpu sse4_2 avx avx2 bmi1 bmi2 f16c fma movbe"
AVX512 = f"{AVX2} avx512f avx512bw avx512cd avx512dq avx512vl"
A_LIBRARY = importlib.util.find_spec("_ctypes").origin
AVX2_FLAGS = ("AVX2", ["-march=x86-64-v3"])


class Build:
    """Stands in for the compiler: copies some library."""

    def __init__(self):
        self.calls = 0

    def __call__(self, path: Path):
        self.calls += 1
        shutil.copy(A_LIBRARY, path)


@pytest.mark.parametrize(
    ("cpuinfo", "wanted", "expected"),
    [
        (AVX2, "", AVX2_FLAGS),
        (AVX2, "avx512", AVX2_FLAGS),
        (AVX512, "", AVX2_FLAGS),
        (AVX512, "avx512", ("AVX-512", ["-march=x86-64-v4", "-DLANES=16"])),
        ("flags: fpu sse4_2 avx", "", ("", [])),
        ("Features\t: fp asimd evtstrm aes", "", ("", [])),
        ("", "", ("", [])),
    ],
)
def test_instructions(cpuinfo, wanted, expected):
    """AVX-512 is used on request only."""
    assert choose_instructions(f"processor\t: 0\n{cpuinfo}\n", wanted) == expected


def test_the_library_is_built_once(tmp_path):
    build = Build()
    for _ in range(2):
        cached_library(tmp_path / "a.so", build)
    assert build.calls == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.so"]


def test_a_damaged_library_is_built_again(tmp_path):
    (tmp_path / "a.so").write_bytes(b"\x7fELF cut off")
    build = Build()
    cached_library(tmp_path / "a.so", build)
    assert build.calls == 1


def test_several_may_build_at_once(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: cached_library(tmp_path / "a.so", Build()), range(4)))
    assert [path.name for path in tmp_path.iterdir()] == ["a.so"]


def test_a_failed_build_leaves_nothing(tmp_path):
    def build(path):
        raise native.BuildError("no")

    with pytest.raises(native.BuildError):
        cached_library(tmp_path / "a.so", build)
    assert not list(tmp_path.iterdir())


def test_a_read_only_cache(tmp_path):
    """The library is built in a temporary folder."""
    (tmp_path / "file").touch()
    build = Build()
    assert open_library(tmp_path / "file" / "a.so", build)
    assert build.calls == 1


def test_xlas_kernels_without_a_compiler(tmp_path):
    expected = "XLA's kernels (no C++ compiler)"
    assert str(load_for(AVX2, {"PATH": str(tmp_path)})) == expected


def test_xlas_kernels_when_turned_off():
    expected = "XLA's kernels (RESNET_CIFAR_NATIVE=0)"
    assert str(load_for(AVX2, {"RESNET_CIFAR_NATIVE": "0"})) == expected


def test_xlas_kernels_on_another_processor():
    assert str(load_for("", {})) == "XLA's kernels (no x86-64 processor with AVX2)"


def test_xlas_kernels_after_a_failed_build(tmp_path):
    """The cache stays as it was."""
    compiler, cache = tmp_path / "c++", tmp_path / "cache"
    compiler.write_text(
        "#!/bin/sh\n"
        'if [ "$1" != --version ]; then echo "a.cc:1: error: unknown option" >&2; exit 1; fi\n'
    )
    compiler.chmod(0o755)
    environ = {"CXX": str(compiler), "XDG_CACHE_HOME": str(cache)}
    expected = f"XLA's kernels ({compiler}: a.cc:1: error: unknown option)"
    assert str(load_for(AVX2, environ)) == expected
    assert not list((cache / "resnet_cifar").iterdir())
