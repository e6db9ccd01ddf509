"""A program survives whatever becomes of its output."""

import io
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_cifar import streams
from resnet_cifar.streams import BrokenPipeSafe, safe_streams

# The module by itself: the package imports JAX, which takes seconds.
IMPORT = f"import sys; sys.path.insert(0, {str(Path(streams.__file__).parent)!r})\n"
IMPORT += "from streams import safe_streams\n"
PROGRAM = f"""{IMPORT}
import os
with safe_streams():
    for _ in range(10_000):
        print('x' * 100, flush=True)
        print('x' * 100, file=sys.stderr)
    os.write(int(sys.argv[1]), b'done')
"""


@pytest.mark.parametrize(
    "redirection",
    ["| head -n 1", "2>&1 | head -n 1", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"],
)
def test_a_program_survives_its_streams(redirection, tmp_path):
    path = tmp_path / "end"
    words = [sys.executable, "-c", PROGRAM, "9"]
    command = f"{shlex.join(words)} 9>{path} {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert path.read_text() == "done"


def test_a_file_never_gets_the_number_of_a_closed_stream(tmp_path):
    """Otherwise libraries that print to file 1 or 2 would write into it."""
    code = f"{IMPORT}with safe_streams(): open({str(tmp_path / 'fd')!r}, 'w').write("
    code += "str(open('/dev/null').fileno()))"
    command = f"{shlex.join([sys.executable, '-c', code])} <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", command], timeout=60, check=False).returncode == 0
    assert int((tmp_path / "fd").read_text()) > 2


def test_characters_without_a_code_are_escaped():
    raw = io.BytesIO()
    stream = BrokenPipeSafe(io.TextIOWrapper(raw, encoding="ascii"))
    print("runs/ä", file=stream, flush=True)
    assert raw.getvalue() == b"runs/\\xe4\n"


def test_a_closed_file_object_is_survived():
    file = io.StringIO()
    file.close()
    print("x", file=BrokenPipeSafe(file), flush=True)


def test_the_streams_are_restored(capsys):
    before = sys.stdout, sys.stderr
    with pytest.raises(ValueError, match="x"), safe_streams():
        assert sys.stdout is not before[0] and sys.stderr is not before[1]
        raise ValueError("x")
    assert (sys.stdout, sys.stderr) == before
