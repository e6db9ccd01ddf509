"""`main.py` in processes of its own: from command to result, and a newcomer's mistakes."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUICK = [
    "--config=configs/quickstart.py",
    "--config.train_split=train[:200]",
    "--config.num_epochs=2",
    "--config.decay_epochs=1.5",
]


def main(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        timeout=300,
        check=False,
    )


def test_from_command_to_result_and_again(tmp_path):
    first = main(*QUICK, f"--workdir={tmp_path}")
    assert first.returncode == 0, first.stderr
    assert re.search(r"model +ResNet8, shortcut A, 75,290 parameters, float32", first.stdout)
    assert re.search(r"epoch 2 +step 4 +test +loss [\d.]+ +accuracy [\d.]+% +top-5", first.stdout)
    assert "Traceback" not in first.stderr and "\r" not in first.stdout + first.stderr
    assert json.loads((tmp_path / "summary.json").read_text())["config"]["num_epochs"] == 2
    again = main(*QUICK, f"--workdir={tmp_path}")
    assert again.returncode == 0 and "already finished" in again.stdout
    other = main(*QUICK, "--config.seed=1", f"--workdir={tmp_path}")
    assert other.returncode == 1 and "seed is 0 there and 1 here" in other.stderr


def test_a_terminal_gets_a_progress_bar(tmp_path):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "main.py", *QUICK, f"--workdir={tmp_path}"],
        cwd=ROOT, stdout=theirs, stderr=theirs, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # Linux ends a terminal's stream with an error.
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert process.wait(300) == 0
    assert re.search(rb"%\|.* images/s\]", shown)


def test_dry_run_stops_before_training(tmp_path):
    done = main(*QUICK, "--dry_run", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0 and "GFLOP a step" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"give a config: --config=configs/resnet56.py"),
        (["--config.depth=20"], r"give a config"),
        (
            ["--config=configs/resnet57.py"],
            r"there is no config file configs/resnet57.py.* resnet56.py",
        ),
        (["--config=configs/resnet56.py:papre"], r"recipe='papre' is unknown: did you mean paper"),
        (
            ["--config=configs/resnet56.py", "--config.depth=21"],
            r"depth=21 is not 6n \+ 2 .* 20 and 26",
        ),
        (
            ["--config=configs/resnet56.py", "--config.lerning_rate=1"],
            r"config.lerning_rate is unknown: did you mean --config.learning_rate",
        ),
        (["--config=configs/resnet56.py", "--config.depth.x=1"], r"config.depth.x is unknown"),
        (
            ["--config=configs/quickstart.py:paper"],
            r"quickstart.py knows no recipes: leave out :paper",
        ),
        (["--config=setup.cfg.py"], r"there is no config file setup.cfg.py"),
        (["--config="], r"give a config"),
        (["--config=tests/conftest.py"], r"tests/conftest.py has no function get_config"),
        (
            ["--config=configs/resnet56.py", "--config.train_split=trian"],
            r"the split 'trian' is unknown",
        ),
        (["--config=configs/resnet56.py", "--config.batch_size=many"], r"config.batch_size=many"),
        (["--config=configs/resnet56.py", "--config.batch_size=64.5"], r"config.batch_size=64.5"),
        (
            ["--config=configs/resnet56.py", "--config.learning_rate=nan"],
            r"learning_rate=nan is out of range",
        ),
        (
            ["--config=configs/resnet56.py", "--config.learning_rate=-1"],
            r"learning_rate=-1.0 is out of range",
        ),
        (
            ["--config=configs/resnet56.py", "--config.decay_epochs=120,80"],
            r"milestones out of order",
        ),
        (
            ["--config=configs/resnet56.py", "config.depth=20"],
            r"unexpected argument 'config.depth=20'.*--",
        ),
        (
            ["--config=configs/resnet56.py", "--config.dataset=cifar11"],
            r"dataset='cifar11' is unknown: did you mean cifar10",
        ),
        (
            ["--config=configs/resnet56.py", "--wrokdir=x"],
            r"--wrokdir is unknown: did you mean --workdir",
        ),
        (
            [*QUICK, "--config.batch_size=300"],
            r"batch_size=300 is larger than the 200 training images",
        ),
        (
            ["--config=configs/resnet56.py", "--config.data_dir=/dev/null"],
            r"data_dir='/dev/null' can't be read",
        ),
        ([*QUICK, "--workdir=/dev/null/run"], r"workdir /dev/null/run can't be"),
        ([*QUICK, "--workdir=~nobody_here/run"], r"~nobody_here/run can't be found"),
        ([*QUICK, "--require=gpu"], r"--require=gpu, but the run would use the cpu"),
    ],
)
def test_a_mistake_gets_one_sentence(arguments, message, tmp_path):
    failed = main(f"--workdir={tmp_path / 'run'}", *arguments)
    assert failed.returncode != 0
    assert re.search(message, failed.stderr), failed.stderr
    assert "Traceback" not in failed.stderr
    lines = failed.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), failed.stderr


@pytest.mark.parametrize("seconds", [0.2, 0.6, 1.2])
def test_an_early_ctrl_c_prints_no_traceback(seconds):
    """During the imports, which take a second or two."""
    command = [sys.executable, "main.py", *QUICK, "--workdir=/dev/null/run"]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 130) or err.startswith("error: "), err
    assert "Traceback" not in err


def test_a_signal_at_exit_does_not_change_the_status():
    code = """
import atexit, os, runpy, signal, sys, time
atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(0.5)))
sys.argv = ["main.py", "--config=configs/quickstart.py", "--workdir=/dev/null/run"]
runpy.run_path("main.py", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and done.stderr.startswith("error: "), done.stderr
    assert "stopped by" not in done.stderr
