"""A run leaves its files, resumes where it stopped, and is the same run on every path."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest
from helpers import StopAfter, assert_same, untimed
from PIL import Image

from resnet_cifar.devices import Devices
from resnet_cifar.errors import UserError
from resnet_cifar.log import Log, read_rows
from resnet_cifar.pretrained import load
from resnet_cifar.programs import Programs
from resnet_cifar.state import array_fields
from resnet_cifar.stop import Stop, Stopped
from resnet_cifar.train import dry_run, run, train_and_evaluate
from resnet_cifar.trainer import Trainer


@pytest.fixture(scope="module")
def compiled(tiny):
    return Programs(dataclasses.replace(tiny, num_epochs=3.5))


@pytest.fixture(scope="module")
def finished(compiled, tmp_path_factory):
    """Return a config, the folder of its finished run, and the last state."""
    folder = tmp_path_factory.mktemp("run") / "with a space"
    return compiled.config, folder, train_and_evaluate(compiled.config, folder, programs=compiled)


@pytest.fixture(scope="module")
def one_device(tiny):
    """Return programs for one device, as on one accelerator."""
    config = dataclasses.replace(tiny, num_epochs=3, decay_epochs=(2,), checkpoint_every_epochs=0)
    return Programs(config, Devices(jax.devices()[:1]))


def copy_unfinished(folder, tmp_path):
    """Copy a finished run as if it had been killed before its summary."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "summary.json").unlink()


def test_a_run_leaves_its_files(finished):
    _, folder, _ = finished
    names = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
    files = {"config.json", "metrics.jsonl", "summary.json", "curves.png", "checkpoints", "lock"}
    assert names == files
    (events,) = folder.glob("*tfevents*")
    assert b"test/accuracy" in events.read_bytes()
    assert json.loads((folder / "config.json").read_text())["batch_size"] == 32
    with Image.open(folder / "curves.png") as picture:
        assert picture.width > 1000


def test_every_epoch_and_evaluation_has_a_row(finished):
    _, folder, _ = finished
    rows = read_rows(folder)
    expected = [(step, split) for step in (4, 8, 12, 14) for split in ("train", "test")]
    assert [(row["step"], row["split"]) for row in rows] == expected
    assert [row["epoch"] for row in rows[::2]] == [1, 2, 3, 3.5]
    rates = [row["learning_rate"] for row in rows[::2]]
    np.testing.assert_allclose(rates, [0.075, 0.1, 0.01, 0.001], rtol=1e-5)


def test_the_summary_has_the_last_row_and_the_provenance(finished):
    config, folder, state = finished
    summary = json.loads((folder / "summary.json").read_text())
    last = read_rows(folder)[-1]
    assert summary["test_accuracy"] == last["accuracy"] and summary["test_loss"] == last["loss"]
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert summary["parameters"] == size == 5_006
    assert summary["steps"] == int(state.step) == 14
    assert summary["epochs"]["test"]["epoch"] == [1, 2, 3, 3.5]
    assert summary["train_seconds"] > 0 and summary["compile_seconds"] > 0
    np.testing.assert_allclose(summary["images_per_second"], 14 * 32 / summary["train_seconds"])
    assert summary["config"]["depth"] == config.depth
    assert summary["versions"]["jax"] == jax.__version__
    assert "CPU" in summary["device"] and summary["dtype"] in ("float32", "bfloat16")


def test_a_run_with_the_programs_of_another_seed_is_the_same_run(finished, tmp_path):
    config, folder, state = finished
    programs = Programs(other := dataclasses.replace(config, seed=5))
    train_and_evaluate(other, tmp_path / "other", programs=programs)
    shared = train_and_evaluate(config, tmp_path / "shared", programs=programs)
    assert_same(array_fields(shared), array_fields(state))
    assert untimed(read_rows(tmp_path / "shared")) == untimed(read_rows(folder))
    summaries = [
        json.loads((tmp_path / n / "summary.json").read_text()) for n in ("other", "shared")
    ]
    assert summaries[0]["compile_seconds"] > 0 == summaries[1]["compile_seconds"]


def test_the_next_epoch_is_enqueued_before_results_are_read(one_device, tmp_path, monkeypatch):
    """Two dispatches make an epoch, and two an evaluation."""
    events = []

    class Noted(Trainer):
        def train(self, state, step, rows):
            events.append(f"enqueue train {self.plan.epoch(step):g}")
            return super().train(state, step, rows)

        def evaluate(self, state, step, split, rows):
            events.append(f"enqueue {split} {self.plan.epoch(step):g}")
            return super().evaluate(state, step, split, rows)

    write = Log.write
    monkeypatch.setattr(
        Log,
        "write",
        lambda self, row: (events.append(f"row {row['split']} {row['epoch']:g}"), write(self, row)),
    )
    run(Noted(one_device.config, programs=one_device, steps_per_dispatch=2), tmp_path, Stop())
    expected = ["enqueue train 0", "enqueue train 0.5"]
    for epoch in (1, 2, 3):
        expected += [f"enqueue test {epoch}", f"row train {epoch}", f"enqueue test {epoch}"]
        if epoch < 3:
            expected += [f"enqueue train {epoch}", f"row test {epoch}"]
            expected += [f"enqueue train {epoch + 0.5}"]
    assert events == [*expected, "row test 3"]


def test_a_killed_run_resumes_to_the_same_end(finished, compiled, tmp_path):
    config, folder, state = finished

    class PowerCut(Exception):
        pass

    class Dying(Trainer):
        def epoch_batches(self, step):
            if step == 8:
                raise PowerCut
            return super().epoch_batches(step)

    with pytest.raises(PowerCut):
        run(Dying(config, programs=compiled), tmp_path, Stop())
    assert not (tmp_path / "summary.json").exists()
    with (tmp_path / "metrics.jsonl").open("a") as file:  # Killed between a row and a save.
        file.write('{"step": 12, "epoch": 3.0, "split": "train", "loss": 1.0}\n{"step": 12, "ep')

    resumed = train_and_evaluate(config, tmp_path)
    assert_same(array_fields(resumed), array_fields(state))
    assert untimed(read_rows(tmp_path)) == untimed(read_rows(folder))


# An epoch is polled once in the loop and once for each of 4 steps, an evaluation 4 times.
@pytest.mark.parametrize(("polls", "saved"), [(7, 4), (10, 4), (12, 6)])
def test_a_stopped_run_resumes_at_that_very_step(
    finished, compiled, tmp_path, polls, saved, capsys
):
    config, folder, state = finished
    with pytest.raises(Stopped, match=rf"saved at step {saved} of 14"):
        train_and_evaluate(config, tmp_path, stop=StopAfter(polls), programs=compiled)
    resumed = train_and_evaluate(config, tmp_path, programs=compiled)
    assert f"resuming from the checkpoint of step {saved} " in capsys.readouterr().out
    assert_same(array_fields(resumed), array_fields(state))
    assert untimed(read_rows(tmp_path)) == untimed(read_rows(folder))


def test_a_run_with_long_dispatches_stops_between_them(one_device, tmp_path):
    """With an evaluation and the next epoch in flight."""

    def train(folder, stop):
        trainer = Trainer(one_device.config, programs=one_device, steps_per_dispatch=2)
        return run(trainer, folder, stop)

    state = train(tmp_path / "whole", Stop())
    for polls, saved in [(6, 4), (7, 6)]:
        folder = tmp_path / f"stopped {polls}"
        with pytest.raises(Stopped, match=f"saved at step {saved} of 12"):
            train(folder, StopAfter(polls))
        assert_same(array_fields(train(folder, Stop())), array_fields(state))
        assert untimed(read_rows(folder)) == untimed(read_rows(tmp_path / "whole"))


def test_a_stop_before_the_last_evaluation_is_not_the_end(finished, compiled, tmp_path):
    config, folder, _ = finished
    copy_unfinished(folder, tmp_path)
    rows = read_rows(tmp_path)[:-1]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(Stopped, match="saved at step 14 of 14"):
        train_and_evaluate(config, tmp_path, stop=StopAfter(0), programs=compiled)
    assert not (tmp_path / "summary.json").exists()
    train_and_evaluate(config, tmp_path, programs=compiled)
    assert untimed(read_rows(tmp_path)) == untimed(read_rows(folder))


def test_a_stop_after_the_last_evaluation_still_finishes(finished, compiled, tmp_path):
    config, folder, _ = finished
    copy_unfinished(folder, tmp_path)
    train_and_evaluate(config, tmp_path, stop=StopAfter(0), programs=compiled)
    assert (tmp_path / "summary.json").exists()


def test_a_finished_run_started_again_changes_nothing(finished, compiled, tmp_path, capsys):
    config, folder, state = finished
    shutil.copytree(folder, tmp_path / "copy")
    again = train_and_evaluate(config, tmp_path / "copy", programs=compiled)
    assert_same(array_fields(again), array_fields(state))
    files = [
        sorted(p.relative_to(top) for p in top.iterdir()) for top in (folder, tmp_path / "copy")
    ]
    assert files[0] == files[1]
    for name in ("metrics.jsonl", "summary.json"):
        assert (tmp_path / "copy" / name).read_text() == (folder / name).read_text()
    assert "already finished" in capsys.readouterr().out


@pytest.fixture(scope="module")
def four_epochs(tiny):
    return Programs(tiny)


def test_an_extended_run_is_the_longer_run(finished, tiny, four_epochs, tmp_path):
    """Half an epoch, its sums and its rows included."""
    config, folder, _ = finished
    shutil.copytree(folder, tmp_path / "extended")
    state = train_and_evaluate(tiny, tmp_path / "extended", programs=four_epochs)
    whole = train_and_evaluate(tiny, tmp_path / "whole", programs=four_epochs)
    assert_same(array_fields(state), array_fields(whole))
    folders = (tmp_path / "extended", tmp_path / "whole")
    assert untimed(read_rows(folders[0])) == untimed(read_rows(folders[1]))
    configs = [(folder / "config.json").read_text() for folder in folders]
    assert configs[0] == configs[1]
    with pytest.raises(UserError, match=r"num_epochs is 4\.0 there and 3\.5 here, and can only be"):
        train_and_evaluate(config, tmp_path / "extended")


def test_the_cadence_and_the_data_folder_may_change(finished, tmp_path):
    config, folder, state = finished
    copy_unfinished(folder, tmp_path)
    changed = dataclasses.replace(config, eval_every_epochs=2, data_dir="elsewhere")
    assert_same(train_and_evaluate(changed, tmp_path).params, state.params)
    assert untimed(read_rows(tmp_path)) == untimed(read_rows(folder))


def test_another_config_in_the_same_workdir_is_refused(finished):
    config, folder, _ = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"learning_rate is 0.1 there and 0.2 here.*--workdir"):
        train_and_evaluate(dataclasses.replace(config, learning_rate=0.2), folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("damage", ["nonsense\n", '{"epoch": 1.0}\n', "[1]\n", None])
def test_damaged_and_missing_rows_are_named(finished, compiled, tmp_path, damage):
    config, folder, _ = finished
    copy_unfinished(folder, tmp_path)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if damage:
        path.write_text("".join([*lines[:2], damage, *lines[3:]]))
        message = f"line 3 of {path} is damaged"
    else:
        path.unlink()
        message = f"{path} lacks rows from before the checkpoint of step 14"
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config, tmp_path, programs=compiled)


@pytest.fixture(scope="module")
def validated(tiny):
    return Programs(dataclasses.replace(tiny, validation_split="train[130:200]"))


def test_validation_is_watched_and_the_test_set_scored_once(validated, tmp_path):
    config = dataclasses.replace(validated.config, eval_every_epochs=2)
    train_and_evaluate(config, tmp_path, programs=validated)
    rows = [(row["epoch"], row["split"]) for row in read_rows(tmp_path) if row["split"] != "train"]
    assert rows == [(2, "validation"), (4, "validation"), (4, "test")]


def test_the_best_by_validation_is_kept_and_none_by_test(validated, four_epochs, tmp_path):
    scores = {"validation": [0.3, 0.9, 0.5, 0.4], "test": [0.9, 0.1, 0.1, 0.1]}

    class Scripted(Trainer):
        def evaluate(self, state, step, split, rows):
            score = scores[split][step // 4 - 1]
            return [
                done._replace(metrics=done.metrics | {"correct": score * done.metrics["count"]})
                if done.split == split
                else done
                for done in super().evaluate(state, step, split, rows)
            ]

    kept = []
    for programs in (validated, four_epochs):
        folder = tmp_path / str(len(kept))
        run(Scripted(programs.config, programs=programs), folder, Stop())
        kept.append(sorted(int(path.name) for path in (folder / "checkpoints").iterdir()))
    assert kept == [[8, 12, 16], [12, 16]]


@pytest.mark.slow
def test_averaged_weights_are_scored_saved_and_resumed(validated, tmp_path):
    config = dataclasses.replace(validated.config, num_epochs=2, decay_epochs=(), ema_decay=0.8)
    programs = Programs(config)
    state = train_and_evaluate(config, tmp_path / "whole", programs=programs)
    rows = read_rows(tmp_path / "whole")
    splits = ["train", "validation_ema", "validation"]
    assert [row["split"] for row in rows] == [*splits, *splits, "test_ema", "test"]
    assert rows[-2]["loss"] != rows[-1]["loss"]
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert (summary["test_loss_ema"], summary["test_loss"]) == tuple(r["loss"] for r in rows[-2:])
    assert list(summary["epochs"]["validation_ema"]) == ["epoch", "accuracy"]

    with pytest.raises(Stopped):  # In the second epoch.
        train_and_evaluate(config, tmp_path / "cut", stop=StopAfter(17), programs=programs)
    again = train_and_evaluate(config, tmp_path / "cut", programs=programs)
    assert_same(array_fields(again), array_fields(state))
    assert untimed(read_rows(tmp_path / "cut")) == untimed(rows)

    assert_same(load(tmp_path / "whole").variables, state.ema)
    last = load(tmp_path / "whole", averaged=False)
    assert_same(last.variables, {"params": state.params, "batch_stats": state.batch_stats})
    assert (last.config["ema_decay"], load(tmp_path / "whole").config["ema_decay"]) == (0, 0.8)


def test_a_diverged_run_ends_and_saves_nothing(finished, compiled, tmp_path):
    """The parameters leap to 10^30 within the second epoch."""
    config, _, _ = finished

    class Leaping(Trainer):
        def train(self, state, step, rows):
            if step == 6:
                leap = jax.tree.map(lambda leaf: leaf * np.float32(1e30), state.params)
                state = self.programs.devices.replicate(state.replace(params=leap))
            return super().train(state, step, rows)

    with pytest.raises(UserError) as error:
        run(Leaping(config, programs=compiled), tmp_path, Stop())
    assert re.match(
        r"step [67] \(epoch 1\.\d+\), at learning rate 0\.1, has the loss \S+ and a gradient of "
        r"norm (nan|inf), after [\d.e+]+ in the step before: .*Earlier checkpoints are intact",
        str(error.value),
    )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]
    assert not (tmp_path / "summary.json").exists()
    assert (tmp_path / "diverged.txt").read_text() == f"{error.value}\n"


def test_a_save_that_cannot_be_read_back_ends_the_run(compiled, tmp_path, monkeypatch):
    """As on a file system that loses what it is given."""
    import orbax.checkpoint as ocp

    save = ocp.CheckpointManager.save

    def lose(self, step, **arguments):
        save(self, step, **arguments)
        shutil.rmtree(tmp_path / "checkpoints" / str(step) / "state")

    monkeypatch.setattr(ocp.CheckpointManager, "save", lose)
    with pytest.raises(UserError, match=r"checkpoint of step 4 can't be written .* when read"):
        train_and_evaluate(compiled.config, tmp_path, programs=compiled)


def test_a_dry_run_prints_the_costs_and_writes_nothing(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dry_run(tiny)
    out = capsys.readouterr().out
    for part in (
        "5,006 parameters",
        "16 of 32 images, 4 an epoch",
        "rising from 0 to 0.1 until step 4 (epoch 1)",
        "until step 8 (epoch 2)",
        "GFLOP a step",
        "MB",
    ):
        assert part in out
    assert not list(tmp_path.iterdir())
