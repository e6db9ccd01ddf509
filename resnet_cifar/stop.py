"""SIGTERM and SIGINT: a run that is asked to stop saves first."""

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """A run was asked to stop, and saved."""


class Stop:
    """A request to stop: a signal makes it, the loop polls it.

    As a context manager it listens, and restores the signal handlers at the end. A plain `Stop()`
    listens to nothing; set `signal` to stop a run from another thread.

    Example:
      with Stop() as stop:
          train_and_evaluate(config, "runs/mine", stop=stop)  # Ctrl-C saves and raises Stopped.

    Attributes:
      signal: the first signal received, or None.
    """

    def __init__(self, *, exits: bool = False):
        """Create a request; it is not made yet.

        Args:
          exits: with nothing to save, a signal ends the process at once, even while XLA compiles.
            Otherwise the previous handler gets the signal: for Ctrl-C, a KeyboardInterrupt.
        """
        self.signal: signal.Signals | None = None
        self._exits = exits
        self._since = 0.0
        self._holding = False
        self._lock = threading.RLock()  # Reentrant: a handler may interrupt `hold`.

    def __enter__(self):
        """Take over the two signals; only the main thread may."""
        self.signal, self._holding = None, False
        handler = self._leave_to_thread if self._exits else self._handle
        self._previous = {number: signal.signal(number, handler) for number in SIGNALS}
        if self._exits:
            self._start_thread()
        return self

    def __exit__(self, *_):
        if self._exits:
            signal.set_wakeup_fd(self._previous_fd)
            os.close(self._write_end)  # Ends the thread.
        for number, previous in self._previous.items():
            # None: installed by C code, which Python can't restore.
            signal.signal(number, signal.SIG_DFL if previous is None else previous)

    def hold(self) -> None:
        """From now on there is something to save: a signal makes the loop stop."""
        with self._lock:
            self._holding = True

    def release(self) -> None:
        """From now on there is nothing to save, until the next `hold`."""
        with self._lock:
            self._holding = False

    def take(self, number: signal.Signals) -> bool:
        """Make the request, as by a signal received now; False if there was one before."""
        with self._lock:
            if self.signal is not None:
                return False
            self.signal, self._since = number, time.monotonic()
            return True

    def _receive(self, number: signal.Signals) -> str:
        """Record a signal; return why it ends the run at once, or "" if the loop will stop."""
        with self._lock:
            if not self._holding:
                return "there was nothing to save"
            if self.take(number):
                say(f"{number.name}: stopping after the step in flight")
            # Some launchers repeat the terminal's Ctrl-C; a person's second one comes later.
            elif number == signal.SIGINT and time.monotonic() - self._since > 1:
                return "nothing is saved since the newest checkpoint"
            return ""

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal in the main thread, between two instructions of Python."""
        if not self._receive(signal.Signals(number)):
            return
        previous = self._previous[signal.Signals(number)]
        if callable(previous):
            previous(number, frame)
        elif previous == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _leave_to_thread(self, *_) -> None:
        """Handle nothing: Python runs handlers only between two instructions of the main thread."""

    def _start_thread(self) -> None:
        """Read signals from Python's wakeup pipe in a thread, which works while XLA compiles."""
        read_end, self._write_end = os.pipe()
        os.set_blocking(self._write_end, False)
        self._previous_fd = signal.set_wakeup_fd(self._write_end)
        threading.Thread(target=self._read, args=(read_end,), daemon=True).start()

    def _read(self, read_end: int) -> None:
        while byte := os.read(read_end, 1):
            if byte[0] in SIGNALS:
                number = signal.Signals(byte[0])
                if reason := self._receive(number):
                    say(f"stopped by {number.name}: {reason}")
                    os._exit(128 + number)
            elif self._previous_fd >= 0:
                os.write(self._previous_fd, byte)
        os.close(read_end)


def say(line: str) -> None:
    """Print to stderr, if that is possible in the middle of whatever a signal interrupted."""
    with contextlib.suppress(Exception):
        print(line, file=sys.stderr, flush=True)
