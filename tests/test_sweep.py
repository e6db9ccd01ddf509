"""A sweep trains every cell once, in order of value, and goes on where it stopped."""

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

from resnet_cifar import sweep as sweep_module
from resnet_cifar.config import Config
from resnet_cifar.errors import Diverged, UserError
from resnet_cifar.log import read_rows
from resnet_cifar.recipes import make_config
from resnet_cifar.stop import Stop, Stopped
from resnet_cifar.sweep import Cell, each_once, make_cells, numbers, sweep, take_share, time_left
from resnet_cifar.train import train_and_evaluate
from resnet_cifar.workdir import lock

ROOT = Path(__file__).parents[1]


def scores(folder):
    return [(row["step"], row["split"], row["loss"]) for row in read_rows(folder)]


@pytest.fixture
def short(tiny) -> Config:
    """Return a run of two epochs."""
    return dataclasses.replace(tiny, num_epochs=2, warmup_epochs=0.5, decay_epochs=(1,))


def make(config, folder, seeds=(0, 1)):
    return [
        Cell("card", dataclasses.replace(config, seed=seed), folder / f"seed{seed}")
        for seed in seeds
    ]


def test_the_most_valuable_runs_come_first():
    cells = make_cells(
        Path("runs"), {"num_epochs": 3}, recipes=["card", "strong"], datasets=["cifar10", "cifar100"], depths=[56, 20],
        seeds=[0, 1, 2, 3, 4],
    )  # fmt: skip
    order = [
        (cell.recipe, cell.config.dataset, cell.config.depth, cell.config.seed) for cell in cells
    ]
    waves = [
        ("cifar10", (0, 1, 2)),
        ("cifar100", (0, 1, 2)),
        ("cifar10", (3, 4)),
        ("cifar100", (3, 4)),
    ]
    assert order == [
        (recipe, dataset, depth, seed)
        for recipe in ("card", "strong") for dataset, seeds in waves for depth in (56, 20) for seed in seeds
    ]  # fmt: skip
    assert cells[0].config == make_config("card", depth=56, num_epochs=3)
    assert cells[-1].config == make_config(
        "strong", depth=20, dataset="cifar100", seed=4, num_epochs=3
    )
    assert [str(cells[at].folder) for at in (0, -1)] == [
        "runs/resnet56-cifar10-seed0", "runs/resnet20-cifar100-strong-seed4",
    ]  # fmt: skip


def test_shards_share_the_networks_with_their_seeds():
    cells = make_cells(
        Path("runs"),
        {},
        recipes=["card"],
        datasets=["cifar10"],
        depths=[56, 20, 8],
        seeds=[0, 1, 2, 3, 4],
    )
    shares = [take_share(cells, f"{index}/2") for index in (1, 2)]
    assert [[(cell.config.depth, cell.config.seed) for cell in share] for share in shares] == [
        [(56, 0), (56, 1), (56, 2), (8, 0), (8, 1), (8, 2), (20, 3), (20, 4)],
        [(20, 0), (20, 1), (20, 2), (56, 3), (56, 4), (8, 3), (8, 4)],
    ]


@pytest.mark.parametrize("shard", ["0/8", "9/8", "8", "a/b", "1/2/3", ""])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(UserError, match="from 1/8 to 8/8"):
        take_share([], shard)


def test_a_sweep_compiles_once_and_trains_each_run_as_a_run_by_itself(
    short, tmp_path, capsys, monkeypatch
):
    compiled = []
    original = sweep_module.Programs
    monkeypatch.setattr(
        sweep_module, "Programs", lambda config: compiled.append(config) or original(config)
    )
    cells = make(short, tmp_path)
    sweep(cells, Stop())
    out = capsys.readouterr().out
    assert len(compiled) == 1
    assert re.search(r"card +synthetic +0 of 2\n2 runs left\nseed0: begins, 1 of 2", out)
    assert re.search(r"seed0: [\d.]+% after \d+ s of training; 1 run left, about 0:0", out)
    assert re.search(r"seed1: [\d.]+% after \d+ s of training; 0 runs left\n", out)
    assert (
        "epoch 2  step 8  test" in (tmp_path / "seed1" / "log.txt").read_text()
        and "epoch" not in out
    )
    train_and_evaluate(cells[1].config, tmp_path / "alone")
    assert scores(tmp_path / "seed1") == scores(tmp_path / "alone") != scores(tmp_path / "seed0")

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    sweep(cells, Stop())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    elsewhere = [cell._replace(folder=tmp_path / "elsewhere" / cell.folder.name) for cell in cells]
    for cell, copy in zip(
        cells, elsewhere, strict=True
    ):  # A summary by itself says that a run has finished.
        copy.folder.mkdir(parents=True)
        shutil.copy(cell.folder / "summary.json", copy.folder)
    assert all(sweep_module.finished(cell) for cell in elsewhere)
    sweep(elsewhere, Stop())
    assert [path.name for path in (tmp_path / "elsewhere").rglob("*.*")] == ["summary.json"] * 2
    assert capsys.readouterr().out.endswith("2 of 2\n0 runs left\n")


def test_a_run_leaves_nothing_on_the_device(short, tmp_path):
    gc.collect()
    before = len(jax.live_arrays())
    gc.disable()  # It would come by chance.
    try:
        sweep(make(short, tmp_path, seeds=(0,)), Stop())
        assert len(jax.live_arrays()) == before
    finally:
        gc.enable()


class StopWithin(Stop):
    """Asks to stop in the first epoch of a run."""

    polls = 3  # Before the run, before its first epoch, before its first step.

    @property
    def signal(self):
        self.polls -= 1
        return signal.SIGTERM if self.polls < 0 else None

    @signal.setter
    def signal(self, _):
        pass


def test_a_sweep_that_is_cut_off_loses_nothing(short, tmp_path):
    cells = make(short, tmp_path, seeds=(0,))
    with pytest.raises(Stopped, match="saved at step 1 of 8"):
        sweep(cells, stop := StopWithin())
    assert not stop._holding  # A signal between two runs ends the process at once.
    sweep(cells, Stop())
    assert "resuming from the checkpoint of step 1 " in (tmp_path / "seed0" / "log.txt").read_text()
    assert scores(tmp_path / "seed0")[-1][:2] == (8, "test")


def test_a_signal_as_a_run_ends_stops_the_sweep(short, tmp_path, monkeypatch):
    original = sweep_module.train

    def train_until_a_signal(cell, kept, stop):
        original(cell, kept, stop)
        stop.signal = signal.SIGTERM

    monkeypatch.setattr(sweep_module, "train", train_until_a_signal)
    with pytest.raises(Stopped, match="between two runs"):
        sweep(cells := make(short, tmp_path), Stop())
    assert [bool(sweep_module.finished(cell)) for cell in cells] == [True, False]


def test_a_run_that_fails_does_not_stop_the_others(short, tmp_path, capsys):
    cells = make(short, tmp_path)
    cells[0].folder.mkdir()
    with lock(cells[0].folder), pytest.raises(UserError, match="1 of 2 runs failed: seed0"):
        sweep(cells, Stop())
    assert "seed0: failed: the workdir" in capsys.readouterr().out
    assert json.loads((tmp_path / "seed1" / "summary.json").read_text())["config"]["seed"] == 1


def test_a_run_that_diverged_is_tried_again_last(short, tmp_path, monkeypatch, capsys):
    def diverge(cell, kept, stop):
        raise Diverged("the run has diverged")

    monkeypatch.setattr(sweep_module, "train", diverge)
    cells = make(short, tmp_path)
    cells[0].folder.mkdir()
    (cells[0].folder / "diverged.txt").write_text("the run has diverged\n")
    with pytest.raises(UserError, match="2 of 2 runs failed: seed1, seed0"):
        sweep(cells, Stop())
    assert re.findall(r"(seed\d): begins", capsys.readouterr().out) == ["seed1", "seed0"]


def test_what_is_left_is_estimated_by_what_it_costs(short, tmp_path, monkeypatch):
    cells = make(short, tmp_path, seeds=(0, 1, 2))
    cells[2] = cells[2]._replace(config=dataclasses.replace(short, depth=50, num_epochs=4))
    done = {cells[0].folder: {"train_seconds": 100.0, "eval_seconds": 20.0}}
    monkeypatch.setattr(sweep_module, "finished", lambda cell: done.get(cell.folder, {}))
    assert time_left(cells, cells[1:]).startswith(
        "2 runs left, about 0:30:00, "
    )  # 120 s, and twice the steps of 7 times.
    assert time_left(cells, []) == "0 runs left"


def test_a_run_with_fewer_epochs_is_prolonged(short, tmp_path):
    cells = make(short, tmp_path, seeds=(0,))
    sweep(cells, Stop())
    longer = [cells[0]._replace(config=dataclasses.replace(cells[0].config, num_epochs=3))]
    assert sweep_module.finished(cells[0]) and not sweep_module.finished(longer[0])
    with pytest.raises(
        UserError, match=r"num_epochs is 2 there and 1.5 here, and can only be raised"
    ):
        sweep(
            [cells[0]._replace(config=dataclasses.replace(cells[0].config, num_epochs=1.5))], Stop()
        )


def test_a_damaged_summary_is_noticed_before_anything_begins(short, tmp_path):
    cells = make(short, tmp_path)
    cells[1].folder.mkdir()
    (cells[1].folder / "summary.json").write_text("garbage")
    with pytest.raises(UserError, match=r"seed1/summary.json can't be read .*move that run away"):
        sweep(cells, Stop())
    assert not cells[0].folder.exists()


def test_a_workdir_that_can_not_be_written_is_noticed_before_anything_begins(
    short, tmp_path, capsys
):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is not a folder that you may write to"):
        sweep(make(short, tmp_path / "file"), Stop())
    assert "begins" not in capsys.readouterr().out


def test_a_folder_of_another_run_is_noticed_before_anything_begins(short, tmp_path):
    cells = make(short, tmp_path)
    cells[1].folder.mkdir()
    other = dataclasses.asdict(dataclasses.replace(cells[1].config, momentum=0.5))
    (cells[1].folder / "config.json").write_text(json.dumps(other))
    with pytest.raises(UserError, match=r"momentum is 0.5 there and 0.9 here.*another --workdir"):
        sweep(cells, Stop())
    assert not cells[0].folder.exists()


def test_missing_data_is_noticed_before_anything_begins(tmp_path):
    cells = make(Config(data_dir="/dev/null"), tmp_path)
    with pytest.raises(UserError, match="data_dir='/dev/null' can't be read"):
        sweep(cells, Stop())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 21}, r"depth=21 is not 6n \+ 2 .* 20 and 26"),
        ({"dataset": "cifar11"}, "did you mean cifar10"),
    ],
)
def test_a_config_that_makes_no_sense_is_noticed_before_anything_begins(fields, message, tmp_path):
    with pytest.raises(UserError, match=message):
        sweep([*make(Config(), tmp_path), *make(Config(**fields), tmp_path)], Stop())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("values", [["twenty"], ["0", "0"], ["7", "07"], ["-1"], [""], []])
def test_numbers_are_numbers_each_once(values):
    with pytest.raises(UserError, match=r"--seeds=.* must be "):
        numbers("seeds", values)


@pytest.mark.parametrize("values", [["card", "card"], [], [""]])
def test_names_are_there_each_once(values):
    with pytest.raises(UserError, match=r"--recipes=.* each once"):
        each_once("recipes", values)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "resnet_cifar.sweep", *arguments],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}, timeout=120, check=False,
    )  # fmt: skip


def test_a_dry_run_shows_what_is_left(tmp_path):
    done = run("--dry_run", f"--workdir={tmp_path}", "--shard=1/2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:6] == [
        "finished",
        "ResNet20",
        "ResNet32",
        "ResNet44",
        "ResNet56",
        "ResNet110",
    ]
    assert done.stdout.endswith("\n75 runs left\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depths=21", "--dry_run"], r"depth=21 is not 6n \+ 2 .* 20 and 26"),
        (["--config.seed=3"], "--config.seed would be the same for all runs: use --seeds"),
        (
            ["--config.lerning_rate=3"],
            r"config.lerning_rate is unknown: did you mean learning_rate",
        ),
    ],
)
def test_a_mistake_gets_one_sentence(arguments, message, tmp_path):
    failed = run(*arguments, f"--workdir={tmp_path}")
    assert failed.returncode == 1
    assert re.search(message, failed.stderr), failed.stderr
    assert "Traceback" not in failed.stderr
    lines = failed.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), failed.stderr


def test_the_command_listens_to_signals(tmp_path):
    """And what the loop makes of one that comes later is shown above."""
    arguments = [
        "--recipes=card",
        "--datasets=synthetic",
        "--depths=8",
        "--seeds=0,1",
        f"--workdir={tmp_path}",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "resnet_cifar.sweep", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert process.stdout
    while "begins" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (
        143,
        "stopped by SIGTERM: there was nothing to save\n",
    ) and not out
