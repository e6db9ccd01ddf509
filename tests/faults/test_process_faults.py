"""Faults of one of several processes, connected over the loopback: all of them end, and resume.

Each chain ends by comparing the finished run with an uninterrupted one, bit for bit. All of it
belongs to the long run; tests/test_processes.py has the quick part.
"""

import random
import re
import signal
import time

import numpy as np
import pytest
from helpers import untimed
from process_group import Group

from resnet_cifar.checkpoint import read
from resnet_cifar.connection import SILENCE_SECONDS
from resnet_cifar.log import read_rows

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("long")]

RATE = "--config.learning_rate=0.01"  # Rounding stays small, as 96 steps at 0.2 would not let it.


def steps(workdir):
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def final(workdir):
    return read(workdir / "checkpoints" / str(steps(workdir)[-1]))


def same(workdir, reference):
    equal = final(workdir).metadata["sha256"] == final(reference).metadata["sha256"]
    return equal and untimed(read_rows(workdir)) == untimed(read_rows(reference))


def largest_difference(workdir, reference):
    """Return the largest difference of any parameter, for runs of other shares of each batch.

    Rounding differs, and once it has changed the sign of an activation the runs drift apart.
    """
    for row, expected in zip(read_rows(workdir), read_rows(reference), strict=True):
        assert row["step"] == expected["step"]
        tolerance = 1e-6 if row["step"] <= 16 else 1e-2
        np.testing.assert_allclose(row["loss"], expected["loss"], rtol=tolerance)
    one, two = final(workdir).arrays, final(reference).arrays
    names = [name for name in two if name.startswith("params/")]
    return max(float(np.abs(one[name] - two[name]).max()) for name in names)


@pytest.fixture
def start(tmp_path):
    """Return a function that starts the run in so many processes; at the end they are killed."""
    groups = []

    def start(number, *flags, workdir=tmp_path / "run", last=(), code=None):
        groups.append(Group(workdir, number, RATE, *flags, last=last, code=code))
        return groups[-1]

    yield start
    for group in groups:
        group.kill()


@pytest.fixture(scope="module")
def reference(programs, tmp_path_factory):
    """Return the workdir of an uninterrupted run of two processes."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    Group(workdir, 2, RATE).finish()
    return workdir


@pytest.fixture
def moments(request):
    return random.Random(f"{request.config.option.faults_seed} {request.node.name}")


@pytest.mark.parametrize("number", [1, 4])
def test_processes_compute_what_one_does(number, start, reference, tmp_path, tally):
    """Each save has compared the bits of all processes."""
    start(number).finish()
    largest = largest_difference(tmp_path / "run", reference)
    tally(f"{number} instead of 2 processes", largest < 1e-2, largest_difference=largest)
    assert largest < 1e-2


INGREDIENTS = (
    "ema_decay=0.9", "mixup=0.5", "mixup_off_epochs=2", "cutout=8", "label_noise=0.2",
    "train_fraction=0.9", "label_smoothing=0.1",
)  # fmt: skip
MUON = ("optimizer=muon", "nesterov=True", "ema_decay=0.9")


@pytest.mark.parametrize(
    ("name", "fields", "number"),
    [
        ("averaged weights, mixup, cutout, label noise", INGREDIENTS, 1),
        # Orthogonalization magnifies rounding, which differs between numbers of processes.
        ("Muon, averaged weights", MUON, 2),
    ],
)
def test_two_processes_resume_with(name, fields, number, start, tmp_path, tally):
    flags = [f"--config.{field}" for field in fields]
    start(number, *flags, workdir=tmp_path / "whole").finish()
    group = start(2, *flags)
    group.wait_for(r"^epoch 4 .*validation")
    group.send(1, signal.SIGTERM)
    assert group.wait() == [143, 143], group.text()
    start(number, *flags).finish()
    largest = largest_difference(tmp_path / "run", tmp_path / "whole")
    equal = same(tmp_path / "run", tmp_path / "whole") if number == 2 else largest < 1e-2
    tally(f"{name}: 2 processes, resumed as {number}", equal, largest_difference=largest)
    assert equal


@pytest.mark.parametrize("index", [0, 1])
def test_sigterm_to_one_process_saves_in_all(index, start, reference, tmp_path, tally):
    group = start(2)
    group.wait_for(r"^epoch 1 .*validation")
    group.send(index, signal.SIGTERM)
    sent = time.monotonic()
    assert group.wait() == [143, 143], group.text()
    seconds = time.monotonic() - sent
    saved = [int(step) for step in re.findall(r"saved at step (\d+)", group.text())]
    assert saved == [steps(tmp_path / "run")[-1]] * 2
    start(2).finish()
    survived = same(tmp_path / "run", reference)
    tally("SIGTERM to one of two processes", survived, seconds_to_exit=seconds)
    assert survived


def test_a_run_resumes_with_other_processes_and_back(start, reference, tmp_path, tally):
    for number, epoch in ((2, 1), (1, 4), (4, 7)):
        group = start(number)
        group.wait_for(rf"^epoch {epoch} .*validation")
        group.send(number - 1, signal.SIGTERM)
        assert set(group.wait()) == {143}, group.text()
    start(2).finish()
    largest = largest_difference(tmp_path / "run", reference)
    tally("resumed with 2, 1, 4, 2 processes", largest < 1e-2, largest_difference=largest)
    assert largest < 1e-2


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    ("number", "fault"),
    [
        (signal.SIGKILL, "kill -9 of one of two processes"),
        (signal.SIGSTOP, "one of two processes frozen"),
    ],
)
def test_a_lost_process_ends_the_other(index, number, fault, start, reference, tmp_path, tally):
    group = start(2)
    group.wait_for(r"^epoch 1 .*validation")
    group.send(index, number)
    sent = time.monotonic()
    status = group.processes[1 - index].wait(SILENCE_SECONDS + 30)
    seconds = time.monotonic() - sent
    assert status and "error: " in group.outputs[1 - index].read_text(), group.text()
    group.kill()
    start(2).finish()
    survived = same(tmp_path / "run", reference)
    tally(fault, survived, seconds_to_exit=seconds, epochs_to_repeat=1)
    assert survived


def test_random_kills_of_one_process(start, reference, moments, tmp_path, tally):
    """20 kills, each of either process, at a random moment after they have connected."""
    workdir, kills, longest = tmp_path / "run", 0, 0.0
    while kills < 20:
        group = start(2)
        group.wait_for(
            moments.choice([r"^device ", r"^compiling |^already ", r"^(epoch|already) "])
        )
        time.sleep(moments.uniform(0, 3))
        if not group.alive():  # The run has ended before.
            group.finish()
            assert same(workdir, reference)
            workdir.rename(tmp_path / f"finished{kills}")
            continue
        index = moments.randrange(2)
        group.send(index, signal.SIGKILL)
        sent = time.monotonic()
        group.processes[1 - index].wait(SILENCE_SECONDS + 30)
        longest = max(longest, time.monotonic() - sent)
        group.wait()
        kills += 1
    start(2).finish()
    survived = same(workdir, reference)
    for _ in range(kills):
        fault = "kill -9 of a random one of two processes at a random moment"
        tally(fault, survived, seconds_to_exit=longest, epochs_to_repeat=1)
    assert survived


@pytest.mark.parametrize(("field", "value"), [("momentum", 0.8), ("seed", 7)])
def test_a_process_with_another_config_is_refused(field, value, start, tmp_path, tally):
    group = start(2, last=[f"--config.{field}={value}"])
    assert group.wait() == [1, 1], group.text()
    for index in range(2):
        assert re.search(
            rf"error: .*config\.{field} is .* in process 1", "".join(group.lines(index))
        )
    assert not (tmp_path / "run").exists()
    tally("a process with another config", True)


OTHERS = {
    "a process with another version": (
        """
import importlib.metadata as packages
version = packages.version
packages.version = lambda name: "0.1" if name == "flax" else version(name)
""",
        r"flax is '0\.1' in process 1",
    ),
    "a process with other data": (
        """
from resnet_cifar.data import synthetic
make_images = synthetic.make_images
synthetic.make_images = lambda classes, split, seed: make_images(classes, split, seed + 1)
""",
        r"the data of train is '\w+' in process 1",
    ),
}


@pytest.mark.parametrize("fault", OTHERS)
def test_a_process_that_brings_something_else_is_refused(fault, start, tmp_path, tally):
    code, sentence = OTHERS[fault]
    group = start(2, code={1: code})
    assert group.wait() == [1, 1], group.text()
    for index in range(2):
        assert re.search(rf"error: .*{sentence}", "".join(group.lines(index))), group.text()
    assert not (tmp_path / "run").exists()
    tally(fault, True)


# Its first call takes longer than a process may be silent.
SLOW = """
import time
from {module} import {name}
call, delays = {name}.{method}, [{seconds}]
def slow(*arguments):
    time.sleep(delays.pop() if delays else 0)
    return call(*arguments)
{name}.{method} = slow
"""


@pytest.mark.parametrize(
    ("index", "module", "name", "method"),
    [
        (0, "resnet_cifar.trainer", "Trainer", "compile"),
        (1, "resnet_cifar.trainer", "Trainer", "compile"),
        (0, "resnet_cifar.checkpoint.manager", "Checkpoints", "_write"),
    ],
)
def test_a_slow_process_is_waited_for(
    index, module, name, method, start, reference, tmp_path, tally
):
    seconds = SILENCE_SECONDS + 15
    code = SLOW.format(module=module, name=name, method=method, seconds=seconds)
    start(2, code={index: code}).finish()
    survived = same(tmp_path / "run", reference)
    what = {"compile": "compiles", "_write": "saves"}[method]
    tally(f"one of two processes {what} for {seconds} s", survived)
    assert survived
