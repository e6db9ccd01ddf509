"""`main.py`: from command to result, and a newcomer's mistakes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resnet_cifar import cli

ROOT = Path(__file__).parents[1]
QUICK = [
    "--config=configs/quickstart.py",
    "--config.train_split=train[:200]",
    "--config.num_epochs=2",
    "--config.decay_epochs=1.5",
    "--config.width=4",
]


@pytest.fixture(autouse=True)
def in_the_clone(monkeypatch):
    monkeypatch.chdir(ROOT)


def main(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "main.py", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        timeout=300,
        check=False,
    )


def main_here(*arguments):
    """Do in this process what `main.py` does."""
    cli.run("resnet_cifar.train_command", ["main.py", *arguments])


def test_from_command_to_result_and_again(tmp_path, capsys):
    first = main(*QUICK, f"--workdir={tmp_path}")
    assert first.returncode == 0, first.stderr
    assert re.search(r"model +ResNet8, shortcut A, 5,006 parameters, float32", first.stdout)
    assert re.search(r"epoch 2 +step 4 +test +loss [\d.]+ +accuracy [\d.]+% +top-5", first.stdout)
    assert "Traceback" not in first.stderr and "\r" not in first.stdout + first.stderr
    assert json.loads((tmp_path / "summary.json").read_text())["config"]["num_epochs"] == 2
    main_here(*QUICK, f"--workdir={tmp_path}")
    assert "already finished" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="seed is 0 there and 1 here"):
        main_here(*QUICK, "--config.seed=1", f"--workdir={tmp_path}")


def test_a_dry_run_needs_no_data_and_writes_nothing(tmp_path, capsys):
    fields = [
        "--config.depth=8",
        "--config.width=4",
        "--config.batch_size=32",
        "--config.train_split=train[:50%]",
        "--config.num_devices=1",
    ]
    folders = [f"--config.data_dir={tmp_path}", f"--workdir={tmp_path / 'run'}"]
    main_here("--config=configs/resnet20.py", *fields, *folders, "--dry_run")
    out = capsys.readouterr().out
    assert f"cifar10, not yet in {tmp_path}: 25,000 train, 10,000 test" in out
    assert "GFLOP a step" in out and not list(tmp_path.iterdir())


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
            r"decay_epochs=\(120, 80\), .* must be in ascending order",
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
def test_a_mistake_gets_one_sentence(arguments, message, tmp_path, capfd):
    with pytest.raises(SystemExit) as failed:
        main_here(f"--workdir={tmp_path / 'run'}", *arguments)
    sentence = str(failed.value.code)
    assert re.search(message, sentence)
    assert sentence.startswith("error: ") and "\n" not in sentence
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("seconds", [0.2, 0.6, 1.2])
def test_an_early_ctrl_c_prints_no_traceback(seconds):
    """During the imports, which take a second or two."""
    command = [sys.executable, "main.py", *QUICK, "--workdir=/dev/null/run"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"error: the workdir .*\n", done.stderr), done.stderr
