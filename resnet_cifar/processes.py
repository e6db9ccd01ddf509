"""Several processes that make one run: start, agreement, and an end for all of them.

JAX's runtime connects them. Strings travel through its key-value store, which needs no device and
no compilation. Everything here is a no-op in a single process.
"""

import atexit
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
from jax._src import distributed  # Its client has no public name.

from resnet_cifar.errors import UserError
from resnet_cifar.launch import Launch
from resnet_cifar.stop import Stop, Stopped, say

START_SECONDS = 300  # For all processes to join.
SILENCE_SECONDS = 30  # After which JAX takes a process for dead, and ends the others.
FAILED = "resnet_cifar/failed"
LOST = ("Gloo", "NCCL", "nccl", "coordination", "heartbeat", "Connection reset")
ROUNDS = itertools.count()  # Every process exchanges the same values in the same order.
T = TypeVar("T")


def several() -> bool:
    return jax.process_count() > 1


def is_primary() -> bool:
    """Return whether this process writes: logs, pictures, checkpoints."""
    return jax.process_index() == 0


@contextlib.contextmanager
def connected(launch: Launch | None) -> Iterator[None]:
    """Join the other processes, and leave them so that all end: in unison or, on an error, soon.

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
        except Exception as error:
            done.set()
            if not isinstance(error, Stopped):
                leave(error)
            raise
        done.set()


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
    family = socket.AF_INET6 if socket.has_ipv6 else socket.AF_INET
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


def leave(error: Exception) -> None:
    """Tell the others why this process fails, and let it end without waiting for them."""
    index = jax.process_index()
    with contextlib.suppress(jax.errors.JaxRuntimeError, ValueError):  # Another one was first.
        client().key_value_set(FAILED, f"process {index} failed: {error}")
    atexit.register(end_at_once, time.monotonic() + (3 if index == 0 else 0))
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


def client() -> Any:
    return distributed.global_state.client


def exchange(value: str) -> list[str]:
    """Return the value of every process, in their order."""
    place = f"resnet_cifar/{next(ROUNDS)}"
    client().key_value_set(f"{place}/{jax.process_index()}", value)
    return [receive(f"{place}/{index}") for index in range(jax.process_count())]


def receive(key: str) -> str:
    # As long as it takes: a process that is lost ends this one.
    return client().blocking_key_value_get(key, 24 * 3600 * 1000)


def from_primary(function: Callable[[], T]) -> T:
    """Call a function in process 0 alone, and return its result, JSON, in all of them.

    Raises:
      UserError: the function raised it in process 0.
    """
    if not several():
        return function()
    key = f"resnet_cifar/{next(ROUNDS)}"
    if is_primary():
        try:
            outcome = {"value": function()}
        except UserError as error:
            client().key_value_set(key, json.dumps({"error": str(error)}))
            raise
        client().key_value_set(key, json.dumps(outcome))
        return outcome["value"]
    outcome = json.loads(receive(key))
    if "error" in outcome:
        raise UserError(outcome["error"])
    return outcome["value"]


def wait_for_all() -> None:
    """Wait until every process is here; collectives would give up after half a minute."""
    if several():
        exchange("")


def check_alike(mine: Mapping[str, Any]) -> None:
    """Raise a UserError that names the first process and value that differ from process 0's."""
    if not several():
        return
    compare([json.loads(text) for text in exchange(json.dumps(mine))])


def compare(everyone: Sequence[Mapping[str, Any]]) -> None:
    """Raise the error of `check_alike` for the values of all processes, in their order."""
    for index, theirs in enumerate(everyone):
        for name in {**everyone[0], **theirs}:
            first, own = (values.get(name) for values in (everyone[0], theirs))
            if first != own:
                raise UserError(
                    f"the processes do not belong together: {name} is {own!r} in process {index} "
                    f"and {first!r} in process 0. Give all the same command, or "
                    "--num_processes=1 if each is to train by itself"
                )


@contextlib.contextmanager
def primary_prints() -> Iterator[None]:
    """Drop what the other processes print on stdout."""
    quiet = contextlib.nullcontext() if is_primary() else contextlib.redirect_stdout(None)
    with quiet:
        yield


class SharedStop(Stop):
    """A request to stop as all processes see it: known once a dispatch has carried it to them.

    Attributes:
      signal: the one that all know of, or None.
    """

    def __init__(self, own: Stop):
        """Wrap the request that this process's signals make."""
        super().__init__()
        self._own = own

    @property
    def vote(self) -> int:
        """The number of this process's signal, 0 without one."""
        return self._own.signal or 0

    def hear(self, vote: int) -> None:
        """Take the highest vote of a finished dispatch."""
        if vote and self.signal is None:
            self.signal = signal.Signals(vote)
            if self._own.signal is None:
                say(f"{self.signal.name} in another process: stopping at the same step")
                self._own.signal = self.signal

    def hold(self) -> None:
        self._own.hold()
