"""The trainer: every image once, in an order of its own, whatever the devices and dispatches."""

import dataclasses
import time

import jax
import numpy as np
import pytest
from helpers import assert_same

from resnet_cifar.devices import Devices
from resnet_cifar.errors import UserError
from resnet_cifar.metrics import RunMetrics
from resnet_cifar.plan import blank_splits
from resnet_cifar.programs import Programs
from resnet_cifar.state import array_fields
from resnet_cifar.trainer import Trainer


def new_state(trainer):
    return trainer.programs.devices.replicate(trainer.init_state())


def train_epoch(trainer, state, step=0):
    """Train to the end of the epoch; return the state, its step and the row."""
    metrics = RunMetrics(trainer.plan, trainer.learning_rate)
    finished = []
    for rows in trainer.epoch_batches(step):
        state, done = trainer.train(state, step, rows)
        step += len(rows)
        finished += done
    for done in finished + trainer.drain():
        metrics.add(done)
    return state, step, metrics.rows[-1]


def evaluate(trainer, state, split="test"):
    metrics = RunMetrics(trainer.plan, trainer.learning_rate)
    finished = [
        done
        for rows in trainer.eval_batches(split)
        for done in trainer.evaluate(state, 4, split, rows)
    ]
    for done in finished + trainer.drain():
        metrics.add(done)
    return metrics.rows[-1]


@pytest.fixture(scope="module")
def four_devices(tiny):
    return Programs(tiny)


@pytest.fixture(scope="module")
def one_device(tiny):
    return Programs(tiny, Devices(jax.devices()[:1]))


def test_epochs_visit_every_image_in_new_orders(tiny):
    orders = set()
    for seed in (0, 1):
        trainer = Trainer(dataclasses.replace(tiny, seed=seed), load=blank_splits)
        for step in (0, 4):
            rows = np.concatenate(trainer.epoch_batches(step))
            assert rows.shape == (4, 32) and len(np.unique(rows)) == 128
            orders.add(tuple(rows.flat))
    assert len(orders) == 4


def test_a_resumed_epoch_continues_its_order(tiny):
    trainer = Trainer(tiny, load=blank_splits)
    whole = np.concatenate(trainer.epoch_batches(4))
    np.testing.assert_array_equal(np.concatenate(trainer.epoch_batches(6)), whole[2:])


def test_eval_batches_name_every_image_once(tiny):
    rows = np.concatenate(Trainer(tiny, load=blank_splits).eval_batches("test"))
    assert sorted(rows.flat) == [-1] * (rows.size - 100) + list(range(100))


@pytest.mark.slow
def test_steps_per_dispatch_do_not_change_the_result(tiny, four_devices):
    results = []
    for steps_per_dispatch in (1, 2):
        trainer = Trainer(tiny, programs=four_devices, steps_per_dispatch=steps_per_dispatch)
        state, step, row = train_epoch(trainer, new_state(trainer))
        assert step == row["step"] == 4
        state, step, last = train_epoch(trainer, state, step)
        assert (step, last["epoch"]) == (8, 2)
        results.append((row["loss"], row["grad_norm"], evaluate(trainer, state)["loss"]))
    np.testing.assert_allclose(*results, rtol=1e-2)


def test_four_devices_train_like_one(tiny, four_devices, one_device):
    """BatchNorm sees the whole batch, however it is split."""
    config, results = dataclasses.replace(tiny, learning_rate=0.01), []
    for programs in (four_devices, one_device):
        trainer = Trainer(config, programs=programs)
        assert len(trainer.images["train"].labels.devices()) == programs.devices.count
        state = new_state(trainer)
        for step in (0, 4, 8, 12, 0):
            state, _, row = train_epoch(trainer, state, step)
        assert state.step == 20
        results.append((state.params, row["loss"], evaluate(trainer, state)["loss"]))
    (four, *losses), (one, *alone) = results
    np.testing.assert_allclose(losses, alone, rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), four, one)


def test_the_first_dispatch_is_waited_for_and_then_one_is_in_flight(tiny, one_device):
    trainer = Trainer(tiny, programs=one_device)
    state, finished = new_state(trainer), []
    for step, rows in enumerate(trainer.epoch_batches(0)):
        state, done = trainer.train(state, step, rows)
        finished.append([d.step for d in done])
    assert finished == [[0], [], [1], [2]]
    assert [d.step for d in trainer.drain()] == [3]


class OnTime:
    """An array that is ready so many seconds after its making."""

    def __init__(self, seconds):
        self.ready = time.perf_counter() + seconds

    def __array__(self, dtype=None, copy=None):
        time.sleep(max(0, self.ready - time.perf_counter()))
        return np.ones(4, np.float32)


class LaunchingPrograms:
    """Programs whose training calls return only when the device is done, as on a GPU."""

    def __init__(self, programs):
        self.programs = programs

    def __getattr__(self, name):
        return getattr(self.programs, name)

    def is_compiled(self, split, num_steps):
        return True

    def compiled(self, split, *arguments):
        def train(fields, *_):
            time.sleep(0.6)
            return fields, {"count": OnTime(0)}

        return train if split == "train" else lambda *_: {"count": OnTime(0.1)}


def test_seconds_are_those_of_the_device_although_calls_return_late(tiny, one_device):
    trainer = Trainer(tiny, programs=LaunchingPrograms(one_device), load=blank_splits)
    state, rows = new_state(trainer), np.zeros((4, 32), np.int32)
    finished = []
    for step in (0, 4, 8):
        state, done = trainer.train(state, step, rows)
        finished += [*done, *trainer.evaluate(state, step + 4, "test", rows)]
    finished += trainer.drain()
    assert [done.split for done in finished] == ["train", "test"] * 3
    expected = [0.6, 0.1, 0.5, 0.1, 0.5, 0.1]  # Evaluations run while the next call launches.
    np.testing.assert_allclose([done.seconds for done in finished], expected, atol=0.2)


def test_the_queue_is_drained_before_a_compilation(tiny):
    trainer = Trainer(tiny, programs=Programs(tiny, Devices(jax.devices()[:1])))
    state = new_state(trainer)
    rows = trainer.epoch_batches(0)
    state, _ = trainer.train(state, 0, rows[0])
    state, done = trainer.train(state, 1, rows[1])
    assert not done
    done = trainer.evaluate(state, 2, "test", trainer.eval_batches("test")[0])
    assert [(d.split, d.step) for d in done] == [("train", 1)]


def test_several_cpu_devices_run_one_evaluation_at_a_time(tiny, four_devices):
    trainer = Trainer(tiny, programs=four_devices)
    batches = trainer.eval_batches("test")
    done = trainer.evaluate(new_state(trainer), 0, "test", batches[0])
    assert len(done) == 1 and not trainer.drain()


def test_long_dispatches_are_halved_but_never_to_one_step(tiny, one_device):
    programs = LaunchingPrograms(one_device)
    trainer = Trainer(tiny, programs=programs, steps_per_dispatch=4, longest_dispatch_seconds=0)
    assert [len(rows) for rows in trainer.epoch_batches(0)] == [4]
    trainer.train(new_state(trainer), 0, trainer.epoch_batches(0)[0])
    assert [len(rows) for rows in trainer.epoch_batches(0)] == [2, 2]
    assert trainer.steps_per_dispatch == 2
    # The programs are shared with the next seed, the pace is not.
    assert Trainer(tiny, programs=programs).steps_per_dispatch == 1


def test_compile_leaves_nothing_to_compile(tiny):
    """After a step: the rest of the epoch ends with a shorter dispatch."""
    programs = Programs(tiny, Devices(jax.devices()[:1]))
    trainer = Trainer(tiny, programs=programs, steps_per_dispatch=2)
    state = new_state(trainer)
    trainer.compile(state, 1)
    seconds = trainer.compile_seconds
    assert [len(rows) for rows in trainer.epoch_batches(1)] == [2, 1]
    for rows in trainer.epoch_batches(1):
        state, _ = trainer.train(state, 1, rows)
    evaluate(trainer, train_epoch(trainer, state, 4)[0])
    assert trainer.compile_seconds == seconds > 0


def test_a_state_that_is_not_finite_scores_nan(tiny, four_devices):
    trainer = Trainer(tiny, programs=four_devices)
    bad = new_state(trainer)
    bad = bad.replace(params=jax.tree.map(lambda leaf: leaf * np.float32(np.nan), bad.params))
    rows = trainer.eval_batches("test")[0]
    (done,) = trainer.evaluate(bad, 0, "test", rows)
    assert np.isnan(done.metrics["loss_sum"]).all()


def test_runs_of_other_rates_share_a_program_and_change_nothing(tiny):
    def train(trainer):
        return array_fields(train_epoch(trainer, new_state(trainer))[0])

    other = dataclasses.replace(tiny, learning_rate=0.02, weight_decay=0.01)
    programs = Programs(tiny)
    train(Trainer(tiny, programs=programs))
    compiled = programs.compile_seconds
    shared = train(Trainer(other, programs=programs))
    assert programs.compile_seconds == compiled
    assert_same(shared, train(Trainer(other)))


def test_programs_of_another_network_are_refused(tiny, one_device):
    other = dataclasses.replace(tiny, depth=14, momentum=0.5)
    expected = r"programs were built for config\.depth=8, config\.momentum=0\.9: build Programs"
    with pytest.raises(UserError, match=expected):
        Trainer(other, programs=one_device)
