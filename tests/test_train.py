"""A run leaves what it promises, goes on where it stopped, and does not depend on the number of devices."""

import dataclasses
import errno
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from resnet_cifar import describe, workdir
from resnet_cifar import log as runlog
from resnet_cifar import run as run_module
from resnet_cifar.checkpoint import fields
from resnet_cifar.config import Config
from resnet_cifar.errors import UserError
from resnet_cifar.log import read_rows
from resnet_cifar.plan import blank_splits
from resnet_cifar.programs import Programs, keep_programs
from resnet_cifar.run import Run, add, mean_metrics
from resnet_cifar.stop import Stop, Stopped
from resnet_cifar.train import dry_run, train_and_evaluate


def untimed(rows):
    return [
        {k: v for k, v in row.items() if "seconds" not in k and "per_second" not in k}
        for row in rows
    ]


def train(run, state, step):
    """Train to the end of the epoch; return what the loop would have."""
    sums = {"train_seconds": 0.0}

    def finish(step, metrics, seconds):
        add(sums, metrics)
        sums["train_seconds"] += seconds

    state, step = run.train_epoch(state, step, finish=finish, stop=Stop())
    run.drain()
    return state, step, sums


def evaluate(run, state, split):
    rows = []
    run.evaluate(state, split, finish=rows.append, stop=Stop())
    run.drain()
    (row,) = rows
    return row


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """Return a config, the folder of its finished run, and the last state."""
    config = dataclasses.replace(tiny, num_epochs=3.5)
    folder = tmp_path_factory.mktemp("run") / "with a space"
    return config, folder, train_and_evaluate(config, folder)


def test_a_run_leaves_its_files(finished):
    _, folder, _ = finished
    names = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
    assert names == {
        "config.json",
        "metrics.jsonl",
        "summary.json",
        "curves.png",
        "checkpoints",
        "lock",
    }
    (events,) = folder.glob("*tfevents*")
    assert b"test/accuracy" in events.read_bytes()
    assert json.loads((folder / "config.json").read_text())["batch_size"] == 32
    with Image.open(folder / "curves.png") as picture:
        assert picture.width > 1000


def test_there_is_a_row_for_every_epoch_and_every_evaluation(finished):
    _, folder, _ = finished
    rows = read_rows(folder)
    expected = [(step, split) for step in (4, 8, 12, 14) for split in ("train", "test")]
    assert [(row["step"], row["split"]) for row in rows] == expected
    assert [row["epoch"] for row in rows[::2]] == [1, 2, 3, 3.5]
    np.testing.assert_allclose(
        [row["learning_rate"] for row in rows[::2]], [0.075, 0.1, 0.01, 0.001], rtol=1e-5
    )


def test_the_summary_says_it_all(finished):
    config, folder, state = finished
    summary = json.loads((folder / "summary.json").read_text())
    last = read_rows(folder)[-1]
    assert summary["test_accuracy"] == last["accuracy"] and summary["test_loss"] == last["loss"]
    assert (
        summary["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(state.params)) == 75_290
    )
    assert summary["steps"] == int(state.step) == 14
    assert summary["epochs"]["test"]["epoch"] == [1, 2, 3, 3.5]
    assert summary["train_seconds"] > 0 and summary["compile_seconds"] > 0
    np.testing.assert_allclose(summary["images_per_second"], 14 * 32 / summary["train_seconds"])
    assert (
        summary["config"]["depth"] == config.depth and summary["versions"]["jax"] == jax.__version__
    )
    assert "CPU" in summary["device"]


def test_every_test_image_is_scored_once():
    sums = {}
    add(
        sums,
        {
            "loss_sum": np.array([30.0]),
            "correct": np.array([8]),
            "correct_top5": [9],
            "count": [10],
        },
    )
    add(
        sums,
        {
            "loss_sum": np.array([2.0, 1]),
            "correct": np.array([1, 0]),
            "correct_top5": [1, 2],
            "count": [3, 2],
        },
    )
    assert mean_metrics(sums, expected=15) == {"loss": 2.2, "accuracy": 0.6, "top5_accuracy": 0.8}
    with pytest.raises(RuntimeError, match="15 images were scored instead of 16"):
        mean_metrics(sums, expected=16)


def test_the_run_is_built_from_its_config(tiny):
    """Scale, seed, momentum, decay and schedule arrive where they belong."""
    states = {
        name: Run(dataclasses.replace(tiny, **fields), load=blank_splits).init_state()
        for name, fields in {
            "uniform": {},
            "ones": {"bn_scale_init": "ones"},
            "seed": {"seed": 1},
            "sgd": {"momentum": 0.5, "weight_decay": 0.01},
        }.items()
    }
    scales = {name: state.params["stem_bn"]["scale"] for name, state in states.items()}
    assert (scales["ones"] == 1).all() and (scales["uniform"] < 1).all()
    assert (
        states["seed"].params["stem_conv"]["kernel"]
        != states["uniform"].params["stem_conv"]["kernel"]
    ).all()

    state = states["sgd"]
    params, opt_state, grads = (
        state.params,
        state.opt_state,
        jax.tree.map(np.ones_like, state.params),
    )
    value, buffer = np.float64(params["head"]["kernel"][0, 0]), 0.0
    for rate in (0.0, 0.025, 0.05):  # Four steps of warm-up to 0.1.
        updates, opt_state = state.tx.update(grads, opt_state, params)
        params = jax.tree.map(np.add, params, updates)
        buffer = 0.5 * buffer + 1 + 0.01 * value
        value -= rate * buffer
    np.testing.assert_allclose(params["head"]["kernel"][0, 0], value, rtol=1e-5)


def test_a_seed_has_an_order_of_its_own(tiny):
    orders = [np.asarray(run.programs.order(run._order_key, np.int32(epoch))) for run in (Run(tiny, load=blank_splits),
              Run(dataclasses.replace(tiny, seed=1), load=blank_splits)) for epoch in (0, 1)]  # fmt: skip
    assert len({tuple(order) for order in orders}) == 4


def test_a_run_with_the_programs_of_another_seed_compiles_nothing_and_is_the_same(
    finished, tmp_path, monkeypatch
):
    config, folder, state = finished
    programs = Programs(other := dataclasses.replace(config, seed=5))
    assert programs.serve(config) and not programs.serve(
        dataclasses.replace(config, weight_decay=0.1)
    )
    train_and_evaluate(other, tmp_path / "other", programs=programs)
    shared = train_and_evaluate(config, tmp_path / "shared", programs=programs)
    jax.tree.map(np.testing.assert_array_equal, fields(shared), fields(state))
    assert untimed(read_rows(tmp_path / "shared")) == untimed(read_rows(folder))
    seconds = [
        json.loads((tmp_path / name / "summary.json").read_text())["compile_seconds"]
        for name in ("other", "shared")
    ]
    assert seconds[0] > 0 == seconds[1]


def test_one_dispatch_an_epoch_as_on_accelerators_trains_the_same(tiny):
    results = []
    for steps_per_dispatch in (1, 4):
        run = Run(dataclasses.replace(tiny, num_epochs=1.5, warmup_epochs=0.5, decay_epochs=(1,)))
        run.programs.steps_per_dispatch = steps_per_dispatch
        state, step, sums = train(run, run.programs.place(run.init_state()), 0)
        row = run.train_row(step, sums)
        assert sums["steps"] == step == 4
        state, step, sums = train(run, state, step)  # A last epoch cut short.
        assert (sums["steps"], step) == (2, 6)
        results.append((row["loss"], row["grad_norm"], evaluate(run, state, "test")["loss"]))
    np.testing.assert_allclose(*results, rtol=1e-2)


def test_the_next_epoch_is_enqueued_before_the_results_of_the_last_are_read(
    tiny, tmp_path, monkeypatch
):
    """As on one accelerator."""
    events = []

    def note(cls, name, label):
        original = getattr(cls, name)

        def noted(self, *arguments, **named):
            events.append(label(*arguments))
            return original(self, *arguments, **named)

        monkeypatch.setattr(cls, name, noted)

    def as_on_an_accelerator(self, *arguments):
        original(self, *arguments)
        self.steps_per_dispatch, self.one_at_a_time = 4, False

    first, original = jax.devices()[:1], Programs.__init__
    monkeypatch.setattr(jax, "devices", lambda: first)
    monkeypatch.setattr(Programs, "__init__", as_on_an_accelerator)
    note(Run, "dispatch", lambda split, *_: f"enqueue {split}")
    note(runlog.RunLog, "record", lambda step, split, _: f"record {split} {step // 4}")
    config = dataclasses.replace(tiny, checkpoint_every_epochs=0, batch_size=32)
    monkeypatch.setattr(
        run_module, "eval_indices", lambda n, size: np.arange(n).reshape(1, -1)
    )  # One dispatch.
    train_and_evaluate(config, tmp_path)
    # The first dispatch is waited for, as it says how long they take.
    expected = ["enqueue train", "record train 1", "enqueue test"]
    for epoch in (1, 2, 3):
        expected += [
            "enqueue train",
            f"record test {epoch}",
            "enqueue test",
            f"record train {epoch + 1}",
        ]
    assert events == [*expected, "record test 4"]


def test_programs_are_kept_where_that_can_be(tmp_path, monkeypatch):
    prefix = "jax_persistent_cache_min_"
    names = ("jax_compilation_cache_dir", prefix + "compile_time_secs", prefix + "entry_size_bytes")
    before = {name: jax.config.values[name] for name in names}
    try:
        keep_programs()  # What a user has said holds; here it is the tests' own folder.
        assert {name: jax.config.values[name] for name in names} == before
        for name in names:
            monkeypatch.delenv(name.upper())
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        keep_programs()
        assert jax.config.values["jax_compilation_cache_dir"] == before["jax_compilation_cache_dir"]
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        keep_programs()
        assert jax.config.values["jax_compilation_cache_dir"].startswith(
            str(tmp_path / "cache" / "resnet_cifar")
        )
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_resume_equals_uninterrupted_run(finished, tmp_path, monkeypatch):
    config, folder, state = finished
    original, calls = Run.train_epoch, []

    def stop_in_the_third_epoch(self, *arguments, **named):
        calls.append(arguments)
        if len(calls) == 3:
            raise RuntimeError("power cut")
        return original(self, *arguments, **named)

    monkeypatch.setattr(Run, "train_epoch", stop_in_the_third_epoch)
    with pytest.raises(RuntimeError, match="power cut"):
        train_and_evaluate(config, tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "summary.json").exists()
    with (tmp_path / "metrics.jsonl").open(
        "a"
    ) as file:  # What a run leaves that dies between a row and a save.
        file.write(
            '{"step": 12, "epoch": 3.0, "split": "train", "loss": 1.0, "accuracy": 0.1}\n{"step": 12, "ep'
        )

    resumed = train_and_evaluate(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, fields(resumed), fields(state))
    assert untimed(read_rows(tmp_path)) == untimed(read_rows(folder))


def test_a_finished_run_started_again_changes_nothing(finished, tmp_path, capsys):
    config, folder, state = finished
    shutil.copytree(folder, tmp_path / "copy")
    again = train_and_evaluate(config, tmp_path / "copy")
    jax.tree.map(np.testing.assert_array_equal, fields(again), fields(state))
    files = [
        sorted(path.relative_to(top) for path in top.iterdir())
        for top in (folder, tmp_path / "copy")
    ]
    assert files[0] == files[1]
    for name in ("metrics.jsonl", "summary.json"):
        assert (tmp_path / "copy" / name).read_text() == (folder / name).read_text()
    assert "finished before" in capsys.readouterr().out


def test_another_config_in_the_same_workdir_is_refused(finished):
    config, folder, _ = finished
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(
        UserError, match=r"learning_rate is 0.1 there and 0.2 here.*another --workdir"
    ):
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


def test_the_best_by_validation_outlives_newer_checkpoints_and_the_test_set_chooses_none(
    tiny, tmp_path, monkeypatch
):
    scores = {"validation": iter([0.3, 0.9, 0.5, 0.4]), "test": iter([0.9, 0.1, 0.1, 0.1, 0.1])}

    def scripted(self, state, split, *, finish, stop):
        finish({"loss": 1.0, "accuracy": next(scores[split]), "top5_accuracy": 1.0})

    monkeypatch.setattr(Run, "evaluate", scripted)
    train_and_evaluate(
        dataclasses.replace(tiny, validation_split="train[130:200]"), tmp_path / "validated"
    )
    train_and_evaluate(tiny, tmp_path / "tested")
    kept = {name: sorted(int(path.name) for path in (tmp_path / name / "checkpoints").iterdir())
            for name in ("validated", "tested")}  # fmt: skip
    assert kept == {"validated": [8, 12, 16], "tested": [12, 16]}


def test_four_devices_train_like_one(tiny, monkeypatch):
    """BatchNorm sees the whole batch, however it is split."""
    config = dataclasses.replace(tiny, num_epochs=0.5, warmup_epochs=0.25, decay_epochs=())
    four = Run(config)
    assert len(four.images["train"].labels.devices()) == 4
    state, _, sums = train(four, four.programs.place(four.init_state()), 0)
    score = evaluate(four, state, "test")
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: first)
    one = Run(config)
    assert len(one.images["train"].labels.devices()) == 1
    alone, _, alone_sums = train(one, one.programs.place(one.init_state()), 0)
    np.testing.assert_allclose(sums["loss_sum"], alone_sums["loss_sum"], rtol=1e-4)
    np.testing.assert_allclose(score["loss"], evaluate(one, alone, "test")["loss"], rtol=1e-3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), state.params, alone.params
    )


def test_a_batch_that_the_devices_cannot_share_is_refused(tiny):
    with pytest.raises(
        UserError, match=r"config.batch_size=30 must be a multiple of the 4 devices"
    ):
        Run(dataclasses.replace(tiny, batch_size=30))


def test_the_header_takes_its_rates_from_the_schedule(tiny):
    config = dataclasses.replace(tiny, warmup="constant", decay_factor=0.5)
    lines = describe.schedule_lines(Run(config, load=blank_splits))
    assert [line.split("learning rate ")[1] for line in lines] == [
        "0.05 until step 4 (epoch 1)",
        "0.1 until step 8 (epoch 2)",
        "0.05 until step 12 (epoch 3)",
        "0.025 until step 16 (epoch 4)",
    ]


def test_the_header_names_a_decay_that_falls_all_the_way(tiny):
    lines = describe.schedule_lines(
        Run(dataclasses.replace(tiny, decay="cosine"), load=blank_splits)
    )
    assert [line.split("learning rate ")[1] for line in lines] == [
        "rising from 0 to 0.1 until step 4 (epoch 1)",
        "falling from 0.1 to 0, cosine, until step 16 (epoch 4)",
    ]


def test_dry_run_needs_no_data(tmp_path, capsys):
    dry_run(Config(depth=8, batch_size=32, data_dir=str(tmp_path)))
    out = capsys.readouterr().out
    assert f"cifar10, not yet in {tmp_path}: 50,000 train, 10,000 test" in out


def test_without_a_terminal_a_line_tells_of_long_epochs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runlog, "PLAIN_LINE_SECONDS", 0)
    with runlog.RunLog(tmp_path, step=0, num_steps=10, steps_per_epoch=10, batch_size=8) as log:
        log.advance(5)
    assert re.search(r"step 5 of 10  [\d,]+ images/s .* 0:00:00 left", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("content", "message"), [("[1]", "that is not a config"), ("{}", "depth is 'missing' there")]
)
def test_a_config_that_is_no_config_is_refused(tiny, tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        train_and_evaluate(tiny, tmp_path)


def test_dry_run_tells_the_costs_and_writes_nothing(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dry_run(tiny)
    out = capsys.readouterr().out
    for part in (
        "75,290 parameters",
        "16 of 32 images, 4 an epoch",
        "rising from 0 to 0.1 until step 4 (epoch 1)",
        "until step 8 (epoch 2)",
        "GFLOP a step",
        "MB",
    ):
        assert part in out
    assert not list(tmp_path.iterdir())


class StopAfter(Stop):
    """Asks to stop when it has been polled so many times."""

    def __init__(self, polls):
        self.polls = polls

    @property
    def signal(self):
        self.polls -= 1
        return signal.SIGTERM if self.polls < 0 else None

    def hold(self):
        pass


# An epoch is polled once in the loop and once for each of 4 steps, an evaluation for each of 7 batches.
@pytest.mark.parametrize(("polls", "saved"), [(7, 4), (13, 4), (15, 6)])
def test_a_run_that_is_stopped_goes_on_from_that_very_step(
    finished, tmp_path, polls, saved, capsys
):
    config, folder, state = finished
    with pytest.raises(Stopped, match=rf"saved at step {saved} of 14"):
        train_and_evaluate(config, tmp_path, StopAfter(polls))
    resumed = train_and_evaluate(config, tmp_path)
    assert f"resuming from the checkpoint of step {saved} " in capsys.readouterr().out
    jax.tree.map(np.testing.assert_array_equal, fields(resumed), fields(state))
    assert untimed(read_rows(tmp_path)) == untimed(read_rows(folder))


def test_a_run_of_several_steps_a_dispatch_is_stopped_between_them(tiny, tmp_path, monkeypatch):
    """As on one accelerator, with an evaluation and the next epoch under way."""
    config = dataclasses.replace(
        tiny, num_epochs=2, warmup_epochs=0.5, decay_epochs=(1,), checkpoint_every_epochs=0
    )
    original, first = Programs.__init__, jax.devices()[:1]

    def two_a_dispatch(self, *arguments, **named):
        original(self, *arguments, **named)
        self.steps_per_dispatch = 2

    monkeypatch.setattr(jax, "devices", lambda: first)
    monkeypatch.setattr(Programs, "__init__", two_a_dispatch)
    state = train_and_evaluate(config, tmp_path / "whole")
    for polls, saved in [(8, 4), (9, 6)]:
        folder = tmp_path / f"stopped {polls}"
        with pytest.raises(Stopped, match=f"saved at step {saved} of 8"):
            train_and_evaluate(config, folder, StopAfter(polls))
        resumed = train_and_evaluate(config, folder)
        jax.tree.map(np.testing.assert_array_equal, fields(resumed), fields(state))
        assert untimed(read_rows(folder)) == untimed(read_rows(tmp_path / "whole"))


@pytest.mark.parametrize("damage", ["nonsense\n", '{"epoch": 1.0}\n', "[1]\n", None])
def test_damaged_rows_are_named(finished, tmp_path, damage):
    config, folder, _ = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "summary.json").unlink()
    path = tmp_path / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if damage:
        path.write_text("".join([*lines[:2], damage, *lines[3:]]))
    else:
        path.unlink()
    message = (
        f"line 3 of {path} is damaged"
        if damage
        else f"{path} lacks rows from before the checkpoint of step 14"
    )
    with pytest.raises(UserError, match=message):
        train_and_evaluate(config, tmp_path)


def test_a_stop_before_the_last_evaluation_is_no_end(finished, tmp_path):
    config, folder, _ = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "summary.json").unlink()
    rows = read_rows(tmp_path)[:-1]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(Stopped, match="saved at step 14 of 14"):
        train_and_evaluate(config, tmp_path, StopAfter(0))
    assert not (tmp_path / "summary.json").exists()
    train_and_evaluate(config, tmp_path)
    assert untimed(read_rows(tmp_path)) == untimed(read_rows(folder))


def test_a_finished_run_can_be_prolonged(finished, tmp_path, capsys):
    config, folder, _ = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    longer = dataclasses.replace(config, num_epochs=4, eval_every_epochs=2, data_dir="elsewhere")
    state = train_and_evaluate(longer, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_epochs"] == 4
    assert (
        int(state.step) == 16 and json.loads((tmp_path / "summary.json").read_text())["steps"] == 16
    )
    assert [row["step"] for row in read_rows(tmp_path) if row["split"] == "train"] == [
        4,
        8,
        12,
        14,
        16,
    ]
    with pytest.raises(
        UserError, match=r"num_epochs is 4 there and 3.5 here, and can only be raised"
    ):
        train_and_evaluate(config, tmp_path)


def test_a_second_run_in_a_workdir_is_refused_at_once(finished, tmp_path):
    config, _, _ = finished
    with (
        workdir.claimed(tmp_path, config),
        pytest.raises(
            UserError,
            match=rf"in use by process {os.getpid()} on {socket.gethostname()}: .* --workdir",
        ),
    ):
        train_and_evaluate(config, tmp_path)
    (tmp_path / "lock").write_text("process 1 on a host that is no more")
    with workdir.claimed(tmp_path, config):
        pass
    (tmp_path / "lock").unlink()
    (tmp_path / "lock").mkdir()  # As little to be opened as another user's, for root too.
    with pytest.raises(UserError, match="can't be written"):
        train_and_evaluate(config, tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(tiny, tmp_path):
    """At a rate of 10^12 from the second epoch on."""
    leap = {
        "warmup": "constant",
        "learning_rate": 1e12,
        "decay_factor": 1e-13,
        "eval_every_epochs": 0,
    }
    with pytest.raises(UserError) as error:
        train_and_evaluate(dataclasses.replace(tiny, **leap), tmp_path)
    assert re.match(
        r"step [67] \(epoch 1\.\d+\), at learning rate 1e\+12, has the loss \S+ and a gradient of norm (nan|inf), "
        r"after [\d.e+]+ in the step before: .*Checkpoints from before are as they were",
        str(error.value),
    )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["4"]
    assert not (tmp_path / "summary.json").exists()
    assert (tmp_path / "diverged.txt").read_text() == f"{error.value}\n"


def test_an_evaluation_that_is_not_finite_ends_the_run(tiny):
    run = Run(tiny)
    state = run.programs.place(run.init_state())
    bad = state.replace(params=jax.tree.map(lambda leaf: leaf * jax.numpy.nan, state.params))
    with pytest.raises(UserError, match="the loss of the test split is nan: the run has diverged"):
        evaluate(run, bad, "test")


def test_dispatches_that_take_long_are_cut(tiny, monkeypatch):
    """A signal is answered between dispatches."""
    monkeypatch.setattr(run_module, "LONGEST_DISPATCH_SECONDS", 0)
    run = Run(dataclasses.replace(tiny, num_epochs=1, warmup_epochs=0.5, decay_epochs=()))
    run.programs.steps_per_dispatch = 4
    train(run, run.programs.place(run.init_state()), 0)
    assert run.programs.steps_per_dispatch == 2
    assert [len(rows) for rows in run._cut(np.zeros((5, 8)))] == [2, 2, 1]


def test_what_may_change_the_bits_of_a_resumed_run_is_said(monkeypatch):
    before = describe.circumstances()
    assert describe.changed(before) == []
    monkeypatch.setenv("XLA_FLAGS", "--other")
    versions = {**before["versions"], "jax": "0.0.1"}
    assert describe.changed({**before, "versions": versions}) == [
        f"jax was '0.0.1' and is '{jax.__version__}'",
        f"XLA_FLAGS was {before['XLA_FLAGS']!r} and is '--other'",
    ]


def test_a_workdir_may_be_relative_or_at_home(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert workdir.check_workdir("runs/a b", tiny) == tmp_path / "runs" / "a b"
    assert workdir.check_workdir("~/runs", tiny) == tmp_path / "home" / "runs"


def test_a_run_goes_on_when_nobody_reads_its_output_any_more():
    code = "import sys; from resnet_cifar.stop import Unbreakable; sys.stdout = Unbreakable(sys.stdout)\n"
    code += "for i in range(10_000): print('x' * 100, flush=True)\nprint('done', file=sys.stderr)"
    done = subprocess.run(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} | head -n 1; exit ${{PIPESTATUS[0]}}",
                          shell=True, executable="/bin/bash", capture_output=True, text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "done\n")


def test_a_write_that_fails_leaves_the_old_file_and_no_part(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("old")

    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(workdir.os, "replace", no_space)
    with pytest.raises(OSError, match="No space left"):
        workdir.write_atomically(tmp_path / "file", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "old")]


@pytest.mark.parametrize("failing", [8, 14], ids=["on the way", "at the end"])
def test_a_run_claims_no_success_over_a_save_that_failed(finished, tmp_path, monkeypatch, failing):
    config, _, state = finished
    original = ocp.CheckpointManager.save

    def save(self, step, *arguments, **named):
        if step == failing:
            (self.directory / f"{step}.orbax-checkpoint-tmp").mkdir()
            raise ValueError(
                "RESOURCE_EXHAUSTED: No space left on device [tensorstore_spec and more"
            )
        return original(self, step, *arguments, **named)

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    with pytest.raises(
        UserError,
        match=rf"step {failing} can't be written to .* No space left on device\. The run ends",
    ):
        train_and_evaluate(config, tmp_path)
    assert not (tmp_path / "summary.json").exists()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == (
        {"4"} if failing == 8 else {"8", "12"}
    )
    monkeypatch.undo()
    resumed = train_and_evaluate(config, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, fields(resumed), fields(state))
