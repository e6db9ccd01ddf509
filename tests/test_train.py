"""A run leaves what it promises, goes on where it stopped, and does not depend on the number of devices."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from resnet_cifar.checkpoint import fields
from resnet_cifar.errors import UserError
from resnet_cifar.run import Run
from resnet_cifar.runlog import read_rows
from resnet_cifar.train import dry_run, train_and_evaluate


def untimed(rows):
    return [{k: v for k, v in row.items() if "seconds" not in k and "per_second" not in k} for row in rows]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a config, the folder of its finished run, and the last state."""
    from resnet_cifar.config import Config

    config = Config(
        depth=8,
        dataset="synthetic",
        train_split="train[:130]",
        batch_size=32,
        num_epochs=3.5,
        learning_rate=0.1,
        warmup_epochs=1,
        decay_epochs=(2, 3),
        checkpoint_every_epochs=1,
    )
    folder = tmp_path_factory.mktemp("run") / "with a space"
    return config, folder, train_and_evaluate(config, folder)


def test_a_run_leaves_its_files(finished):
    _, folder, _ = finished
    names = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
    assert names == {"config.json", "metrics.jsonl", "summary.json", "curves.png", "checkpoints"}
    assert len(list(folder.glob("*tfevents*"))) == 1
    with Image.open(folder / "curves.png") as picture:
        assert picture.width > 1000


def test_there_is_a_row_for_every_epoch_and_every_evaluation(finished):
    _, folder, _ = finished
    rows = read_rows(folder)
    expected = [(step, split) for step in (4, 8, 12, 14) for split in ("train", "test")]
    assert [(row["step"], row["split"]) for row in rows] == expected
    assert [row["epoch"] for row in rows[::2]] == [1, 2, 3, 3.5]
    np.testing.assert_allclose([row["learning_rate"] for row in rows[::2]], [0.075, 0.1, 0.01, 0.001], rtol=1e-5)


def test_the_summary_says_it_all(finished):
    config, folder, state = finished
    summary = json.loads((folder / "summary.json").read_text())
    last = read_rows(folder)[-1]
    assert summary["test_accuracy"] == last["accuracy"] and summary["test_loss"] == last["loss"]
    assert summary["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(state.params)) == 75_290
    assert summary["steps"] == int(state.step) == 14
    assert summary["epochs"]["test"]["epoch"] == [1, 2, 3, 3.5]
    assert summary["train_seconds"] > 0 and summary["compile_seconds"] > 0
    np.testing.assert_allclose(summary["images_per_second"], 14 * 32 / summary["train_seconds"])
    assert summary["config"]["depth"] == config.depth and summary["versions"]["jax"] == jax.__version__
    assert "CPU" in summary["device"]


def test_test_images_are_scored_whatever_the_batch_size(finished):
    """2,000 images in batches of 32 leave a tail of 16; `mean_metrics` asserts the total."""
    _, folder, _ = finished
    accuracy = read_rows(folder)[-1]["accuracy"]
    assert abs(accuracy * 2000 - round(accuracy * 2000)) < 1e-6


def test_resume_equals_uninterrupted_run(finished, tmp_path, monkeypatch):
    config, folder, state = finished
    original, calls = Run.train_epoch, []

    def stop_in_the_third_epoch(self, *arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return original(self, *arguments)

    monkeypatch.setattr(Run, "train_epoch", stop_in_the_third_epoch)
    with pytest.raises(RuntimeError, match="power cut"):
        train_and_evaluate(config, tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "summary.json").exists()
    with (tmp_path / "metrics.jsonl").open("a") as file:  # What a run leaves that dies between a row and a save.
        file.write('{"step": 12, "epoch": 3.0, "split": "train", "loss": 1.0, "accuracy": 0.1}\n{"step": 12, "ep')

    resumed = train_and_evaluate(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, fields(resumed), fields(state))
    assert untimed(read_rows(tmp_path)) == untimed(read_rows(folder))


def test_a_finished_run_started_again_changes_nothing(finished, tmp_path, capsys):
    config, folder, state = finished
    shutil.copytree(folder, tmp_path / "copy")
    again = train_and_evaluate(config, tmp_path / "copy")
    jax.tree.map(np.testing.assert_array_equal, fields(again), fields(state))
    assert (tmp_path / "copy" / "metrics.jsonl").read_text() == (folder / "metrics.jsonl").read_text()
    assert "resuming from the checkpoint of step 14" in capsys.readouterr().out


def test_another_config_in_the_same_workdir_is_refused(finished):
    config, folder, _ = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"learning_rate is 0.1 there and 0.2 here.*another --workdir"):
        train_and_evaluate(dataclasses.replace(config, learning_rate=0.2), folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_folder_with_a_run_but_no_config_is_refused(tiny, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"without its config.json"):
        train_and_evaluate(tiny, tmp_path)


def test_a_workdir_that_cannot_be_written_is_refused(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't be (read|written)"):
        train_and_evaluate(tiny, tmp_path / "file" / "run")


def test_validation_is_watched_and_the_test_set_scored_once_at_the_end(tiny, tmp_path):
    config = dataclasses.replace(tiny, validation_split="train[130:200]", eval_every_epochs=2)
    train_and_evaluate(config, tmp_path)
    rows = [(row["epoch"], row["split"]) for row in read_rows(tmp_path) if row["split"] != "train"]
    assert rows == [(2, "validation"), (4, "validation"), (4, "test")]
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} >= {12, 16}


def test_four_devices_train_like_one(tiny, monkeypatch):
    """BatchNorm sees the whole batch, however it is split."""
    four = Run(tiny)
    assert len(four.images["train"].labels.devices()) == 4
    state, row = four.train_epoch(four.init_state(), 0, 2, lambda steps: None)
    score = four.evaluate(state, "test")
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: first)
    one = Run(tiny)
    assert len(one.images["train"].labels.devices()) == 1
    alone, alone_row = one.train_epoch(one.init_state(), 0, 2, lambda steps: None)
    np.testing.assert_allclose(row["loss"], alone_row["loss"], rtol=1e-4)
    np.testing.assert_allclose(score["loss"], one.evaluate(alone, "test")["loss"], rtol=1e-3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), state.params, alone.params)


def test_a_batch_that_the_devices_cannot_share_is_refused(tiny):
    with pytest.raises(UserError, match=r"config.batch_size=30 must be a multiple of the 4 devices"):
        Run(dataclasses.replace(tiny, batch_size=30))


def test_dry_run_tells_the_costs_and_writes_nothing(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dry_run(tiny)
    out = capsys.readouterr().out
    for part in ("75,290 parameters", "16 of 32 images, 4 an epoch", "until step 8 (epoch 2)", "GFLOP a step", "MB"):
        assert part in out
    assert not list(tmp_path.iterdir())
