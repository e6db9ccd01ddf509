"""Epochs become whole steps, and training never sees what it is scored on."""

import dataclasses

import pytest

from resnet_cifar.config import Config
from resnet_cifar.errors import UserError
from resnet_cifar.plan import blank_splits, load_splits, make_plan
from resnet_cifar.recipes import make_config


def steps_of(config):
    plan = make_plan(config)
    return plan.steps_per_epoch, plan.num_steps, plan.warmup_steps, plan.decay_steps


def test_the_card_makes_7680_steps():
    assert steps_of(make_config("card", depth=56)) == (48, 7_680, 240, (3_840, 5_760))


@pytest.mark.parametrize(("depth", "warmup_steps"), [(56, 0), (110, 400)])
def test_the_paper_makes_64000_steps(depth, warmup_steps):
    config = make_config("paper", depth=depth)
    assert steps_of(config) == (351, 64_000, warmup_steps, (32_000, 48_000))
    ranges = make_plan(config).ranges
    assert ranges == {
        "train": range(45_000),
        "validation": range(45_000, 50_000),
        "test": range(10_000),
    }


@pytest.mark.parametrize(
    ("recipe", "steps"),
    [
        ("strong", (195, 39_000, 975, ())),
        ("best", (195, 58_500, 975, ())),
        ("fast", (97, 3_880, 485, ())),
    ],
)
def test_other_recipes_in_steps(recipe, steps):
    assert steps_of(make_config(recipe, depth=56)) == steps


def test_the_watched_split_is_validation_if_there_is_one(tiny):
    assert make_plan(tiny).watched == "test"
    config = dataclasses.replace(tiny, validation_split="train[130:200]")
    assert make_plan(config).watched == "validation"


def test_averaged_weights_are_scored_just_before_the_others(tiny):
    config = dataclasses.replace(tiny, validation_split="train[130:200]", ema_decay=0.9)
    plan = make_plan(config)
    assert plan.splits_due(1, 4) == ["validation_ema", "validation"]
    assert plan.splits_due(0, 16) == ["validation_ema", "validation", "test_ema", "test"]
    assert plan.scored == ["train", "test", "validation", "test_ema", "validation_ema"]
    assert (plan.size("validation_ema"), plan.size("test")) == (70, 100)


def test_epochs_begin_and_end(tiny):
    plan = make_plan(dataclasses.replace(tiny, num_epochs=3.5))
    assert [plan.epoch_end(step) for step in (0, 3, 4, 11, 12, 13, 14)] == [4, 4, 8, 12, 14, 14, 14]
    assert [plan.epoch_start(step) for step in (0, 3, 4, 13)] == [0, 0, 4, 12]


def test_what_is_due_when(tiny):
    plan = make_plan(dataclasses.replace(tiny, num_epochs=3.5))
    due = {every: [s for s in range(15) if plan.is_due(every, s)] for every in (0, 1, 2)}
    assert due == {0: [14], 1: [4, 8, 12, 14], 2: [8, 14]}
    config = dataclasses.replace(tiny, validation_split="train[130:200]")
    splits = [make_plan(config).splits_due(2, step) for step in (0, 4, 8, 16)]
    assert splits == [[], [], ["validation"], ["validation", "test"]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_split": "test"}, "config.train_split='test' must be part of train"),
        ({"validation_split": "train[100:]"}, "overlap"),
        ({"validation_split": "test"}, "config.validation_split='test' must be part of train"),
        ({"batch_size": 131}, "config.batch_size=131 is larger than the 130 training images"),
        ({"num_epochs": 3.01}, r"epochs \(1, 2, 3, 3.01\) round to steps \[4, 8, 12, 12\]"),
    ],
)
def test_what_does_not_fit_is_an_error(tiny, fields, message):
    with pytest.raises(UserError, match=message):
        make_plan(dataclasses.replace(tiny, **fields))


def test_splits_are_parts_of_the_whole(tiny):
    config = dataclasses.replace(tiny, validation_split="train[130:200]")
    plan = make_plan(config)
    whole = load_splits(dataclasses.replace(tiny, train_split="train"), make_plan(
        dataclasses.replace(tiny, train_split="train")))  # fmt: skip
    parts = load_splits(config, plan)
    assert (parts["train"].images == whole["train"].images[:130]).all()
    assert (parts["validation"].labels == whole["train"].labels[130:200]).all()
    assert len(parts["test"].labels) == 100


def test_blank_splits_have_the_sizes_of_the_real_ones():
    blank = blank_splits(make_plan(Config()))
    assert {name: len(split.labels) for name, split in blank.items()} == {
        "train": 50_000,
        "test": 10_000,
    }
