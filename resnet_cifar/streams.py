"""Standard streams that can't end a run: closed ones, broken pipes, characters without a code."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any


class BrokenPipeSafe:
    """A text stream that survives a closed pipe, a full disk and an encoding that is too small.

    The Ctrl-C that stops a run ends its `| tee` too.
    """

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._try(self._stream.write, text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            escaped = text.encode(encoding, "backslashreplace").decode(encoding)
            self._try(self._stream.write, escaped)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, function: Callable[..., Any], *arguments: Any) -> None:
        try:
            function(*arguments)
        except UnicodeEncodeError:
            raise
        except (OSError, ValueError):  # A ValueError if the file object is closed.
            self._discard()

    def _discard(self) -> None:
        """Send to /dev/null what is buffered and what follows: Python flushes again at exit."""
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """Make stdout and stderr safe for as long as the context lasts."""
    open_missing_files()
    before = sys.stdout, sys.stderr
    null = open(os.devnull, "w") if None in before else contextlib.nullcontext()  # noqa: SIM115
    with null:
        sys.stdout, sys.stderr = (BrokenPipeSafe(stream or null) for stream in before)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = before


def open_missing_files() -> None:
    """Open /dev/null where the launcher closed stdin, stdout or stderr.

    Otherwise the next file to be opened, such as a checkpoint, would get what libraries print.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # The lowest free number is this one.
