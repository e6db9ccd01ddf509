"""The recipes, the config files, and what is wrong with a config."""

import dataclasses
import importlib.util
import math
from pathlib import Path

import pytest

from resnet_cifar.config import Config, validate
from resnet_cifar.errors import UserError
from resnet_cifar.plan import Plan, make_plan
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
        *(f"resnet{depth}" for depth in (20, 32, 44, 56, 110)),
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_and_recipe_is_valid(path):
    for recipe in [()] if path.stem == "quickstart" else [(), *((name,) for name in RECIPES)]:
        config = get_config(path, *recipe)
        validate(config)
        assert path.stem in ("quickstart", f"resnet{config.depth}")
        assert path.read_text().startswith(f'"""ResNet{config.depth}')


def test_the_card_is_the_default_and_comes_to_7680_steps():
    config = get_config(CONFIGS[-1])
    assert config == make_config("card", depth=config.depth)
    assert make_plan(config) == Plan(48, 7_680, 240, (3_840, 5_760))
    assert (config.learning_rate, config.momentum, config.weight_decay, config.batch_size) == (
        1.2,
        0.9,
        1e-4,
        1024,
    )
    assert (config.bn_scale_init, config.shortcut, config.train_split) == ("uniform", "A", "train")


@pytest.mark.parametrize(
    ("depth", "warmup_steps"), [(20, 0), (32, 0), (44, 0), (56, 0), (110, 400)]
)
def test_the_paper_recipe_comes_to_64000_steps(depth, warmup_steps):
    config = get_config(CONFIGS[0].with_name(f"resnet{depth}.py"), "paper")
    assert make_plan(config) == Plan(351, 64_000, warmup_steps, (32_000, 48_000))
    assert (config.learning_rate, config.weight_decay, config.bn_scale_init) == (0.1, 1e-4, "ones")
    assert (config.train_split, config.validation_split) == ("train[:45000]", "train[45000:]")
    assert config.warmup == ("constant" if depth == 110 else "linear")


@pytest.mark.parametrize(
    ("recipe", "plan"), [("strong", (195, 39_000, 975, ())), ("fast", (97, 3_880, 485, ()))]
)
def test_the_other_recipes_fall_all_the_way(recipe, plan):
    config = make_config(recipe, depth=56)
    assert make_plan(config) == Plan(*plan)
    assert config.nesterov and config.decay != "steps" and config.weight_decay == 5e-4


def test_decay_epochs_are_for_a_decay_in_steps():
    config = Config(
        decay="cosine", num_epochs=60
    )  # The default's second decay would come after the end.
    validate(config)
    assert make_plan(config).decay_steps == ()


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UserError, match="recipe='papre' is unknown: did you mean paper"):
        make_config("papre")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 21}, "config.depth=21 is not 6n \\+ 2 .* 20 and 26"),
        ({"depth": True}, "config.depth=True must be of type int"),
        ({"depth": 20.0}, "config.depth=20.0 must be of type int"),
        ({"dataset": "cifar11"}, "config.dataset='cifar11' is unknown: did you mean cifar10"),
        ({"shortcut": "C"}, "config.shortcut='C' is unknown: the choices are A, B"),
        ({"dtype": "float16"}, "config.dtype='float16' is unknown: did you mean bfloat16"),
        (
            {"learning_rate": math.nan},
            "config.learning_rate=nan is out of range: it must be at least 0",
        ),
        ({"learning_rate": -1.0}, "config.learning_rate=-1.0 is out of range"),
        ({"learning_rate": math.inf}, "config.learning_rate=inf is out of range"),
        ({"learning_rate": "fast"}, "config.learning_rate='fast' must be of type float"),
        (
            {"num_epochs": 1e30},
            "config.num_epochs=1e\\+30 is out of range: it must be from 0 to 1000000",
        ),
        ({"momentum": 1.5}, "config.momentum=1.5 is out of range: it must be from 0 to 1"),
        ({"batch_size": 0}, "config.batch_size=0 is out of range: it must be at least 1"),
        ({"decay_epochs": (120, 80)}, "milestones out of order: .*decay_epochs=\\(120, 80\\)"),
        ({"decay_epochs": (80, 200)}, "milestones out of order"),
        ({"decay_epochs": (3,)}, "milestones out of order: warmup_epochs=5"),
        ({"decay_epochs": (80, math.nan)}, "config.decay_epochs=\\(80, nan\\) is out of range"),
        (
            {"decay_epochs": ("a", "b")},
            "config.decay_epochs=\\('a', 'b'\\) must be numbers like 80,120",
        ),
        ({"decay": "cosin"}, "config.decay='cosin' is unknown: did you mean cosine"),
        ({"nesterov": 1}, "config.nesterov=1 must be of type bool"),
        ({"seed": -1}, "config.seed=-1 is out of range"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(fields, message):
    with pytest.raises(UserError, match=message):
        validate(dataclasses.replace(Config(), **fields))


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(
        UserError, match=r"config.batch_size=1024 is larger than the 1,000 training images"
    ):
        make_plan(Config(train_split="train[:1000]"))


@pytest.mark.parametrize(
    "fields", [{"num_epochs": 0.001, "decay_epochs": ()}, {"decay_epochs": (80, 80.001)}]
)
def test_milestones_on_the_same_step_are_refused(fields):
    with pytest.raises(UserError, match="fall on the same of 48 steps an epoch"):
        make_plan(Config(warmup_epochs=0, **fields))


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        ("test", "", r"config.train_split='test' must be a part of train"),
        ("train", "test[:100]", r"config.validation_split='test\[:100\]' must be a part of train"),
        (
            "train",
            "train[45000:]",
            r"config.train_split='train' and config.validation_split='train\[45000:\]' overlap",
        ),
        ("train[:45001]", "train[45000:]", "overlap"),
        ("train[:60000]", "", r"reaches beyond the 50,000 images"),
    ],
)
def test_training_never_sees_what_it_is_scored_on(train, validation, message):
    with pytest.raises(UserError, match=message):
        make_plan(Config(train_split=train, validation_split=validation))
