"""Faults injected into real processes: kills, signals, damage, a full disk, a second start.

Each chain of faults ends by comparing the finished run with an uninterrupted one, bit for bit. A
few are tried by default; CONTRIBUTING has the command of the long run.
"""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resnet_cifar.checkpoint import read

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
RUN = ["--config=tests/faults/small.py"]  # 12 epochs of 8 steps.
STEPS_PER_EPOCH = 8


@pytest.fixture
def environment():
    return {"JAX_PLATFORMS": "cpu", **os.environ}


class Start:
    """The command, started, with its output in files."""

    def __init__(self, workdir, environment, *flags):
        self.began = time.monotonic()
        self.out = workdir.with_name(workdir.name + ".out")
        self.err = workdir.with_name(workdir.name + ".err")
        with self.out.open("w") as out, self.err.open("w") as err:
            command = [sys.executable, "main.py", *RUN, f"--workdir={workdir}", *flags]
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=out, stderr=err
            )

    def wait(self, timeout=300):
        """Return the exit status."""
        return self.process.wait(timeout)

    def wait_until(self, condition):
        """Return once the condition holds, or the process has ended."""
        while not condition() and self.process.poll() is None:
            time.sleep(0.002)

    def kill(self, number=signal.SIGKILL):
        """Send a signal, and return the exit status."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        return self.wait()

    def says(self, pattern):
        """Look for a pattern in what has been printed."""
        return re.search(pattern, self.out.read_text() + self.err.read_text())

    def finish(self):
        """Wait for a good end."""
        assert self.wait() == 0, self.err.read_text()
        assert "Traceback" not in self.err.read_text()


def saving(workdir):
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def checkpoints(workdir):
    """Return the steps of the checkpoints, in order."""
    return sorted(
        int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()
    )


def newest(workdir):
    return max(checkpoints(workdir), default=0)


def rows(workdir):
    """Return the complete rows, without times."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


def state_of(workdir):
    """Return the digests of the last state, each verified against the arrays on the disk."""
    return read(workdir / "checkpoints" / str(newest(workdir))).metadata["sha256"]


@pytest.fixture(scope="module")
def reference(request, programs, tmp_path_factory):
    """Return the workdir of an uninterrupted run, and its seconds with a warm compile cache."""
    folder = tmp_path_factory.mktemp("reference")
    names = ["first", "run"] if request.config.option.chains else ["run"]  # The first compiles.
    for name in names:
        start = Start(folder / name, {"JAX_PLATFORMS": "cpu", **os.environ})
        start.finish()
    return folder / "run", time.monotonic() - start.began


@pytest.fixture
def number_of_faults(request):
    return 5 if request.config.option.chains else 1


@pytest.fixture
def moments(request):
    """Return the random numbers of one chain of faults."""
    return random.Random(f"{request.config.option.faults_seed} {request.node.name}")


def same(workdir, reference):
    """Compare a finished run with the uninterrupted one."""
    path, _ = reference
    best = max(
        (row for row in rows(path) if row["split"] == "validation"), key=lambda row: row["accuracy"]
    )
    return (
        rows(workdir) == rows(path)
        and state_of(workdir) == state_of(path)
        and best["step"] in checkpoints(workdir)
        and not saving(workdir)
    )


@pytest.mark.slow
def test_a_killed_run_ends_like_an_uninterrupted_one(
    chain, number_of_faults, environment, reference, moments, tmp_path, tally
):
    workdir, lost = tmp_path / "run", []
    while len(lost) < number_of_faults:
        start = Start(workdir, environment)
        if len(lost) % 2:  # Any moment, from the first import to the summary.
            time.sleep(moments.uniform(0, reference[1]))
        else:  # In the middle of a save.
            after = newest(workdir) + STEPS_PER_EPOCH * moments.randint(0, 2)
            start.wait_until(lambda after=after: newest(workdir) >= after and saving(workdir))
            time.sleep(moments.uniform(0, 0.1))
        if (status := start.kill()) == 0:
            assert same(workdir, reference)
            shutil.rmtree(workdir)
            continue
        assert status == -signal.SIGKILL, start.err.read_text()
        reached = max((row["step"] for row in rows(workdir)), default=0)
        lost.append(
            (
                "in a save" if saving(workdir) else "at a random moment",
                max(0, reached - newest(workdir)),
            )
        )
    Start(workdir, environment).finish()
    survived = same(workdir, reference)
    for when, steps in lost:
        tally(f"kill -9 {when}", survived, epochs_to_repeat=1 + steps // STEPS_PER_EPOCH)
    assert survived


@pytest.mark.slow
def test_a_run_stopped_by_signals_saves_and_resumes(
    chain, number_of_faults, environment, reference, moments, tmp_path, tally
):
    workdir, stops = tmp_path / "run", []
    while len(stops) < number_of_faults:
        number = moments.choice([signal.SIGTERM, signal.SIGINT])
        start = Start(workdir, environment)
        if len(stops) % 2 == 0:  # In the loop: training, evaluating or between the two.
            after = newest(workdir) + STEPS_PER_EPOCH * moments.randint(0, 3)
            start.wait_until(lambda start=start: start.says(r"step \d+ +train"))
            start.wait_until(lambda after=after: newest(workdir) >= after)
            time.sleep(moments.uniform(0, 0.5))
        else:  # Any moment from the header on.
            start.wait_until(lambda start=start: start.says("device "))
            time.sleep(moments.uniform(0, reference[1]))
        sent = time.monotonic()
        status = start.kill(number)
        if status == 0:
            assert same(workdir, reference)
            shutil.rmtree(workdir)
            continue
        seconds = time.monotonic() - sent
        assert status == 128 + number
        assert "Traceback" not in start.err.read_text()
        if saved := start.says(r"saved at step (\d+)"):
            assert newest(workdir) == int(saved[1])
        else:
            assert start.says("there was nothing to save")
            assert max((row["step"] for row in rows(workdir)), default=0) <= newest(workdir)
        stops.append((number.name, "in the loop" if saved else "before the first step", seconds))
    Start(workdir, environment).finish()
    survived = same(workdir, reference)
    for name, when, seconds in stops:
        tally(f"{name} {when}", survived, seconds_to_exit=seconds)
    assert survived


def test_a_signal_ends_a_compilation_at_once(long, chain, environment, moments, tmp_path, tally):
    """With a network that compiles for many seconds, and no compile cache."""
    number = moments.choice([signal.SIGTERM, signal.SIGINT])
    fresh = environment | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs")}
    start = Start(tmp_path / "run", fresh, "--config.depth=56")
    start.wait_until((tmp_path / "run" / "checkpoints").exists)
    time.sleep(moments.uniform(8, 11))
    sent = time.monotonic()
    status = start.kill(number)
    seconds = time.monotonic() - sent
    survived = status == 128 + number and seconds < 2 and start.says("there was nothing to save")
    tally(f"{number.name} while compiling", bool(survived), seconds_to_exit=seconds)
    assert survived, start.out.read_text() + start.err.read_text()


def test_a_second_ctrl_c_does_not_wait(long, environment, tmp_path, tally):
    """A step of 8,000 images takes many seconds; the first Ctrl-C would wait for it."""
    start = Start(
        tmp_path / "run",
        environment,
        "--config=configs/quickstart.py",
        "--config.train_split=train[:8000]",
        "--config.batch_size=8000",
        "--config.validation_split=",
        "--config.width=16",
        "--config.depth=20",
    )
    start.wait_until((tmp_path / "run" / "metrics.jsonl").exists)
    time.sleep(1)
    start.process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    sent = time.monotonic()
    status = start.kill(signal.SIGINT)
    assert status == 130 and time.monotonic() - sent < 1
    assert start.says("SIGINT: stopping after the step in flight") and start.says(
        "nothing is saved"
    )


def flip_a_bit(moments, path):
    content = bytearray(path.read_bytes())
    content[moments.randrange(len(content))] ^= 1 << moments.randrange(8)
    path.write_bytes(content)


def damage(moments, folder):
    """Do something to a checkpoint; returns what was done."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    path = moments.choice(files)
    kinds = {
        "a flipped bit": lambda: flip_a_bit(moments, path),
        "a truncated file": lambda: os.truncate(path, moments.randrange(path.stat().st_size)),
        "a missing file": path.unlink,
        "an emptied folder": lambda: [
            shutil.rmtree(child) if child.is_dir() else child.unlink() for child in folder.iterdir()
        ],
    }
    kind = moments.choice(sorted(kinds))
    kinds[kind]()
    return kind


def test_a_damaged_checkpoint_costs_an_epoch_at_most(
    long, chain, environment, reference, moments, tmp_path, tally
):
    workdir, kinds = tmp_path / "run", []
    while len(kinds) < 2:
        start, after = Start(workdir, environment), newest(workdir) + 2 * STEPS_PER_EPOCH
        start.wait_until(lambda after=after: newest(workdir) >= after)
        assert start.kill() == -signal.SIGKILL, start.err.read_text()
        before = newest(workdir)
        kind = damage(moments, workdir / "checkpoints" / str(before))
        check = Start(workdir, environment)
        check.wait_until(lambda check=check: check.says(r"resuming from|^epoch"))
        assert check.kill() == -signal.SIGKILL, check.err.read_text()
        resumed = int(check.says(r"resuming from the checkpoint of step (\d+)")[1])
        assert resumed == before or check.says(
            f"warning: the checkpoint .*{before} (is damaged|can't be read)"
        )
        kinds.append((kind, (before - resumed) // STEPS_PER_EPOCH))
    Start(workdir, environment).finish()
    survived = same(workdir, reference)
    for kind, epochs in kinds:
        tally(f"{kind} in the newest checkpoint", survived, epochs_to_repeat=epochs)
    assert survived


@pytest.fixture
def small_disk(tmp_path):
    """Return a filesystem of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"mounting a small filesystem is not allowed: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_run_with_a_sentence(
    long, chain, environment, reference, moments, tmp_path, small_disk, tally
):
    """Also a workdir on another filesystem than the temporary files."""
    workdir = tmp_path / "run"
    (small_disk / "run").mkdir()
    workdir.symlink_to(small_disk / "run")
    filler = small_disk / "filler"
    start = Start(workdir, environment)
    after = STEPS_PER_EPOCH * moments.randint(0, 4)
    start.wait_until(lambda: newest(workdir) >= after)
    # Room for a part of a checkpoint, or for nothing.
    free = moments.choice([0, 4096, moments.randrange(60_000)])
    filler.touch()
    while start.process.poll() is None:  # Also the space that pruned checkpoints free.
        with contextlib.suppress(OSError), filler.open("ab") as file:
            file.write(b"\0" * max(0, shutil.disk_usage(small_disk).free - free))
        time.sleep(0.01)
    status, before = start.wait(), newest(workdir)
    reached = max((row["step"] for row in rows(workdir)), default=0)
    lines = start.err.read_text().strip().splitlines()
    assert status == 1 and len(lines) == 1 and lines[0].startswith("error: "), start.err.read_text()
    assert (
        re.search("No space left on device|RESOURCE_EXHAUSTED", lines[0])
        and "can't be written" in lines[0]
    )
    assert (
        not (workdir / "summary.json").exists()
        and not saving(workdir)
        and not list(workdir.rglob("*.part"))
    )

    with contextlib.suppress(OSError), filler.open("ab") as file:
        file.write(b"\0" * 2_000_000)
    again = Start(workdir, environment)  # Still full: refused as clearly, and nothing is lost.
    assert (
        again.wait() == 1 and again.says("error: .*can't be written") and newest(workdir) == before
    )
    filler.unlink()
    Start(workdir, environment).finish()
    survived = same(workdir, reference)
    tally("disk full", survived, epochs_to_repeat=(reached - before) // STEPS_PER_EPOCH)
    assert survived


def test_a_second_run_in_a_workdir_is_refused(long, environment, reference, tmp_path, tally):
    workdir = tmp_path / "run"
    first = Start(workdir, environment)
    first.wait_until(lambda: newest(workdir))
    second = subprocess.run(
        [sys.executable, "main.py", *RUN, f"--workdir={workdir}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    refused = f"in use by process {first.process.pid} on {socket.gethostname()}" in second.stderr
    assert second.returncode == 1 and refused, second.stderr
    first.kill()
    Start(workdir, environment).finish()
    survived = same(workdir, reference)
    tally("a second run in the same workdir", survived)
    assert survived


def test_a_diverged_run_keeps_its_checkpoints(long, environment, tmp_path, tally):
    """The rate leaps to 10^12 after two epochs."""
    diverge = [
        "--config.warmup=constant",
        "--config.learning_rate=1e12",
        "--config.decay_factor=1e-13",
        "--config.warmup_epochs=2",
    ]
    start = Start(tmp_path / "run", environment, *diverge)
    assert start.wait() == 1
    lines = start.err.read_text().strip().splitlines()
    survived = (
        checkpoints(tmp_path / "run") == [8, 16]
        and not (tmp_path / "run" / "summary.json").exists()
    )
    said = re.fullmatch(
        r"error: step 1[789] \(epoch 2\.\d+\), at learning rate 1e\+12, has the loss \S+ and a "
        r"gradient of norm (nan|inf), after [\d.e+]+ in the step before: "
        r".*Earlier checkpoints are intact.*",
        lines[-1],
    )
    tally("a loss that is not finite", bool(survived and said))
    assert survived and said and len(lines) == 1, lines


def test_a_read_only_workdir_gets_a_sentence(environment, small_disk, tmp_path):
    if subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=False).returncode:
        pytest.skip("remounting is not allowed")
    start = Start(tmp_path / "run", environment, f"--workdir={small_disk / 'run'}")
    assert start.wait() == 1
    assert re.fullmatch(r"error: the workdir \S+ can't be written: .*\n", start.err.read_text())
