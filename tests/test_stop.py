"""Signals: a run saves, a prompt gets its KeyboardInterrupt, and the process is left as it was."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from resnet_cifar.stop import SIGNALS, Stop


@pytest.fixture(autouse=True)
def default_handlers():
    """Python's own handlers, whatever started the tests."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def state():
    """Return the handlers and the wakeup fd."""
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    return [signal.getsignal(number) for number in SIGNALS], fd


def run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("exits", [False, True])
def test_handlers_and_wakeup_fd_are_restored(exits):
    before, threads = state(), threading.active_count()
    for _ in range(2):
        with Stop(exits=exits):
            assert state() != before
    assert state() == before
    while threading.active_count() > threads:  # The test's timeout ends this if they never do.
        time.sleep(0.01)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_there_is_something_to_save_is_recorded(number, capsys):
    with Stop() as stop:
        stop.hold()
        signal.raise_signal(number)
        assert stop.signal == number
    assert capsys.readouterr().err == f"{number.name}: stopping after the step in flight\n"


def test_ctrl_c_with_nothing_to_save_is_a_keyboard_interrupt():
    with Stop() as stop:
        for prepare in (lambda: None, lambda: (stop.hold(), stop.release())):
            prepare()
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            assert stop.signal is None


def test_a_repeated_ctrl_c_counts_once_and_a_late_one_interrupts():
    with Stop() as stop:
        stop.hold()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # As some launchers repeat it.
        time.sleep(1.1)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_stop_can_be_used_again():
    stop = Stop()
    with stop:
        stop.hold()
        signal.raise_signal(signal.SIGINT)
        assert stop.signal
    with stop:
        assert stop.signal is None
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("exits", "status"), [(True, 143), (False, -15)])
def test_sigterm_with_nothing_to_save_ends_the_process(exits, status):
    code = "import os, signal, time; from resnet_cifar.stop import Stop\n"
    code += f"with Stop(exits={exits}): os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)"
    assert run(code).returncode == status


def test_a_command_ends_at_once_in_code_that_runs_no_handlers():
    """As XLA does when it compiles."""
    code = """
import hashlib, os, signal, threading
from resnet_cifar.stop import Stop
with Stop(exits=True):
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    hashlib.pbkdf2_hmac('sha256', b'', b'', 2 * 10**8)
"""
    done = run(code)
    assert (done.returncode, done.stderr) == (130, "stopped by SIGINT: there was nothing to save\n")


def test_other_signals_pass_by():
    """A notebook's event loop has a wakeup fd of its own, for SIGCHLD and others."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    handler = signal.signal(signal.SIGUSR1, lambda *_: None)
    fd = signal.set_wakeup_fd(write_end)
    try:
        with Stop(exits=True) as stop:
            signal.raise_signal(signal.SIGUSR1)
            assert os.read(read_end, 1) == bytes([signal.SIGUSR1])
            assert stop.signal is None
    finally:
        signal.set_wakeup_fd(fd)
        signal.signal(signal.SIGUSR1, handler)
        os.close(read_end)
        os.close(write_end)
