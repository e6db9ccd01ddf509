"""A sweep trains every run once, in order of value, and resumes where it stopped."""

import ast
import dataclasses
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from absl import flags
from helpers import StopAfter, make_seeds
from synthetic_runs import make_workdir

from resnet_cifar import __main__
from resnet_cifar import sweep as sweep_module
from resnet_cifar.cli import parse
from resnet_cifar.config import Config
from resnet_cifar.errors import Diverged, UserError
from resnet_cifar.grid import Job
from resnet_cifar.log import read_rows
from resnet_cifar.programs import Programs
from resnet_cifar.recipes import make_config
from resnet_cifar.stop import Stopped
from resnet_cifar.sweep import (
    at_positions,
    each_once,
    numbers,
    result,
    sweep,
    typed,
)
from resnet_cifar.train import train_and_evaluate
from resnet_cifar.workdir import lock

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu"}


def scores(folder):
    return [(row["step"], row["split"], row["loss"]) for row in read_rows(folder)]


@pytest.fixture(scope="module")
def compiled(tiny):
    """Return a function that returns the programs which all runs here share."""
    programs = Programs(tiny)
    return lambda config: programs


@pytest.mark.slow
def test_seeds_share_programs_and_each_run_is_as_if_alone(tiny, compiled, tmp_path, capsys):
    made = []
    jobs = make_seeds(tiny, tmp_path)
    sweep(jobs, compiled=lambda config: made.append(config) or compiled(config))
    out = capsys.readouterr().out
    assert len(made) == 1
    assert re.search(r"card +synthetic +0 of 2\n2 runs left\nseed0: run 1 of 2", out)
    assert re.search(r"seed0: [\d.]+% after \d+ s of training; 1 run left, about 0:0", out)
    assert re.search(r"seed1: [\d.]+% after \d+ s of training; 0 runs left\n", out)
    assert (
        "epoch 4  step 16  test" in (tmp_path / "seed1" / "log.txt").read_text()
        and "epoch" not in out
    )
    train_and_evaluate(jobs[1].config, tmp_path / "alone")
    assert scores(tmp_path / "seed1") == scores(tmp_path / "alone") != scores(tmp_path / "seed0")

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    sweep(jobs)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    elsewhere = [job._replace(folder=tmp_path / "elsewhere" / job.folder.name) for job in jobs]
    for job, copy in zip(
        jobs, elsewhere, strict=True
    ):  # A summary by itself says that a run has finished.
        copy.folder.mkdir(parents=True)
        shutil.copy(job.folder / "summary.json", copy.folder)
    assert all(result(job) for job in elsewhere)
    sweep(elsewhere)
    assert [path.name for path in (tmp_path / "elsewhere").rglob("*.*")] == ["summary.json"] * 2
    assert capsys.readouterr().out.endswith("2 of 2\n0 runs left\n")


def test_a_run_leaves_nothing_on_the_device(tiny, compiled, tmp_path):
    gc.collect()
    before = len(jax.live_arrays())
    gc.disable()  # It would come by chance.
    try:
        sweep(make_seeds(tiny, tmp_path, seeds=(0,)), compiled=compiled)
        assert len(jax.live_arrays()) == before
    finally:
        gc.enable()


def test_an_interrupted_sweep_resumes_its_run(tiny, compiled, tmp_path):
    jobs = make_seeds(tiny, tmp_path, seeds=(0,))
    # Polled before the run, before its first epoch, before its first step.
    with pytest.raises(Stopped, match="saved at step 1 of 16"):
        sweep(jobs, compiled=compiled, stop=(stop := StopAfter(3)))
    assert not stop._holding  # A signal between two runs ends the process at once.
    sweep(jobs, compiled=compiled)
    assert "resuming from the checkpoint of step 1 " in (tmp_path / "seed0" / "log.txt").read_text()
    assert scores(tmp_path / "seed0")[-1][:2] == (16, "test")


def test_a_signal_as_a_run_ends_stops_the_sweep(tiny, compiled, tmp_path):
    def train_until_a_signal(*arguments, stop, **named):
        train_and_evaluate(*arguments, stop=stop, **named)
        stop.signal = signal.SIGTERM

    jobs = make_seeds(tiny, tmp_path)
    with pytest.raises(Stopped, match="between two runs"):
        sweep(jobs, compiled=compiled, train=train_until_a_signal)
    assert [bool(result(job)) for job in jobs] == [True, False]


def test_a_run_that_fails_does_not_stop_the_others(tiny, compiled, tmp_path, capsys):
    jobs = make_seeds(tiny, tmp_path)
    jobs[0].folder.mkdir()
    with lock(jobs[0].folder), pytest.raises(UserError, match="1 of 2 runs failed: seed0"):
        sweep(jobs, compiled=compiled)
    assert "seed0: failed: the workdir" in capsys.readouterr().out
    assert json.loads((tmp_path / "seed1" / "summary.json").read_text())["config"]["seed"] == 1


def test_a_run_that_diverged_comes_last(tiny, compiled, tmp_path, capsys):
    def diverge(*_, **__):
        raise Diverged("the run has diverged")

    jobs = make_seeds(tiny, tmp_path)
    jobs[0].folder.mkdir()
    (jobs[0].folder / "diverged.txt").write_text("the run has diverged\n")
    with pytest.raises(UserError, match="2 of 2 runs failed: seed1, seed0"):
        sweep(jobs, compiled=compiled, train=diverge)
    assert re.findall(r"(seed\d): run", capsys.readouterr().out) == ["seed1", "seed0"]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "failed: the run does not fit into memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GB"), "failed: the run does not fit into memory"),
    ],
)
def test_a_run_without_memory_does_not_stop_the_others(
    error, sentence, tiny, compiled, tmp_path, capsys
):
    def fail(*_, **__):
        raise error

    with pytest.raises(UserError, match="2 of 2 runs failed"):
        sweep(make_seeds(tiny, tmp_path), compiled=compiled, train=fail)
    assert capsys.readouterr().out.count(sentence) == 2


def test_a_run_with_fewer_epochs_is_extended(tmp_path):
    job = Job("card", make_config("card", depth=8), tmp_path / "run")
    make_workdir(job.folder, depth=8)
    assert result(job)
    assert not result(job._replace(config=make_config("card", depth=8, num_epochs=161)))
    shorter = job._replace(config=make_config("card", depth=8, num_epochs=159))
    with pytest.raises(UserError, match=r"160\.0 there and 159\.0 here, and can only be raised"):
        sweep([shorter])


def test_a_damaged_summary_fails_early(tiny, tmp_path):
    jobs = make_seeds(tiny, tmp_path)
    jobs[1].folder.mkdir()
    (jobs[1].folder / "summary.json").write_text("garbage")
    with pytest.raises(UserError, match=r"seed1/summary.json can't be read .*move that run away"):
        sweep(jobs)
    assert not jobs[0].folder.exists()


def test_an_unwritable_workdir_fails_early(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is not a folder that you can write to"):
        sweep(make_seeds(tiny, tmp_path / "file"))
    assert ": run" not in capsys.readouterr().out


def test_a_folder_of_another_run_fails_early(tiny, tmp_path):
    jobs = make_seeds(tiny, tmp_path)
    jobs[1].folder.mkdir()
    other = dataclasses.asdict(dataclasses.replace(jobs[1].config, momentum=0.5))
    (jobs[1].folder / "config.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"momentum is 0.5 there and 0.9 here.*another --workdir"):
        sweep(jobs)
    assert not jobs[0].folder.exists()


def test_missing_data_fails_early(tmp_path):
    jobs = make_seeds(Config(data_dir="/dev/null"), tmp_path)
    with pytest.raises(UserError, match="data_dir='/dev/null' can't be read"):
        sweep(jobs)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 21}, r"depth=21 is not 6n \+ 2 .* 20 and 26"),
        ({"dataset": "cifar11"}, "did you mean cifar10"),
    ],
)
def test_an_invalid_config_fails_early(fields, message, tmp_path):
    with pytest.raises(UserError, match=message):
        sweep([*make_seeds(Config(), tmp_path), *make_seeds(Config(**fields), tmp_path)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("values", [["twenty"], ["0", "0"], ["7", "07"], ["-1"], [""], []])
def test_malformed_or_repeated_numbers_are_refused(values):
    with pytest.raises(UserError, match=r"--seeds=.* must be "):
        numbers("seeds", values)


@pytest.mark.parametrize("values", [["card", "card"], [], [""]])
def test_missing_or_repeated_names_are_refused(values):
    with pytest.raises(UserError, match=r"--recipes=.* each once"):
        each_once("recipes", values)


def command(*argv):
    __main__.main(["resnet_cifar", "sweep", *argv])


def test_a_dry_run_shows_the_plan_and_times_a_step(tiny, tmp_path, capsys):
    grid = ["--recipes=card", "--datasets=synthetic", "--depths=8", "--seeds=0,1", "--dry_run"]
    fields = [
        f"--config.{name}={value}"
        for name, value in dataclasses.asdict(tiny).items()
        if name in ("width", "train_split", "dtype", "batch_size", "num_epochs", "warmup_epochs")
    ]
    command(*grid, *fields, "--config.decay_epochs=2,3", f"--workdir={tmp_path}")
    out = capsys.readouterr().out
    assert re.search(r"\n2 runs left\nabout 0:0\d:\d\d of training, plus evaluation", out)
    assert re.search(r"a step of ResNet8 with 32 images timed just now: [\d.e-]+ s on .*CPU", out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depths=21", "--dry_run"], r"depth=21 is not 6n \+ 2 .* 20 and 26"),
        (["--config.seed=3"], "--config.seed belongs to the runs: use --seeds"),
        (
            ["--config.lerning_rate=3"],
            r"config.lerning_rate is unknown: did you mean --config.learning_rate",
        ),
    ],
)
def test_a_mistake_gets_one_sentence(arguments, message, tmp_path, capfd):
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as failed:
        command(*arguments, f"--workdir={tmp_path}")
    assert "\n" not in str(failed.value.code) and capfd.readouterr().err == ""


def test_a_signal_before_the_first_step_ends_the_command(tmp_path):
    arguments = [
        "--recipes=card",
        "--datasets=synthetic",
        "--depths=8",
        "--seeds=0,1",
        f"--workdir={tmp_path}",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "resnet_cifar", "sweep", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert process.stdout
    while ": run" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (
        143,
        "stopped by SIGTERM: there was nothing to save\n",
    ) and not out


def test_gpu_workers_get_all_runs_and_the_parent_no_gpu():
    """In a process of its own, where no test has started JAX's devices."""
    code = """
from jax._src import xla_bridge
from resnet_cifar.grid import make_jobs
from resnet_cifar.sweep import sweep_by_gpu

jobs = make_jobs("/nowhere", recipes=["card"], datasets=["cifar10"], depths=[20, 56], seeds=[0, 1])
sweep_by_gpu(jobs, ["0", "5", "7"], ["--seeds=0,1"], None, lambda commands, stop: print(commands))
assert not xla_bridge.backends_are_initialized()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, capture_output=True, text=True, check=False, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, plan = done.stdout.splitlines()
    own = {gpu: command[-1] for gpu, command in ast.literal_eval(plan).items()}
    assert own == {"0": "--runs=2", "5": "--runs=3", "7": "--runs=0,1"}
    assert "GPU 7: 2 runs, resnet20-cifar10-seed0, resnet20-cifar10-seed1\n" in done.stdout


def test_gpu_workers_get_the_flags_that_were_given():
    values = flags.FlagValues()
    sweep_module.define_flags(values)
    given = ["--config=a b.py", "--seeds=0,1", "--nodry_run"]
    assert not parse(values, ["sweep", *given])
    assert sorted(typed(values)) == sorted(given)


def test_runs_are_chosen_by_position(tiny):
    jobs = make_seeds(tiny, Path("runs"))
    assert at_positions(jobs, []) == jobs and at_positions(jobs, [1]) == jobs[1:]
    with pytest.raises(UserError, match="--runs=2 is not in the list of 2 runs, from 0"):
        at_positions(jobs, [2])
