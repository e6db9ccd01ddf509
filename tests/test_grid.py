"""Which runs a sweep has, in which order, in which folders."""

import dataclasses
from pathlib import Path

import pytest

from resnet_cifar.config import Config
from resnet_cifar.errors import UserError
from resnet_cifar.grid import make_jobs, read_grid, take_shard
from resnet_cifar.recipes import make_config
from resnet_cifar.sweep import from_base


def test_the_most_valuable_runs_come_first():
    jobs = make_jobs(Path("runs"), {"num_epochs": [3]}, recipes=["card", "strong"], depths=[56, 20])
    order = [(job.recipe, job.config.dataset, job.config.depth, job.config.seed) for job in jobs]
    waves = [
        ("cifar10", (0, 1, 2)),
        ("cifar100", (0, 1, 2)),
        ("cifar10", (3, 4)),
        ("cifar100", (3, 4)),
    ]
    assert order == [
        (recipe, dataset, depth, seed)
        for recipe in ("card", "strong")
        for dataset, seeds in waves
        for depth in (56, 20)
        for seed in seeds
    ]
    assert jobs[0].config == make_config("card", depth=56, num_epochs=3)
    assert jobs[-1].config == make_config(
        "strong", depth=20, dataset="cifar100", seed=4, num_epochs=3
    )
    assert [str(jobs[at].folder) for at in (0, -1)] == [
        "runs/resnet56-cifar10-num_epochs=3-seed0",
        "runs/resnet20-cifar100-strong-num_epochs=3-seed4",
    ]


def test_shards_split_networks_and_keep_their_seeds():
    jobs = make_jobs(
        Path("runs"),
        {},
        recipes=["card"],
        datasets=["cifar10"],
        depths=[56, 20, 8],
        seeds=[0, 1, 2, 3, 4],
    )
    shares = [take_shard(jobs, f"{index}/2") for index in (1, 2)]
    assert [[(job.config.depth, job.config.seed) for job in share] for share in shares] == [
        [(56, 0), (56, 1), (56, 2), (8, 0), (8, 1), (8, 2), (20, 3), (20, 4)],
        [(20, 0), (20, 1), (20, 2), (56, 3), (56, 4), (8, 3), (8, 4)],
    ]


@pytest.mark.parametrize("shard", ["0/8", "9/8", "8", "a/b", "1/2/3", ""])
def test_a_malformed_shard_is_refused(shard):
    with pytest.raises(UserError, match="from 1/8 to 8/8"):
        take_shard([], shard)


def test_every_combination_has_a_folder_of_its_own():
    grid = {"learning_rate": [0.1, 0.2], "nesterov": [False, True], "data_dir": ["~/data"]}
    jobs = make_jobs("runs", grid, recipes=["card"], datasets=["cifar10"], depths=[20], seeds=[7])
    assert [job.folder.name for job in jobs] == [
        f"resnet20-cifar10-nesterov={nesterov}-learning_rate={rate}-seed7"
        for nesterov in (False, True)
        for rate in (0.1, 0.2)
    ]
    assert jobs[3].config == make_config(
        "card", depth=20, seed=7, nesterov=True, learning_rate=0.2, data_dir="~/data"
    )


def test_long_names_of_folders_stay_distinct():
    grid = {"train_split": ["train[:" + "9" * n + "]" for n in (300, 301)]}
    names = {job.folder.name for job in make_jobs("runs", grid, recipes=["card"])}
    assert len(names) == len(make_jobs("runs", grid, recipes=["card"]))
    assert max(len(name) for name in names) < 255


def test_any_config_is_a_base():
    base = Config(depth=8, momentum=0.5)
    jobs = make_jobs(
        "runs",
        recipes=["mine"],
        datasets=["cifar10"],
        depths=[14],
        seeds=[3],
        make=lambda *a, **k: from_base(base, *a, **k),
    )
    assert [job.config for job in jobs] == [dataclasses.replace(base, depth=14, seed=3)]
    assert jobs[0].folder == Path("runs/resnet14-cifar10-mine-seed3")


@pytest.mark.parametrize(
    ("arguments", "grid"),
    [
        (["--config.learning_rate=0.1,0.2"], {"learning_rate": [0.1, 0.2]}),
        (["--config.num_epochs", "3,4"], {"num_epochs": [3.0, 4.0]}),
        (["--config.decay_epochs=80,120"], {"decay_epochs": [(80, 120)]}),
        (["--config.decay_epochs=(80,120),(40,60)"], {"decay_epochs": [(80, 120), (40, 60)]}),
        (["--config.decay_epochs=()"], {"decay_epochs": [()]}),
        (["--config.nesterov=true,false"], {"nesterov": [True, False]}),
        (["--noconfig.nesterov", "--config.width=8"], {"nesterov": [False], "width": [8]}),
        (["--config.train_split=train[:90%]"], {"train_split": ["train[:90%]"]}),
    ],
)
def test_a_flag_takes_one_value_or_several(arguments, grid):
    assert read_grid(arguments, []) == grid


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.seed=1,2", "--config.seed belongs to the runs: use --seeds"),
        ("--config.learning_rate=0.1,0.10", "repeats a value"),
        ("--config.learning_rate=0.1,", "could not convert"),
        ("--config.lerning_rate=1,2", "did you mean --config.learning_rate"),
    ],
)
def test_a_wrong_list_is_refused(argument, message):
    with pytest.raises(UserError, match=message):
        read_grid([argument], [])
