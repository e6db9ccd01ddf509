"""Tables of the documents from synthetic runs."""

from synthetic_runs import loader, make_averaged, make_diverged, make_run

from resnet_cifar.report.tables import (
    accuracy_cell,
    comparison_table,
    family_table,
    gain_cell,
    origin,
    peers_table,
    recipes_table,
)


def make_peer(**fields):
    return {
        "dataset": "cifar10", "name": "them", "url": "https://x.org", "accuracy": {"56": 93.1},
        "recipe": "200 epochs", "selection": "one run", **fields,
    }  # fmt: skip


def test_an_accuracy_counts_its_runs_and_divergences():
    runs = [make_run(accuracy=0.90), make_run(accuracy=0.92, seed=1)]
    lost = [make_diverged(seed=2)]
    assert accuracy_cell(runs, "cifar10", 56) == "91.00 ± 1.41 (2)"
    assert accuracy_cell(runs[:1] + lost, "cifar10", 56) == "90.00 (1; 1 diverged)"
    assert accuracy_cell(lost, "cifar10", 56) == "all 1 diverged"
    assert accuracy_cell(runs, "cifar10", 20) == accuracy_cell(runs, "cifar100", 56) == "-"


def test_a_gain_is_in_points_with_its_interval():
    ours = [make_run("strong", 0.93 + 0.01 * seed, seed=seed) for seed in (0, 1, 2)]
    baseline = [make_run("card", 0.92 + 0.009 * seed, seed=seed) for seed in (0, 1, 2)]
    # Gains of 1.0, 1.1 and 1.2 points: t * deviation / sqrt(n) = 4.303 * 0.1 / 1.732.
    assert gain_cell(ours, baseline) == "+1.10 ± 0.25 (3)"
    assert gain_cell(ours, []) == "-"


def test_rows_without_runs_are_not_shown_but_named():
    lines = family_table(loader(), ["card", "fast"], "")
    assert len([line for line in lines if line.startswith("|")]) == 3
    assert lines[-1] == "Not measured yet: `card` and `fast` on CIFAR-10 and CIFAR-100."
    assert comparison_table(loader()) == [
        "Not measured yet: `strong` over `card` and `fast` over `card` on CIFAR-10 and CIFAR-100."
    ]


def test_rows_with_runs_are_shown_and_the_rest_named():
    load = loader(card=[make_run(depth=20)], strong=[make_diverged("strong")])
    lines = family_table(load, ["card", "strong"], "../")
    assert lines[0] == "|  | ResNet20 | ResNet56 |"
    assert "| CIFAR-10 accuracy (%), `card` | 90.00 (1) | - |" in lines
    assert "| CIFAR-10 accuracy (%), `strong` | - | all 1 diverged |" in lines
    assert " ".join(lines).endswith(
        "Not measured yet: ResNet32, ResNet44, ResNet56 and ResNet110 by `card` and ResNet20, "
        "ResNet32, ResNet44 and ResNet110 by `strong` on CIFAR-10; `card` and `strong` on "
        "CIFAR-100."
    )


def test_the_paper_and_the_card_stand_beside_our_accuracies():
    names = ["He et al. 2015", "Composer's model card", "someone else"]
    peers = [make_peer(name=name, accuracy={"20": 91.25, "56": 93.1}) for name in names]
    lines = family_table(loader(card=[make_run()]), ["card"], "", peers)
    assert [line for line in lines if "93.10" in line] == [
        f"| CIFAR-10 accuracy (%), [{name}](https://x.org) | 93.10 |" for name in names[:2]
    ]


def test_the_weights_have_a_row_where_there_are_any():
    weights = {"resnet56-cifar10": 0.9249, "resnet20-cifar100": 0.7}
    lines = family_table(loader(card=[make_run()]), ["card"], "../", weights=weights)
    assert [line for line in lines if "weights" in line] == [
        "| CIFAR-10 accuracy (%), [weights](../weights/README.md) of seed 0 by `evaluate` | 92.49 |"
    ]


def test_times_have_a_row_for_each_device():
    runs = [make_run("fast"), make_run("fast", seed=1) | {"device": "Another GPU"}]
    lines = family_table(loader(fast=runs), ["fast"], "")
    for device in ("Some GPU", "Another GPU"):  # 60 s of training and 1 s of evaluation.
        assert f"| seconds of training and evaluation, `fast` on {device} | 61 |" in lines


def test_the_comparison_is_with_the_recipe_card():
    card = [make_run("card", 0.90 + 0.01 * seed, seed=seed) for seed in (0, 1)]
    strong = [make_run("strong", 0.91 + 0.01 * seed, seed=seed) for seed in (0, 1)]
    lines = comparison_table(loader(card=card, strong=strong))
    assert lines[2] == "| CIFAR-10, `strong` over `card` | +1.00 ± 0.00 (2) |"
    assert lines[-1] == (
        "Not measured yet: `fast` over `card` on CIFAR-10 and CIFAR-100; "
        "`strong` over `card` on CIFAR-100."
    )


def test_peers_stand_below_our_own_rows():
    lines = peers_table(loader(card=[make_run()]), [make_peer()], "")
    assert lines[2:4] == [
        "| **this project, `card`** | - | - | - | 90.00 (1) | - | 160 epochs, batch 1024 "
        "| last epoch, mean of all seeds |",
        "| [them](https://x.org) |  |  |  | 93.10 |  | 200 epochs | one run |",
    ]


def test_averaged_weights_have_a_row_above_the_others():
    runs = [make_averaged(0.5 + 0.01 * s, 0.6 + 0.02 * s, seed=s) for s in (0, 1)]
    rows = family_table(loader(best=runs), ["best"], "")
    name = "| CIFAR-10 accuracy (%), `best`"
    result = rows.index(f"{name} | 61.00 ± 1.41 (2) |")
    assert rows[result + 1] == f"{name} without averaging | 50.50 ± 0.71 (2) |"


def test_the_recipes_table_has_what_recipes_change():
    lines = recipes_table()
    assert "| `num_epochs` | 160 | 182.336 | 200 | 300 | 40 |" in lines
    assert "| `decay_epochs` | 80,120 | 91.168,136.752 | none | none | none |" in lines
    names = [line.split("`")[1] for line in lines if line.startswith("| `")]
    assert "momentum" in names and "label_smoothing" not in names and "seed" not in names
    assert lines[-1] == "ResNet110 by `paper` has `warmup=constant`, `warmup_epochs=1.14`."


def test_the_origin_names_device_version_and_dates():
    runs = [make_run(), make_run(seed=1) | {"date": "2026-12-01"}, make_diverged(seed=2)]
    assert origin(loader(card=runs), ["card", "fast"], "../") == [
        "[card.json](../results/card.json): 2 runs, Some GPU, jax 0.11.2, 2026-11-23 to 2026-12-01."
    ]
