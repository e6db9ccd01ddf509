"""Several processes: what they agree on, and a run of two over the loopback."""

import dataclasses
import re
import signal

import jax
import numpy as np
import pytest
from faults import small
from jax._src import distributed
from jax._src.lib import _jax
from process_group import Group

from resnet_cifar import processes
from resnet_cifar.checkpoint import read
from resnet_cifar.checkpoint.format import by_path
from resnet_cifar.devices import Devices
from resnet_cifar.errors import UserError
from resnet_cifar.processes import SharedStop, compare_all
from resnet_cifar.programs import Programs
from resnet_cifar.stop import Stop
from resnet_cifar.trainer import Trainer


def test_a_process_that_differs_is_named():
    compare_all([{"a": 1}, {"a": 1}])
    with pytest.raises(UserError, match=r"config\.seed is 4 in process 2 and 3 in process 0"):
        compare_all([{"config.seed": 3}, {"config.seed": 3}, {"config.seed": 4}])
    with pytest.raises(UserError, match="new is None in process 1 and 'x' in process 0"):
        compare_all([{"new": "x"}, {}])


def test_a_single_process_exchanges_nothing():
    processes.check_alike({"a": 1})
    assert processes.from_primary(lambda: {"rows": []}) == {"rows": []}


def test_a_stop_is_seen_once_a_dispatch_has_carried_it():
    asked, other = SharedStop(Stop()), SharedStop(Stop())
    asked._own.signal = signal.SIGTERM
    assert asked.signal is None and (asked.vote, other.vote) == (15, 0)
    for stop in (asked, other):
        stop.hear(0)
        assert stop.signal is None
        stop.hear(max(asked.vote, other.vote))
        assert stop.signal is stop._own.signal is signal.SIGTERM


def test_a_ctrl_c_that_reaches_all_processes_counts_once():
    """The second one would end a process without a save."""
    stop = Stop()
    stop.hold()
    SharedStop(stop).hear(signal.SIGINT)
    assert stop._receive(signal.SIGINT) == ""


def test_jax_has_the_store_that_it_does_not_publish():
    assert hasattr(distributed.global_state, "client"), "see processes.client"
    for name in ("key_value_set", "key_value_try_get", "blocking_key_value_get"):
        assert hasattr(_jax.DistributedRuntimeClient, name), f"see processes.client: {name}"


@pytest.mark.slow
def test_two_processes_train_and_stop_like_one(tiny, programs, tmp_path):
    """A SIGTERM to either saves in both after the same step; process 0 alone writes and prints."""
    config = dataclasses.replace(tiny, num_epochs=40, learning_rate=0.01)
    flags = [
        f"--config.{name}={value}"
        for name, value in dataclasses.asdict(config).items()
        if value != getattr(small.get_config(), name)
    ]
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # To compile, which takes most of the time.
    group = Group(tmp_path / "run", 2, *flags, **quick)
    group.wait_for(r"^epoch 2 ")
    group.send(1, signal.SIGTERM)
    assert group.wait() == [143, 143], group.text()
    steps = {int(step) for step in re.findall(r"saved at step (\d+)", group.text())}
    assert len(steps) == 1 and "in 2 processes" in group.text()
    assert len(group.lines(1)) == 2, group.text()  # The signal, and the step.

    (last,) = steps
    trainer = Trainer(config, programs=Programs(config, Devices(jax.devices()[:1])))
    state, step = trainer.programs.devices.replicate(trainer.init_state()), 0
    while step < last:
        for rows in trainer.epoch_batches(step)[: last - step]:
            state, _ = trainer.train(state, step, rows)
            step += len(rows)
    saved = read(tmp_path / "run" / "checkpoints" / str(last))
    for name, array in by_path({"params": state.params, "batch_stats": state.batch_stats}).items():
        np.testing.assert_allclose(saved.arrays[name], array, atol=1e-4)
