"""Made-up summaries, runs, workdirs and rows for tests of the report."""

import dataclasses
import json
import math

from resnet_cifar.recipes import make_config
from resnet_cifar.report.runs import compact
from resnet_cifar.report.variants import group_by_variant


def make_summary(recipe="card", accuracy=0.9, **fields):
    """Return a `summary.json` of two test rows, the second with the given accuracy."""
    config = json.loads(json.dumps(dataclasses.asdict(make_config(recipe, **fields))))
    return {
        "test_accuracy": accuracy, "test_top5_accuracy": 0.99, "test_loss": 0.3,
        "train_seconds": 60.0, "eval_seconds": 1.0, "compile_seconds": 9.0,
        "images_per_second": 131_072.0, "parameters": 853_018, "steps": 7_680,
        "date": "2026-11-23", "device": "Some GPU", "XLA_FLAGS": "", "settings": {},
        "versions": {"jax": "0.11.2"}, "config": config,
        "epochs": {
            "train": {"epoch": [1], "accuracy": [0.123456]},
            "test": {"epoch": [1, 2], "accuracy": [0.5, accuracy]},
        },
    }  # fmt: skip


def make_run(*arguments, **fields):
    return compact(make_summary(*arguments, **fields))


def make_validated(validation, **fields):
    """Return a run that has a validation split, with this accuracy on it."""
    run = make_run(train_split="train[:45000]", validation_split="train[45000:]", **fields)
    return run | {
        "epochs": run["epochs"] | {"validation": {"epoch": [2], "accuracy": [validation]}}
    }


def make_grid():
    """Return runs whose validation is best at (0.2, 5e-4), and whose test is best elsewhere."""
    return group_by_variant(
        [
            make_validated(
                0.80 + 0.01 * (rate == 0.2) + 0.01 * (decay == 5e-4) + 0.001 * seed,
                accuracy=0.9 - 0.01 * (rate == 0.2),
                learning_rate=rate,
                weight_decay=decay,
                seed=seed,
            )
            for rate in (0.1, 0.2, 0.4)
            for decay in (1e-4, 5e-4)
            for seed in (0, 1)
        ]
    )


def make_averaged(accuracy, averaged, **fields):
    """Return a run with this accuracy, and another one with averaged weights."""
    run = make_run(accuracy=accuracy, ema_decay=0.9, **fields)
    epochs = run["epochs"] | {"test_ema": {"epoch": [1, 2], "accuracy": [0.4, averaged]}}
    return run | {"test_accuracy_ema": averaged, "epochs": epochs}


def make_diverged(recipe="card", **fields):
    run = make_run(recipe, **fields)
    return {name: run[name] for name in ("dataset", "depth", "seed", "config")} | {
        "diverged": "nan"
    }


def make_workdir(folder, *arguments, **fields):
    """Write the config and the summary of a finished run."""
    folder.mkdir(parents=True)
    made = make_summary(*arguments, **fields)
    (folder / "config.json").write_text(json.dumps(made["config"]))
    (folder / "summary.json").write_text(json.dumps(made))


def make_rows(epochs, splits, final_loss=0.05):
    """Return rows of `metrics.jsonl` whose loss falls from ln 10 to `final_loss`."""
    return [
        {
            "epoch": epoch,
            "split": split,
            "loss": math.log(10) * (final_loss / math.log(10)) ** (epoch / epochs[-1]),
            "accuracy": 0.1 + 0.8 * epoch / epochs[-1],
        }
        for epoch in epochs
        for split in splits
    ]


def loader(**files):
    """Return a function that returns the runs of a file of results by its name."""
    return lambda name: files.get(name, [])
