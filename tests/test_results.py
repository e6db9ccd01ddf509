"""Results are told apart by their configs, and their spread is that of statistics, not of hope."""

import dataclasses
import json
import math

import numpy as np
import pytest

from resnet_cifar import results, tables
from resnet_cifar.config import make_config
from resnet_cifar.errors import UserError
from resnet_cifar.report import keep_recipes, publish, update


def summary(recipe="card", accuracy=0.9, **fields):
    config = json.loads(json.dumps(dataclasses.asdict(make_config(recipe, **fields))))
    return {
        "test_accuracy": accuracy, "test_top5_accuracy": 0.99, "test_loss": 0.3, "train_seconds": 60.0,
        "eval_seconds": 1.0, "compile_seconds": 9.0, "images_per_second": 131_072.0, "parameters": 853_018,
        "steps": 7_680, "date": "2026-11-23", "device": "Some GPU", "XLA_FLAGS": "", "versions": {"jax": "0.11.2"},
        "config": config,
        "epochs": {
            "train": {"epoch": [1], "accuracy": [0.123456]},
            "test": {"epoch": [1, 2], "accuracy": [0.5, accuracy]},
        },
    }  # fmt: skip


def result(*arguments, **fields):
    return results.shorten(summary(*arguments, **fields))


def leave(folder, *arguments, **fields):
    folder.mkdir(parents=True)
    made = summary(*arguments, **fields)
    (folder / "config.json").write_text(json.dumps(made["config"]))
    (folder / "summary.json").write_text(json.dumps(made))


def test_the_deviation_is_that_of_a_sample():
    values = [0.931, 0.928, 0.935, 0.930]
    mean, deviation, n = results.spread(values)
    np.testing.assert_allclose((mean, deviation, n), (np.mean(values), np.std(values, ddof=1), 4))
    assert math.isnan(results.spread([0.9]).deviation)


def test_recipes_are_compared_seed_by_seed():
    ours = [result("strong", 0.93 + 0.01 * seed, seed=seed) for seed in (0, 1, 2)]
    theirs = [result("card", 0.92 + 0.01 * seed - 0.001 * (seed == 1), seed=seed) for seed in (2, 1, 0, 7)]
    mean, half, n = results.paired(ours, theirs)
    # Gains of 0.010, 0.011, 0.010: their deviation is 0.000577, and t is 4.303 for 2 degrees of freedom.
    np.testing.assert_allclose((mean, half, n), (0.031 / 3, 4.303 * 0.00057735 / 3**0.5, 3), rtol=1e-3)
    assert results.paired(ours, theirs[:1]) is None
    assert tables.gain(ours, theirs) == "+1.03 ± 0.14 (3)"
    assert tables.gain(ours, []) == "not measured yet"


def test_a_run_is_named_by_its_recipe_and_what_was_set_otherwise():
    assert results.label(result("card")) == "card"
    assert results.label(result("card", data_dir="/elsewhere", eval_every_epochs=0)) == "card"
    assert results.label(result("paper", depth=110)) == "paper"
    changed = result("strong", weight_decay=0.1, decay_epochs=(1, 2))
    assert results.label(changed) == "strong with decay_epochs=1,2, weight_decay=0.1"
    old = summary()
    del old["config"]["decay"], old["config"]["nesterov"]  # As before there were other decays.
    assert results.label(results.shorten(old)) == "card"


def test_two_runs_of_the_same_cell_are_not_chosen_from(tmp_path):
    leave(tmp_path / "a", accuracy=0.90)
    leave(tmp_path / "b", accuracy=0.95)
    with pytest.raises(
        UserError, match=r"two runs of ResNet56 on cifar10 with seed 0 .* don't choose it by its result"
    ):
        results.by_label(results.collect(tmp_path)[0])


def test_only_finished_runs_are_collected(tmp_path):
    leave(tmp_path / "deep" / "done")
    leave(tmp_path / "cut off", seed=1)
    (tmp_path / "cut off" / "summary.json").unlink()
    found, unfinished = results.collect(tmp_path)
    assert [run["seed"] for run in found] == [0] and unfinished == [tmp_path / "cut off"]
    (tmp_path / "deep" / "done" / "summary.json").write_text("{}")
    with pytest.raises(UserError, match=r"summary.json can't be read .*move that run away"):
        results.collect(tmp_path)


def test_the_card_takes_only_what_its_recipe_made_and_keeps_what_it_had(tmp_path, capsys):
    keep_recipes({"card": [result(seed=0), result(seed=1)]}, tmp_path)
    quick = result("card", num_epochs=2, warmup_epochs=1, decay_epochs=())
    keep_recipes(results.by_label([result(seed=1, accuracy=0.8), result(seed=2), quick]), tmp_path)
    kept = results.read(tmp_path / "card.json")
    assert [(run["seed"], run["test_accuracy"]) for run in kept] == [(0, 0.9), (1, 0.8), (2, 0.9)]
    assert [path.name for path in tmp_path.iterdir()] == ["card.json"]
    assert "by no recipe, and so in no file: card with num_epochs=2" in capsys.readouterr().out


PAGE = """# Title
<!-- family: begin -->
old
<!-- family: end -->
between
<!-- pictures: begin -->
<!-- pictures: end -->
end
"""


def test_a_table_says_what_is_not_measured_yet(tmp_path):
    rows = update(PAGE, tmp_path, "").splitlines()
    assert "| parameters | 269,722 | 464,154 | 658,586 | 853,018 | 1,727,962 |" in rows
    assert f"| CIFAR-10 accuracy (%), `card` |{' not measured yet |' * 5}" in rows
    assert f"| training time on one GPU, `fast` |{' not measured yet |' * 5}" in rows
    assert "Nothing to draw yet: nothing has been measured." in rows
    assert "old" not in rows and {"# Title", "between", "end"} <= set(rows)


def test_a_report_fills_pages_and_draws_and_twice_changes_nothing(tmp_path):
    folder = tmp_path / "results"
    runs = [result("card", 0.93 + 0.002 * seed, seed=seed) for seed in (0, 1)] + [result("card", 0.915, depth=20)]
    keep_recipes({"card": runs, "strong": [result("strong", 0.94, seed=seed) for seed in (0, 1)]}, folder)
    peer = {"dataset": "cifar10", "name": "them", "device": "old GPU", "minutes": {"56": 35}, "accuracy": {"56": 93.1}}
    (folder / "peers.json").write_text(json.dumps({"peers": [peer]}))
    (tmp_path / "README.md").write_text(PAGE)
    written = publish(tmp_path)
    assert {path.name for path in written} == {"card.png", "strong.png", "accuracy_over_time.png", "README.md"}
    page = (tmp_path / "README.md").read_text()
    assert (
        "| CIFAR-10 accuracy (%), `card` | 91.50 (1) | not measured yet | not measured yet | 93.10 ± 0.14 (2) |" in page
    )
    assert "60.0 s; 131,072 images/s; 0.38 s an epoch" in page and "training time on Some GPU, `card`" in page
    assert "[card.json](results/card.json): 3 runs, Some GPU, jax 0.11.2, 2026-11-23." in page
    assert "](results/accuracy_over_time.png)" in page
    assert publish(tmp_path) == []


def test_a_summary_says_once_what_all_have_alike():
    groups = results.by_label([
        result(recipe, 0.4 + 0.1 * (recipe == "strong") + 0.01 * seed, seed=seed, num_epochs=6)
        for recipe in ("card", "strong") for seed in (0, 1)
    ])  # fmt: skip
    assert tables.summary(groups) == [
        "All with num_epochs=6.", "",
        "| made by | data | network | test accuracy (%), seeds | seconds of training |",
        "| --- | --- | --- | --- | --- |",
        "| card | cifar10 | ResNet56 | 40.50 ± 0.71 (2) | 60 |",
        "| strong | cifar10 | ResNet56 | 50.50 ± 0.71 (2) | 60 |", "",
        "| gain | data | network | points, 95 % interval, pairs |",
        "| --- | --- | --- | --- |",
        "| strong over card | cifar10 | ResNet56 | +10.00 ± 0.00 (2) |",
    ]  # fmt: skip
