"""Joining several processes into one run, and leaving them so that all of them end."""

import atexit
import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from resnet_cifar.errors import UserError
from resnet_cifar.launch import Launch
from resnet_cifar.processes import client, wait_for_all
from resnet_cifar.stop import Stopped, say

EXIT_SECONDS = 10  # For Python's own exit, which waits for threads.
START_SECONDS = 300  # For all processes to join.
SILENCE_SECONDS = 30  # After which JAX takes a process for dead, and ends the others.
FAILED = "resnet_cifar/failed"
LOST = ("Gloo", "NCCL", "nccl", "coordination", "heartbeat", "Connection reset")


@contextlib.contextmanager
def connected(launch: Launch | None) -> Iterator[None]:
    """Join the other processes; at the end all leave together, and after an error all end soon.

    Raises:
      UserError: the processes can't connect, or another one was lost.
    """
    if launch is None:
        yield
        return
    with last_words(f"not all {launch.num_processes} processes joined in {START_SECONDS} s"):
        join(launch)
    done = threading.Event()
    lost = (
        f"process {launch.process_id} was killed, or another process ended or fell silent (the "
        "lines above may name it): the same command resumes from the newest checkpoint"
    )
    with last_words(lost) as shell:
        threading.Thread(target=watch, args=(done, shell), daemon=True).start()
        try:
            yield
        except Stopped:
            leave_together(done)
            raise
        except Exception as error:
            done.set()
            leave(error)
            raise
        leave_together(done)


def join(launch: Launch) -> None:
    """Connect to the coordinator, or be it."""
    if launch.process_id == 0 and launch.coordinator:
        check_port(launch.coordinator)
    # Its handler of SIGTERM would replace ours, which all processes answer at the same step.
    jax.config.update("jax_enable_preemption_service", False)
    place: dict[str, Any] = {
        "coordinator_address": launch.coordinator,
        "num_processes": launch.num_processes,
        "process_id": launch.process_id,
        "local_device_ids": launch.local_id,  # As JAX has it: a device for each process.
        "cluster_detection_method": "deactivate",  # Any pod looks like one of several to JAX.
    }
    try:
        jax.distributed.initialize(
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=SILENCE_SECONDS,
            **(place if launch.coordinator else {}),
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"the processes can't connect ({reason})") from error


def check_port(coordinator: str) -> None:
    """Raise a UserError if the port is taken, over which JAX would crash."""
    port = int(coordinator.rpartition(":")[2])
    # What gRPC binds. Python has IPv6 even where the kernel has not.
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--coordinator={coordinator}: port {port} can't be used here ({error}): choose another"
        ) from error


@contextlib.contextmanager
def last_words(sentence: str) -> Iterator[subprocess.Popen]:
    """Have a shell print a sentence if this process dies within the block.

    JAX's runtime aborts a process whose peers are gone, and no Python code runs after that.
    """
    command = ["sh", "-c", 'read -r _ || echo "error: $0" >&2', sentence]
    shell = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield shell
    finally:
        shell.communicate(b"alive\n")


def watch(done: threading.Event, shell: subprocess.Popen) -> None:
    """End this process with a sentence once another one has said that it failed."""
    while not done.wait(1):
        with contextlib.suppress(jax.errors.JaxRuntimeError, ValueError):  # Not yet.
            failed = client().key_value_try_get(FAILED)
            if not done.is_set():
                say(f"error: {failed}")
                shell.communicate(b"alive\n")
                os._exit(1)


def leave_together(done: threading.Event) -> None:
    """Wait for process 0's last save: a launcher may kill it once another process has ended."""
    wait_for_all()
    done.set()


def leave(error: Exception) -> None:
    """Tell the others why this process fails, and let it end without waiting for them."""
    index = jax.process_index()
    with contextlib.suppress(jax.errors.JaxRuntimeError, ValueError):  # Another one was first.
        client().key_value_set(FAILED, f"process {index} failed: {error}")
    atexit.register(end_at_once, time.monotonic() + (3 if index == 0 else 0))
    # Python first waits for the thread that waits for a dispatch, which may never end.
    timer = threading.Timer(EXIT_SECONDS, end_at_once, (0.0,))
    timer.daemon = True
    timer.start()
    if not isinstance(error, UserError) and any(word in str(error) for word in LOST):
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"another process ended ({reason}): its output says why. The same command resumes from "
            "the newest checkpoint"
        ) from error


def end_at_once(moment: float) -> None:
    """Exit without JAX's shutdown, which waits for all; process 0 lets the others read first."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    time.sleep(max(0.0, moment - time.monotonic()))
    os._exit(1)
