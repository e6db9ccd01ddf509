"""A process joins the others, and says why if it can't, or dies."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_cifar.connection import check_port, last_words
from resnet_cifar.errors import UserError

ROOT = Path(__file__).parents[1]


def test_a_port_in_use_is_refused():
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(UserError, match="can't be used here"):
            check_port(f"127.0.0.1:{taken.getsockname()[1]}")


def test_last_words_are_said_only_by_the_dead(capfd):
    code = "from resnet_cifar.connection import last_words\nwith last_words('gone'): os.abort()"
    command = [sys.executable, "-c", f"import os; {code}"]
    # Read to the end of the pipe: the shell speaks after the process is dead.
    dead = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert dead.stderr == "error: gone\n"
    with last_words("never"):
        pass
    assert capfd.readouterr().err == ""


STUCK = """
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from resnet_cifar import connection
from resnet_cifar.errors import UserError

connection.EXIT_SECONDS = 0.5
connection.client = lambda: SimpleNamespace(key_value_set=lambda *_: None)
ThreadPoolExecutor(1).submit(time.sleep, 200)
connection.leave(UserError("the disk is full"))
"""


def test_a_process_that_leaves_does_not_wait_for_a_dispatch():
    done = subprocess.run([sys.executable, "-c", STUCK], timeout=100, check=False)
    assert done.returncode == 1
