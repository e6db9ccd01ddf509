"""SIGTERM and SIGINT: a run that is asked to stop saves first."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A run ended because it was asked to, after it had saved where it was."""


class Stop:
    """A request to stop, which a signal makes and the loop polls.

    Attributes:
      signal: the first signal that came, or None.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._since = 0.0
        self._holding = False
        self._lock = threading.Lock()

    def listen(self) -> None:
        """Take over the two signals; to be called from the main thread.

        Python runs its own handlers between two instructions of the main thread, so never while XLA compiles. What the
        system tells its wake-up pipe comes at once, and a thread reads it.
        """
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._answer, args=(read_end,), daemon=True).start()

    def hold(self) -> None:
        """From now on there is something to save: a signal no longer ends the process, the loop does."""
        with self._lock:
            self._holding = True

    def release(self) -> None:
        """From now on there is nothing to save: a signal ends the process at once, until the next `hold`."""
        with self._lock:
            self._holding = False

    def ignore(self) -> None:
        """Leave signals unanswered, since what the run comes to is settled; Python's exit would let them kill it."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _answer(self, read_end: int) -> None:
        while True:
            number = signal.Signals(os.read(read_end, 1)[0])
            now = time.monotonic()
            with self._lock:
                # Some launchers pass on a Ctrl-C that the terminal has sent already: a person's second one comes later.
                insists = bool(self.signal) and number == signal.SIGINT and now - self._since > 1
                if self.signal is None:
                    self.signal, self._since = number, now
                    if self._holding:
                        print(
                            f"{number.name}: stopping after the step under way",
                            file=sys.stderr,
                            flush=True,
                        )
                if insists or not self._holding:
                    saved = (
                        "since the newest checkpoint nothing is saved"
                        if insists
                        else "there was nothing to save"
                    )
                    print(f"stopped by {number.name}: {saved}", file=sys.stderr, flush=True)
                    os._exit(128 + number)


class Unbreakable:
    """A stream that goes on unheard once its reader is gone: the Ctrl-C that stops a run ends its `| tee` too."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        self._go_on(self._stream.write, text)

    def flush(self) -> None:
        self._go_on(self._stream.flush)

    def _go_on(self, function: Callable[..., Any], *arguments: Any) -> None:
        try:
            function(*arguments)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
