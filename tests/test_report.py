"""Results are told apart by their configs, and their spread is that of statistics, not of hope."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes

from resnet_cifar.errors import UserError
from resnet_cifar.recipes import make_config
from resnet_cifar.report import runs as results
from resnet_cifar.report import tables
from resnet_cifar.report.pages import curves, keep_recipes, publish, report, update
from resnet_cifar.report.plots import plot_learning

ROOT = Path(__file__).parents[1]


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
    theirs = [
        result("card", 0.92 + 0.01 * seed - 0.001 * (seed == 1), seed=seed) for seed in (2, 1, 0, 7)
    ]
    mean, half, n = results.paired(ours, theirs)
    # Gains of 0.010, 0.011, 0.010: their deviation is 0.000577, and t is 4.303 for 2 degrees of freedom.
    np.testing.assert_allclose(
        (mean, half, n), (0.031 / 3, 4.303 * 0.00057735 / 3**0.5, 3), rtol=1e-3
    )
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
        UserError, match=r"a and .*b are runs of the same config: move one away, not by its result"
    ):
        results.collect(tmp_path)


def test_only_finished_runs_are_collected(tmp_path):
    leave(tmp_path / "deep" / "done")
    leave(tmp_path / "cut off", seed=1)
    (tmp_path / "cut off" / "summary.json").unlink()
    found, unfinished = results.collect(tmp_path)
    assert [run["seed"] for run in found] == [0] and unfinished == [tmp_path / "cut off"]


@pytest.mark.parametrize("content", ["", "garbage", "[]", "{}", '{"config": {"num_epochs": 160}}'])
def test_a_damaged_summary_is_named(tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match=r"summary.json can't be read .*move that run away"):
        results.collect(tmp_path)


def test_a_run_that_diverged_is_counted_beside_the_others(tmp_path):
    leave(tmp_path / "a", accuracy=0.90)
    leave(tmp_path / "b", seed=1)
    (tmp_path / "b" / "summary.json").unlink()
    (tmp_path / "b" / "diverged.txt").write_text("step 3 has the loss nan\n")
    found, unfinished = results.collect(tmp_path)
    assert found[1]["diverged"] == "step 3 has the loss nan" and not unfinished
    assert tables.accuracy(found, "cifar10", 56) == "90.00 (1; 1 diverged)"
    assert tables.accuracy(found[1:], "cifar10", 56) == "all 1 diverged"
    assert tables.accuracy(found, "cifar10", 20) == "not measured yet"
    assert (
        tables.summary(results.by_label(found))[-1]
        == "| card | cifar10 | ResNet56 | 90.00 (1; 1 diverged) | 60 |"
    )


def test_the_card_takes_only_what_its_recipe_made_and_keeps_what_it_had(tmp_path, capsys):
    keep_recipes({"card": [result(seed=0), result(seed=1)]}, tmp_path)
    quick = result("card", num_epochs=2, warmup_epochs=1, decay_epochs=())
    small, elsewhere = result("card", depth=8), result("card", dataset="synthetic")
    keep_recipes(
        results.by_label([result(seed=1), result(seed=2), quick, small, elsewhere]), tmp_path
    )
    assert [results.cell(run) for run in results.read(tmp_path / "card.json")] == [
        ("cifar10", 56, seed) for seed in range(3)
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["card.json"]
    out = capsys.readouterr().out
    assert (
        "no cell of the card: card with num_epochs=2" in out
        and "no cell of the card: card (2)\n" in out
    )


def test_nothing_in_the_card_is_replaced_or_dropped_silently(tmp_path):
    keep_recipes({"card": [result(accuracy=0.93)]}, tmp_path)
    before = (tmp_path / "card.json").read_text()
    with pytest.raises(
        UserError, match=r"card.json has another run of ResNet56 on cifar10 with seed 0: keep one"
    ):
        keep_recipes({"card": [result(accuracy=0.9999)]}, tmp_path)
    assert (tmp_path / "card.json").read_text() == before
    (tmp_path / "card.json").write_text(
        before.replace('"learning_rate": 1.2', '"learning_rate": 3.3')
    )
    with pytest.raises(UserError, match="not made by the recipe card as it is now"):
        keep_recipes({"card": [result(seed=1)]}, tmp_path)


PAGE = """# Title
<!-- family: begin -->
old
<!-- family: end -->
between
<!-- pictures: begin -->
<!-- pictures: end -->
<!-- comparison: begin -->
<!-- comparison: end -->
end
"""


def test_a_table_says_what_is_not_measured_yet(tmp_path):
    rows = update(PAGE, tmp_path, "").splitlines()
    assert (
        "| parameters, with 10 classes | 269,722 | 464,154 | 658,586 | 853,018 | 1,727,962 |"
        in rows
    )
    assert f"| CIFAR-10 accuracy (%), `card` |{' not measured yet |' * 5}" in rows
    assert f"| training on one GPU, `fast` |{' not measured yet |' * 5}" in rows
    assert "Nothing to draw yet: nothing has been measured." in rows
    assert "old" not in rows and {"# Title", "between", "end"} <= set(rows)


def test_a_report_fills_pages_and_draws_and_twice_changes_nothing(tmp_path):
    folder = tmp_path / "results"
    runs = [result("card", 0.93 + 0.002 * seed, seed=seed) for seed in (0, 1)] + [
        result("card", 0.915, depth=20)
    ]
    strong = [result("strong", 0.94 + 0.002 * seed, seed=seed) for seed in (0, 1)]
    keep_recipes(
        {"card": runs, "strong": strong, "fast": [result("fast", eval_every_epochs=0)]}, folder
    )
    peer = {
        "dataset": "cifar10",
        "name": "them",
        "device": "old GPU",
        "minutes": {"56": 35},
        "accuracy": {"56": 93.1},
    }
    (folder / "peers.json").write_text(json.dumps({"peers": [peer]}))
    (tmp_path / "README.md").write_text(PAGE)
    written = publish(tmp_path)
    assert {path.name for path in written} == {
        "card.png", "strong.png", "fast.png", "accuracy_over_time.png", "README.md",
    }  # fmt: skip
    page = (tmp_path / "README.md").read_text()
    assert (
        "| CIFAR-10 accuracy (%), `card` | 91.50 (1) | not measured yet | not measured yet | 93.10 ± 0.14 (2) |"
        in page
    )
    assert "| training on Some GPU, `card` | 60.0 s; 131,072 images/s; 0.38 s an epoch |" in page
    assert "60.0 s; 131,072 images/s; 1.50 s an epoch |" in page  # Of 40 epochs.
    assert (
        "| CIFAR-10, `strong` over `card` | not measured yet | not measured yet | not measured yet | +1.00 ± 0.00 (2) |"
        in page
    )
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
        "| nearest recipe | data | network | test accuracy (%), seeds | seconds of training |",
        "| --- | --- | --- | --- | --- |",
        "| card | cifar10 | ResNet56 | 40.50 ± 0.71 (2) | 60 |",
        "| strong | cifar10 | ResNet56 | 50.50 ± 0.71 (2) | 60 |", "",
        "| gain | data | network | points, 95 % interval, pairs |",
        "| --- | --- | --- | --- |",
        "| strong over card | cifar10 | ResNet56 | +10.00 ± 0.00 (2) |",
    ]  # fmt: skip


def test_a_page_without_its_markers_is_left_as_it_is(tmp_path):
    with pytest.raises(
        UserError, match=r"a page lacks the line .* or <!-- family: end --> after it"
    ):
        update(PAGE.replace("<!-- family: end -->", ""), tmp_path, "")


def test_curves_are_those_of_the_epochs_that_all_seeds_have():
    one, other = result(seed=0), result(seed=1, accuracy=0.8)
    other["epochs"]["test"] = {"epoch": [2], "accuracy": [0.8]}
    assert curves({"card": [one, other]}) == {"CIFAR-10": {"ResNet56": [[(2, 0.9)], [(2, 0.8)]]}}


def test_two_settings_of_one_recipe_have_a_line_each():
    groups = results.by_label([result(), result(weight_decay=0.1)])
    assert set(curves(groups)["CIFAR-10"]) == {
        "ResNet56, card",
        "ResNet56, card with weight_decay=0.1",
    }


def test_a_band_is_one_sample_deviation(monkeypatch, tmp_path):
    bands = []
    monkeypatch.setattr(
        Axes, "fill_between", lambda self, x, low, high, **_: bands.append((low, high))
    )
    plot_learning({"CIFAR-10": {"ResNet56": [[(1, 0.90)], [(1, 0.92)]]}}, tmp_path / "picture.png")
    np.testing.assert_allclose(bands, [([91 - 2**0.5], [91 + 2**0.5])])


def test_the_command_fills_the_page_and_says_what_it_did(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text(PAGE)
    for seed in (0, 1):
        leave(tmp_path / "runs" / f"seed{seed}", accuracy=0.93 + 0.002 * seed, seed=seed)
    first, second = (
        subprocess.run(
            [sys.executable, "-m", "resnet_cifar.report"],
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for _ in range(2)
    )  # fmt: skip
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert "| card | cifar10 | ResNet56 | 93.10 ± 0.14 (2) | 60 |" in first.stdout
    assert "wrote README.md" in first.stdout and "wrote" not in second.stdout
    assert "93.10 ± 0.14 (2)" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("workdir", "output", "message"),
    [
        ("runs", "", "there is no folder results/ here"),
        ("nowhere", "x.json", "there is no folder nowhere"),
        ("runs", "results/card.json", "not be the file of a recipe"),
        ("runs", "picture.png", "must end with .json"),
        ("runs", "x.json", "there is nothing to write to x.json"),
        ("runs", str(ROOT / "results" / "peers.json"), "is a file of another kind already"),
    ],
)
def test_a_mistake_is_named_and_nothing_written(tmp_path, monkeypatch, workdir, output, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        report(Path(workdir), Path(output) if output else None)
    assert not list(tmp_path.iterdir())
