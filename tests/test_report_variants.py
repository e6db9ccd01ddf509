"""Names and labels of variants."""

import pytest
from synthetic_runs import make_run, make_summary

from resnet_cifar.report.runs import compact
from resnet_cifar.report.variants import (
    baseline,
    format_value,
    group_by_variant,
    label_variants,
    variant_name,
)


@pytest.mark.parametrize("recipe", ["card", "paper", "strong", "best", "fast"])
@pytest.mark.parametrize("depth", [20, 110])
def test_a_run_by_a_recipe_has_its_name(recipe, depth):
    assert variant_name(make_run(recipe, depth=depth)) == recipe


def test_fields_that_do_not_change_the_training_are_ignored():
    run = make_run(data_dir="/elsewhere", eval_every_epochs=0, checkpoint_every_epochs=3)
    assert variant_name(run) == "card"


def test_overrides_follow_the_nearest_recipe():
    run = make_run("strong", weight_decay=0.1, decay_epochs=(1, 2))
    assert variant_name(run) == "strong with decay_epochs=1,2, weight_decay=0.1"


def test_a_field_that_was_not_saved_has_its_default():
    summary = make_summary()
    del summary["config"]["decay"], summary["config"]["nesterov"]
    assert variant_name(compact(summary)) == "card"


def test_an_unknown_field_is_an_override():
    summary = make_summary()
    summary["config"]["label_smoothing"] = 0.1
    assert variant_name(compact(summary)) == "card with label_smoothing=0.1"


def test_equal_numbers_make_one_variant():
    integers = make_run(num_epochs=6, decay_epochs=(2, 4), seed=0)
    floats = make_run(num_epochs=6.0, decay_epochs=(2.0, 4.0), seed=1)
    half = make_run(num_epochs=6.5, decay_epochs=(2, 4))
    groups = group_by_variant([floats, half, integers])
    assert {name: len(runs) for name, runs in groups.items()} == {
        "card with num_epochs=6, decay_epochs=2,4": 2,
        "card with num_epochs=6.5, decay_epochs=2,4": 1,
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(4.0, "4"), (182.336, "182.336"), (1e-4, "0.0001"), ([], "none"), ("", "none"),
     ((80, 120.0), "80,120"), (False, "False"), (None, "None")],
)  # fmt: skip
def test_values_are_formatted_as_flags(value, text):
    assert format_value(value) == text


def label(*runs):
    shared, short = label_variants(group_by_variant(list(runs)))
    return shared, list(short.values())


def test_a_grid_of_one_recipe_is_labelled_by_what_differs():
    runs = [make_run(batch_size=128, learning_rate=rate) for rate in (0.1, 0.4, 1.2)]
    assert label(*runs) == (
        "recipe card with batch_size=128",
        ["learning_rate=1.2", "learning_rate=0.1", "learning_rate=0.4"],
    )


def test_one_differing_field_is_the_label_even_across_recipes():
    fields = {"decay_epochs": (), "num_epochs": 100}
    runs = [make_run("strong", decay=decay, **fields) for decay in ("cosine", "linear")]
    assert label(*runs)[1] == ["decay=cosine", "decay=linear"]


def test_changes_of_one_thing_are_labelled_by_it():
    changes = [{}, {"cutout": 8}, {"nesterov": True}, {"mixup": 1, "mixup_off_epochs": 4}]
    shared, short = label(*(make_run(num_epochs=20, **fields) for fields in changes))
    assert shared == "recipe card with num_epochs=20, changed as each row says"
    assert short == ["baseline", "cutout=8", "mixup=1, mixup_off_epochs=4", "nesterov=True"]


def test_recipes_are_labelled_by_name_and_own_overrides():
    runs = [
        make_run("card", num_epochs=6),
        make_run("strong", num_epochs=6),
        make_run("strong", num_epochs=6, momentum=0.8),
    ]
    assert label(*runs) == ("num_epochs=6", ["card", "strong", "strong with momentum=0.8"])


def test_a_split_does_not_make_a_run_the_papers():
    splits = {"train_split": "train[:45000]", "validation_split": "train[45000:]"}
    assert label(make_run(**splits, batch_size=512))[0].startswith("recipe card with train_split=")


def test_changes_of_a_field_each_keep_their_baseline_across_recipes():
    # With "ones", the run is as near to the recipe `paper` as to `card`.
    fields = {"warmup_epochs": 0, "batch_size": 128, "learning_rate": 0.1}
    changes = [{}, {"bn_scale_init": "ones"}, {"cutout": 8}, {"mixup": 1}]
    shared, short = label(*(make_run(**fields, **change) for change in changes))
    assert shared.endswith("changed as each row says")
    assert set(short) == {"baseline", "bn_scale_init=ones", "cutout=8", "mixup=1"}


def test_recipes_that_differ_in_much_have_no_baseline():
    runs = [make_run(recipe) for recipe in ("card", "paper", "strong", "best", "fast")]
    assert baseline(group_by_variant(runs)) is None


def test_what_recipes_share_is_said_once():
    splits = {"train_split": "train[:45000]", "validation_split": "train[45000:]"}
    short = {"batch_size": 512, "num_epochs": 20, "warmup_epochs": 1}
    runs = [
        make_run("card", **splits, **short, decay_epochs=(10, 15)),
        make_run("fast", **splits, **short),
        make_run("strong", **splits, **short, learning_rate=0.4),
    ]
    shared, names = label(*runs)
    assert shared == (
        "train_split=train[:45000], validation_split=train[45000:], batch_size=512, "
        "num_epochs=20, warmup_epochs=1"
    )
    assert names == ["card with decay_epochs=10,15", "fast", "strong with learning_rate=0.4"]


def test_a_single_variant_is_labelled_by_its_recipe():
    assert label(make_run(num_epochs=6)) == ("recipe card with num_epochs=6", ["card"])
    assert label() == ("", [])


def test_a_finetuned_run_is_no_run_of_a_recipe():
    run = make_run("strong", dataset="cifar10", depth=20, init_from="runs/other")
    assert variant_name(run) == "strong with init_from=runs/other"
