"""A sweep trains every cell once, in order of value, and goes on where it stopped."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_cifar import sweep as sweep_module
from resnet_cifar.config import Config, make_config
from resnet_cifar.errors import UserError
from resnet_cifar.runlog import read_rows
from resnet_cifar.stop import Stop, Stopped
from resnet_cifar.sweep import Cell, make_cells, numbers, sweep, take_share
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
    return [Cell("card", dataclasses.replace(config, seed=seed), folder / f"seed{seed}") for seed in seeds]


def test_the_most_valuable_runs_come_first():
    cells = make_cells(
        Path("runs"), {"num_epochs": 3}, recipes=["card", "strong"], datasets=["cifar10", "cifar100"], depths=[56, 20],
        seeds=[0, 1, 2, 3, 4],
    )  # fmt: skip
    order = [(cell.recipe, cell.config.dataset, cell.config.depth, cell.config.seed) for cell in cells]
    waves = [("cifar10", (0, 1, 2)), ("cifar100", (0, 1, 2)), ("cifar10", (3, 4)), ("cifar100", (3, 4))]
    assert order == [
        (recipe, dataset, depth, seed)
        for recipe in ("card", "strong") for dataset, seeds in waves for depth in (56, 20) for seed in seeds
    ]  # fmt: skip
    assert cells[0].config == make_config("card", depth=56, num_epochs=3)
    assert cells[-1].config == make_config("strong", depth=20, dataset="cifar100", seed=4, num_epochs=3)
    assert [str(cells[at].folder) for at in (0, -1)] == [
        "runs/resnet56-cifar10-seed0", "runs/resnet20-cifar100-strong-seed4",
    ]  # fmt: skip


def test_shards_share_the_runs(tmp_path):
    cells = make(Config(), tmp_path, seeds=range(10))
    shares = [take_share(cells, f"{index}/3") for index in (1, 2, 3)]
    assert sorted(cell.config.seed for share in shares for cell in share) == list(range(10))
    assert [len(share) for share in shares] == [4, 3, 3]


@pytest.mark.parametrize("shard", ["0/8", "9/8", "8", "a/b", "1/2/3", ""])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(UserError, match="from 1/8 to 8/8"):
        take_share([], shard)


def test_a_sweep_compiles_once_and_trains_each_run_as_a_run_by_itself(short, tmp_path, capsys, monkeypatch):
    compiled = []
    original = sweep_module.Programs
    monkeypatch.setattr(sweep_module, "Programs", lambda config: compiled.append(config) or original(config))
    cells = make(short, tmp_path)
    sweep(cells, Stop())
    out = capsys.readouterr().out
    assert len(compiled) == 1
    assert re.search(r"card +synthetic +0 of 2\n2 runs left\nseed0: begins, 1 of 2", out)
    assert re.search(r"seed0: [\d.]+% after \d+ s of training; 1 run left, about 0:0", out)
    assert "epoch 2  step 8  test" in (tmp_path / "seed1" / "log.txt").read_text() and "epoch" not in out
    train_and_evaluate(cells[1].config, tmp_path / "alone")
    assert scores(tmp_path / "seed1") == scores(tmp_path / "alone") != scores(tmp_path / "seed0")

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    sweep(cells, Stop())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert capsys.readouterr().out.endswith("2 of 2\n0 runs left\n")


class StopWithin(Stop):
    """Asks to stop in the first epoch of a run."""

    polls = 2

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


def test_a_run_that_fails_does_not_stop_the_others(short, tmp_path, capsys):
    cells = make(short, tmp_path)
    cells[0].folder.mkdir()
    with lock(cells[0].folder), pytest.raises(UserError, match="1 of 2 runs failed: seed0"):
        sweep(cells, Stop())
    assert "seed0: failed: the workdir" in capsys.readouterr().out
    assert json.loads((tmp_path / "seed1" / "summary.json").read_text())["config"]["seed"] == 1


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
    [({"depth": 21}, r"depth=21 is not 6n \+ 2 .* 20 and 26"), ({"dataset": "cifar11"}, "did you mean cifar10")],
)
def test_a_config_that_makes_no_sense_is_noticed_before_anything_begins(fields, message, tmp_path):
    with pytest.raises(UserError, match=message):
        sweep([*make(Config(), tmp_path), *make(Config(**fields), tmp_path)], Stop())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("values", [["twenty"], ["0", "0"], ["-1"], [""], []])
def test_numbers_are_numbers_each_once(values):
    with pytest.raises(UserError, match=r"--seeds=.* must be numbers, each once"):
        numbers("seeds", values)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "resnet_cifar.sweep", *arguments],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"}, timeout=120, check=False,
    )  # fmt: skip


def test_a_dry_run_shows_what_is_left(tmp_path):
    done = run("--dry_run", f"--workdir={tmp_path}", "--shard=1/2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split() == [
        "finished",
        "ResNet56",
        "ResNet20",
        "ResNet110",
        "ResNet32",
        "ResNet44",
    ]
    assert done.stdout.endswith("\n75 runs left\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipes=crad"], "recipe='crad' is unknown: did you mean card"),
        (["--config.seed=3"], "--config.seed would be the same for all runs: use --seeds"),
        (["--config.lerning_rate=3"], r"config.lerning_rate is unknown: did you mean learning_rate"),
        (["cifar10"], "unexpected argument 'cifar10'"),
    ],
)
def test_a_mistake_gets_one_sentence(arguments, message, tmp_path):
    failed = run(*arguments, f"--workdir={tmp_path}")
    assert failed.returncode == 1
    assert re.search(message, failed.stderr), failed.stderr
    assert "Traceback" not in failed.stderr
    lines = failed.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), failed.stderr
