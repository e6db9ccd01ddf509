"""Validation of a config, and completion of a saved one."""

import dataclasses
import json
import math

import pytest

from resnet_cifar.config import Config, validate, with_defaults
from resnet_cifar.errors import UserError


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
        ({"ema_decay": 1.1}, "config.ema_decay=1.1 is out of range: it must be from 0 to 1"),
        ({"batch_size": 0}, "config.batch_size=0 is out of range: it must be at least 1"),
        ({"decay_epochs": (120, 80)}, "config.warmup_epochs=5, .*decay_epochs=\\(120, 80\\)"),
        ({"decay_epochs": (80, 200)}, "decay_epochs=.* must be in ascending order"),
        (
            {"decay_epochs": (3,)},
            "config.warmup_epochs=5, .*ascending order",
        ),
        ({"decay_epochs": (80, math.nan)}, "config.decay_epochs=\\(80, nan\\) is out of range"),
        (
            {"decay_epochs": ("a", "b")},
            "config.decay_epochs=\\('a', 'b'\\) must be numbers like 80,120, or \\(\\) for none",
        ),
        ({"decay": "cosin"}, "config.decay='cosin' is unknown: did you mean cosine"),
        ({"nesterov": 1}, "config.nesterov=1 must be of type bool"),
        ({"learning_rate": 1e39}, "learning_rate=1e\\+39 is out of range: float32 holds 0 and"),
        ({"learning_rate": 10**400}, "learning_rate=1000.* is out of range"),
        ({"weight_decay": 1e-46}, "weight_decay=1e-46 is out of range: float32 holds 0 and"),
        ({"batch_size": -(10**400)}, "batch_size=-1000.* is out of range"),
        ({"train_split": ""}, "train_split='' names no images: use \"train\""),
        ({"seed": -1}, "config.seed=-1 is out of range"),
        ({"num_devices": -1}, "config.num_devices=-1 is out of range"),
    ],
)
def test_invalid_values_are_errors(fields, message):
    with pytest.raises(UserError, match=message):
        validate(dataclasses.replace(Config(), **fields))


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_decay_epochs_matter_only_for_steps(decay):
    validate(Config(decay=decay, num_epochs=60))
    with pytest.raises(UserError) as error:
        validate(Config(decay=decay, num_epochs=3))
    assert "warmup_epochs=5, config.num_epochs=3" in str(error.value)
    assert "decay_epochs" not in str(error.value)


def test_the_range_of_float32_is_that_of_numpy():
    import numpy as np

    from resnet_cifar.config import FLOAT32

    info = np.finfo(np.float32)
    assert tuple(np.float32(FLOAT32)) == (info.tiny, info.max)
    for value in FLOAT32:
        validate(Config(learning_rate=value))


def as_saved(config):
    return json.loads(json.dumps(dataclasses.asdict(config)))


def test_a_missing_field_equals_its_default():
    for field in dataclasses.fields(Config):
        saved = as_saved(Config())
        del saved[field.name]
        assert with_defaults(saved) == with_defaults(as_saved(Config()))


def test_saved_values_win_over_defaults():
    saved = with_defaults({"depth": 20, "decay_epochs": [3], "unknown": 1})
    assert (saved["depth"], saved["decay_epochs"], saved["unknown"]) == (20, [3.0], 1)


def test_an_int_equals_a_float_to_the_last_character():
    ints = Config(num_epochs=3, decay_epochs=(1, 2))
    floats = Config(num_epochs=3.0, decay_epochs=(1.0, 2.0))
    assert json.dumps(with_defaults(as_saved(ints))) == json.dumps(with_defaults(as_saved(floats)))


def test_a_saved_value_of_a_wrong_type_is_kept():
    saved = {"num_epochs": True, "learning_rate": "x", "momentum": 10**400, "depth": None}
    completed = with_defaults(saved)
    assert {name: completed[name] for name in saved} == saved
    assert completed["num_epochs"] is True
