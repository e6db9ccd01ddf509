"""What the processes of one run tell each other, and agree on.

Strings travel through the key-value store of JAX's runtime, which needs no device and no
compilation. Process 0 compares and decides, so that the messages grow with the processes and not
with their square. Everything here is a no-op in a single process.
"""

import contextlib
import itertools
import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
from jax._src import distributed  # Its client has no public name.

from resnet_cifar.errors import UserError
from resnet_cifar.stop import Stop, say

ROUNDS = itertools.count()  # Every process exchanges the same values in the same order.
T = TypeVar("T")


def several() -> bool:
    return jax.process_count() > 1


def is_primary() -> bool:
    """Return whether this process writes: logs, pictures, checkpoints."""
    return jax.process_index() == 0


def client() -> Any:
    return distributed.global_state.client


def to_primary(value: str) -> list[str]:
    """Return the value of every process, in their order, in process 0; [] in the others."""
    place = f"resnet_cifar/{next(ROUNDS)}"
    client().key_value_set(f"{place}/{jax.process_index()}", value)
    count = jax.process_count() if is_primary() else 0
    return [receive(f"{place}/{index}") for index in range(count)]


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
    check_alike({})


def check_alike(mine: Mapping[str, Any]) -> None:
    """Raise a UserError that names the first process and value that differ from process 0's."""
    if several():
        everyone = to_primary(json.dumps(mine))
        from_primary(lambda: compare_all([json.loads(text) for text in everyone]))


def compare_all(everyone: Sequence[Mapping[str, Any]]) -> None:
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
                self._own.take(self.signal)

    def hold(self) -> None:
        self._own.hold()
