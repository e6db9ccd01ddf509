"""Tables of a grid from synthetic runs."""

from synthetic_runs import make_averaged, make_run

from resnet_cifar.report.variant_tables import variants_table
from resnet_cifar.report.variants import group_by_variant


def test_what_all_variants_share_is_stated_once():
    groups = group_by_variant([
        make_run(recipe, 0.4 + 0.1 * (recipe == "strong") + 0.01 * seed, seed=seed, num_epochs=6)
        for recipe in ("card", "strong") for seed in (0, 1)
    ])  # fmt: skip
    assert variants_table(groups) == [
        "All runs: num_epochs=6.", "",
        "| variant | data | network | test accuracy (%), seeds | seconds of training and "
        "evaluation |",
        "|---|---|---|---|---|",
        "| card | cifar10 | ResNet56 | 40.50 ± 0.71 (2) | 61 |",
        "| strong | cifar10 | ResNet56 | 50.50 ± 0.71 (2) | 61 |", "",
        "Not ranked, for lack of a validation split on all runs: `train_split=train[:45000]`,",
        "`validation_split=train[45000:]`.", "",
        "| gain | data | network | points, 95 % interval, pairs | more seeds for ± 0.2 |",
        "|---|---|---|---|---|",
        "| strong over card | cifar10 | ResNet56 | +10.00 ± 0.00 (2) | 0 |",
    ]  # fmt: skip


def test_averaged_weights_are_the_result_and_the_others_are_shown():
    averages = [make_averaged(0.5 + 0.01 * s, 0.6 + 0.02 * s, seed=s) for s in (0, 1)]
    lines = variants_table(group_by_variant([*averages, *(make_run(seed=s) for s in (0, 1))]))
    assert "| test accuracy (%), seeds | without averaging |" in lines[2]
    for decay, result, raw in (
        ("0", "90.00 ± 0.00 (2)", ""),
        ("0.9", "61.00 ± 1.41 (2)", "50.50 ± 0.71 (2)"),
    ):
        assert f"| ema_decay={decay} | cifar10 | ResNet56 | {result} | {raw} | 61 |" in lines
    said = "With `ema_decay`, the accuracies are of the averaged weights; `without averaging` is"
    assert said in " ".join(lines)
    assert lines[-1].endswith("| -29.00 ± 12.71 (2) | 193 |")


def test_gains_have_the_labels_of_their_variants():
    runs = [make_run(seed=s, weight_decay=w) for s in (0, 1) for w in (1e-3, 1e-4)]
    lines = variants_table(group_by_variant(runs))
    assert lines[0] == "All runs: recipe card."
    assert lines[-1].startswith("| weight_decay=0.001 over weight_decay=0.0001 | cifar10 |")
