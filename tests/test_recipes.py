"""The recipes and the config files."""

import importlib.util
from pathlib import Path

import pytest

from resnet_cifar.config import Config, validate
from resnet_cifar.errors import UserError
from resnet_cifar.recipes import RECIPES, make_config

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def get_config(path, *recipe) -> Config:
    spec = importlib.util.spec_from_file_location("config", path)
    assert spec and spec.loader
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module.get_config(*recipe)


def test_there_is_a_config_for_each_member_of_the_family():
    assert {path.stem for path in CONFIGS} == {
        "quickstart",
        "short",
        *(f"resnet{depth}" for depth in (20, 32, 44, 56, 110)),
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_and_recipe_is_valid(path):
    for recipe in [()] if path.stem == "quickstart" else [(), *((name,) for name in RECIPES)]:
        config = get_config(path, *recipe)
        validate(config)
        assert path.stem in ("quickstart", "short", f"resnet{config.depth}")
        assert path.read_text().startswith(f'"""ResNet{config.depth}')


def test_the_card_is_the_default():
    config = get_config(CONFIGS[0].with_name("resnet56.py"))
    assert config == make_config("card", depth=config.depth)
    assert (config.learning_rate, config.momentum, config.weight_decay, config.batch_size) == (
        1.2,
        0.9,
        1e-4,
        1024,
    )
    assert (config.bn_scale_init, config.shortcut, config.train_split) == ("uniform", "A", "train")


def test_short_runs_scale_rate_and_lengths_and_keep_the_rest():
    path = CONFIGS[0].with_name("short.py")
    card, best = get_config(path), get_config(path, "best")
    assert (card.learning_rate, best.learning_rate) == (0.6, 0.4)  # 1.2 / 1024 and 0.2 / 256.
    assert (card.decay_epochs, card.ema_decay, card.weight_decay) == ((10, 15), 0, 1e-4)
    assert (best.decay, best.ema_decay, best.weight_decay) == ("cosine", 0.99, 5e-4)
    assert (best.mixup, best.mixup_off_epochs) == (1.0, 2)


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
def test_the_paper_recipe_is_that_of_he_et_al(depth):
    config = get_config(CONFIGS[0].with_name(f"resnet{depth}.py"), "paper")
    assert (config.learning_rate, config.weight_decay, config.bn_scale_init) == (0.1, 1e-4, "ones")
    assert (config.train_split, config.validation_split) == ("train[:45000]", "train[45000:]")
    assert config.warmup == ("constant" if depth == 110 else "linear")


@pytest.mark.parametrize("recipe", ["strong", "best", "fast"])
def test_the_recipes_for_accuracy_and_speed_decay_to_zero(recipe):
    config = make_config(recipe, depth=56)
    assert config.nesterov and config.decay != "steps" and config.weight_decay == 5e-4


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="recipe='papre' is unknown: did you mean paper"):
        make_config("papre")
