"""Faults of one of several processes, connected over the loopback: all of them end, and resume.

Each chain ends by comparing the finished run with an uninterrupted one, bit for bit.
"""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from resnet_cifar.checkpoint import read
from resnet_cifar.processes import SILENCE_SECONDS

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
RUN = [
    "--config=configs/quickstart.py",
    "--config.width=4",
    "--config.batch_size=32",
    "--config.train_split=train[:256]",
    "--config.validation_split=train[256:320]",
    "--config.num_epochs=5",
    "--config.decay_epochs=2,3",
]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Group:
    """The processes of one run, with the output of each in a file."""

    def __init__(self, workdir, number, *flags):
        where = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={number}"]
        where = where if number > 1 else []
        self.outputs = [workdir.with_name(f"{workdir.name}.{index}") for index in range(number)]
        self.processes = []
        for index, output in enumerate(self.outputs):
            place = [*where, *[f"--process_id={index}"] * (number > 1)]
            command = [sys.executable, "main.py", *RUN, f"--workdir={workdir}", *place, *flags]
            with output.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env={"JAX_PLATFORMS": "cpu", **os.environ},
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def wait(self, timeout=600):
        """Return the exit statuses."""
        return [process.wait(timeout) for process in self.processes]

    def finish(self):
        assert set(self.wait()) == {0}, self.text()

    def text(self):
        return "\n".join(output.read_text() for output in self.outputs)

    def wait_for(self, pattern, timeout=600):
        """Return once process 0 has printed a pattern."""
        end = time.monotonic() + timeout
        while not re.search(pattern, self.outputs[0].read_text(), re.MULTILINE):
            assert time.monotonic() < end and self.alive(), self.text()
            time.sleep(0.05)

    def alive(self):
        return all(process.poll() is None for process in self.processes)

    def send(self, index, number):
        with contextlib.suppress(ProcessLookupError):
            self.processes[index].send_signal(number)


def rows(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{k: v for k, v in row.items() if "second" not in k} for row in found]


def checkpoints(workdir):
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdigit())


def final(workdir):
    return read(workdir / "checkpoints" / str(checkpoints(workdir)[-1]))


def same(workdir, reference):
    equal = final(workdir).metadata["sha256"] == final(reference).metadata["sha256"]
    return equal and rows(workdir) == rows(reference)


@pytest.fixture(scope="module")
def reference(programs, tmp_path_factory):
    """Return the workdir of an uninterrupted run of two processes."""
    workdir = tmp_path_factory.mktemp("reference") / "run"
    Group(workdir, 2).finish()
    return workdir


@pytest.fixture
def moments(request):
    return random.Random(f"{request.config.option.faults_seed} {request.node.name}")


def test_processes_compute_what_one_does(long, reference, tmp_path, tally):
    """Four processes, and one with one device; each save has compared the bits of all."""
    for number in (1, 4):
        Group(tmp_path / f"{number}", number).finish()
        one, two = final(tmp_path / f"{number}").arrays, final(reference).arrays
        differences = [np.abs(one[name] - two[name]).max() for name in two]
        tally(f"{number} processes instead of 2", True, largest_difference=float(max(differences)))
        assert max(differences) < 1e-3  # 40 steps.
        assert [r["step"] for r in rows(tmp_path / f"{number}")] == [
            r["step"] for r in rows(reference)
        ]


@pytest.mark.parametrize("index", [0, 1])
def test_sigterm_to_one_process_saves_in_all(long, index, reference, tmp_path, tally):
    workdir = tmp_path / "run"
    group = Group(workdir, 2)
    group.wait_for(r"^epoch 1 .*validation")
    group.send(index, signal.SIGTERM)
    sent = time.monotonic()
    assert group.wait() == [143, 143], group.text()
    seconds = time.monotonic() - sent
    saved = re.findall(r"saved at step (\d+)", group.text())
    assert len(saved) == 2 and set(map(int, saved)) == {checkpoints(workdir)[-1]}
    Group(workdir, 2).finish()
    survived = same(workdir, reference)
    tally("SIGTERM to one of two processes", survived, seconds_to_exit=seconds)
    assert survived


def test_a_run_resumes_with_other_processes_and_back(long, reference, tmp_path, tally):
    workdir = tmp_path / "run"
    for number, epoch in ((2, 1), (1, 2), (4, 3)):
        group = Group(workdir, number)
        group.wait_for(rf"^epoch {epoch} .*validation")
        group.send(number - 1, signal.SIGTERM)
        assert set(group.wait()) == {143}, group.text()
    Group(workdir, 2).finish()
    one, two = final(workdir).arrays, final(reference).arrays
    largest = float(max(np.abs(one[name] - two[name]).max() for name in two))
    complete = [r["step"] for r in rows(workdir)] == [r["step"] for r in rows(reference)]
    tally("resumed with 2, 1, 4, 2 processes", complete, largest_difference=largest)
    assert complete and largest < 1e-3


@pytest.mark.parametrize(("index", "number"), [(0, "KILL"), (1, "KILL"), (0, "STOP"), (1, "STOP")])
def test_a_lost_process_ends_the_others(long, index, number, reference, tmp_path, tally):
    workdir = tmp_path / "run"
    group = Group(workdir, 2)
    group.wait_for(r"^epoch 1 .*validation")
    group.send(index, signal.Signals[f"SIG{number}"])
    sent = time.monotonic()
    group.processes[1 - index].wait(SILENCE_SECONDS + 30)
    seconds = time.monotonic() - sent
    assert "error: " in group.outputs[1 - index].read_text(), group.text()
    group.send(index, signal.SIGKILL)
    group.wait()
    Group(workdir, 2).finish()
    survived = same(workdir, reference)
    fault = {"KILL": "kill -9 of one of two processes", "STOP": "one of two processes frozen"}
    tally(fault[number], survived, seconds_to_exit=seconds)
    assert survived


def test_random_kills_of_one_process(long, reference, moments, tmp_path, tally):
    """20 kills, each of either process at any moment from its start on."""
    workdir, kills = tmp_path / "run", 0
    while kills < 20:
        group = Group(workdir, 2)
        after = moments.choice([r"^device ", r"^compiling ", r"^epoch ", r"^resuming "])
        with contextlib.suppress(AssertionError):  # The run may end before.
            group.wait_for(after, timeout=120)
        time.sleep(moments.uniform(0, 3))
        if not group.alive():
            assert set(group.wait()) == {0}, group.text()
            assert same(workdir, reference)
            workdir.rename(tmp_path / f"finished{kills}")
            continue
        index = moments.randrange(2)
        group.send(index, signal.SIGKILL)
        group.processes[1 - index].wait(SILENCE_SECONDS + 30)
        group.wait()
        kills += 1
    Group(workdir, 2).finish()
    survived = same(workdir, reference)
    for _ in range(kills):
        tally("kill -9 of a random one of two processes at a random moment", survived)
    assert survived


@pytest.mark.parametrize(
    ("flag", "name"), [("--config.momentum=0.8", "config.momentum"), ("--config.seed=7", "seed")]
)
def test_a_process_with_another_config_is_refused_by_name(long, flag, name, tmp_path, tally):
    workdir = tmp_path / "run"
    port = free_port()
    place = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    commands = [
        [sys.executable, "main.py", *RUN, f"--workdir={workdir}", *place, f"--process_id={i}"]
        for i in range(2)
    ]
    commands[1].append(flag)
    environment = {"JAX_PLATFORMS": "cpu", **os.environ}
    started = [
        subprocess.Popen(c, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        for c in commands
    ]
    errors = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [1, 1], errors
    assert all(name in text and "in process 1" in text for text in errors), errors
    assert not workdir.exists()
    tally("a process with another config", True)
