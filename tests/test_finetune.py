"""A run may start from trained weights, and is a run like any other afterwards."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers import StopAfter, assert_same, make_pretrained, untimed

from resnet_cifar.checkpoint.format import read
from resnet_cifar.data import find_dataset, synthetic
from resnet_cifar.errors import UserError
from resnet_cifar.finetune import initial_state, read_start, start_lines
from resnet_cifar.log import read_rows
from resnet_cifar.plan import blank_splits
from resnet_cifar.pretrained import load
from resnet_cifar.programs import Programs
from resnet_cifar.state import array_fields
from resnet_cifar.stop import Stopped
from resnet_cifar.train import train_and_evaluate
from resnet_cifar.trainer import Trainer
from resnet_cifar.variables import stack_blocks
from resnet_cifar.weights import Preprocessing, save_weights

SHAPES = tuple(synthetic.class_names(10))
FRUIT = ("fig", "kiwi", "lime")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return a function that writes untrained weights of some classes and returns their path."""
    folder = tmp_path_factory.mktemp("weights")

    def write(names=SHAPES):
        path = folder / f"{names[0]}.safetensors"
        save_weights(path, make_pretrained(names, width=4))
        return str(path)

    return write


@pytest.fixture(scope="module")
def config(tiny, weights):
    return dataclasses.replace(tiny, num_epochs=3.5, eval_every_epochs=0, init_from=weights())


@pytest.fixture(scope="module")
def programs(config):
    return Programs(config)


@pytest.fixture(scope="module")
def finished(config, programs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, train_and_evaluate(config, folder, programs=programs)


def start_of(config, **fields):
    trainer = Trainer(dataclasses.replace(config, **fields), load=blank_splits)
    start = read_start(trainer)
    return trainer, start, initial_state(trainer, start)


def test_the_same_classes_keep_the_head(config, weights):
    _, start, state = start_of(config)
    variables = load(config.init_from).variables
    assert_same(state.params, variables["params"])
    assert_same(state.batch_stats, variables["batch_stats"])
    assert not start.new_head and int(state.step) == 0


def test_averages_begin_at_the_trained_weights(config):
    _, _, state = start_of(config, ema_decay=0.9)
    assert_same(state.ema, load(config.init_from).variables)


@pytest.mark.parametrize("names", [FRUIT, tuple("abcdefghij")])
def test_other_classes_get_a_new_head(config, weights, names):
    trainer, start, state = start_of(config, init_from=weights(names))
    trained = load(trainer.config.init_from).variables["params"]
    fresh = trainer.init_state().params
    assert_same(state.params, trained | {"head": fresh["head"]})
    assert start.new_head
    assert "new head for 10 classes" in start_lines(trainer, start)[0]


def test_weights_start_runs_with_and_without_remat(config, tmp_path):
    plain = make_pretrained(SHAPES, depth=20, width=4)
    variables, model = stack_blocks(plain.variables), plain.model.clone(remat=True)
    remat = dataclasses.replace(plain, model=model, variables=variables)
    for there, here, expected in ((plain, True, variables), (remat, False, plain.variables)):
        save_weights(tmp_path / "x.safetensors", there)
        fields = {"init_from": str(tmp_path / "x.safetensors"), "depth": 20, "remat": here}
        _, _, state = start_of(config, **fields)
        assert_same({"params": state.params, "batch_stats": state.batch_stats}, expected)


def test_classes_without_names_match_any(config, weights):
    _, start, _ = start_of(config, init_from=weights(tuple("0123456789")))
    assert not start.new_head


def test_other_statistics_are_said(config):
    trainer, start, _ = start_of(config)
    assert "normalizes by its own images" in start_lines(trainer, start)[1]
    facts = find_dataset(config.dataset)
    own = Preprocessing(facts.mean, facts.std)
    same = start._replace(trained=dataclasses.replace(start.trained, preprocessing=own))
    assert len(start_lines(trainer, same)) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 14}, "a network of depth 8, not 14 as in this config: give --config.depth=8"),
        (
            {"width": 8, "shortcut": "B"},
            "width 4, not 8, shortcut A, not B as .* give --config.width=4 --config.shortcut=A",
        ),
        ({"init_from": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_weights_that_do_not_fit_leave_no_workdir(config, fields, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train_and_evaluate(dataclasses.replace(config, **fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_checkpoint_and_summary_say_where_the_run_began(config, finished):
    folder, _ = finished
    summary = json.loads((folder / "summary.json").read_text())
    metadata = read(folder / "checkpoints" / "14").metadata
    assert metadata["init_from"] == summary["init_from"]
    assert metadata["init_from"]["path"] == config.init_from
    assert len(metadata["init_from"]["sha256"]) == 64 and not metadata["init_from"]["new_head"]


def test_the_name_of_published_weights_is_kept(config):
    trainer = Trainer(dataclasses.replace(config, init_from="resnet20-cifar10"), load=blank_splits)
    start = read_start(trainer, lambda name: load(config.init_from))
    assert start.record["path"] == "resnet20-cifar10"


def test_training_begins_at_the_weights(config, finished, programs, tmp_path):
    """The same run from other weights ends elsewhere."""
    _, state = finished
    other = dataclasses.replace(config, init_from="")
    end = train_and_evaluate(other, tmp_path, programs=programs)
    assert (end.params["stem_conv"]["kernel"] != state.params["stem_conv"]["kernel"]).any()
    assert "init_from" not in json.loads((tmp_path / "summary.json").read_text())


def test_a_resumed_run_needs_no_weights_and_is_the_same(config, finished, programs, tmp_path):
    folder, state = finished
    moved = tmp_path / "moved.safetensors"
    shutil.copy(config.init_from, moved)
    own = dataclasses.replace(config, init_from=str(moved))
    with pytest.raises(Stopped, match="saved at step 1 of 14"):
        train_and_evaluate(own, tmp_path / "run", stop=StopAfter(2), programs=programs)
    moved.unlink()
    resumed = train_and_evaluate(own, tmp_path / "run", programs=programs)
    assert_same(array_fields(resumed), array_fields(state))
    assert untimed(read_rows(tmp_path / "run")) == untimed(read_rows(folder))
    records = [
        json.loads((path / "summary.json").read_text())["init_from"]
        for path in (tmp_path / "run", folder)
    ]
    assert records[0] == {**records[1], "path": str(moved)}


def test_a_run_on_other_images_is_not_resumed(config, tmp_path):
    path = tmp_path / "own.npz"
    images, labels = synthetic.make_images(10, "train", 0)
    arrays = {"x_train": images, "y_train": labels, "x_test": images[::-1], "y_test": labels[::-1]}
    np.savez(path, **arrays)
    own = dataclasses.replace(config, dataset=str(path))
    programs = Programs(own)
    with pytest.raises(Stopped):
        train_and_evaluate(own, tmp_path / "run", stop=StopAfter(2), programs=programs)
    np.savez(path, **{**arrays, "x_test": images})
    with pytest.raises(UserError, match="the images of this run have changed"):
        train_and_evaluate(own, tmp_path / "run", programs=programs)
