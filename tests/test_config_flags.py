"""Config files and the flags that override their fields."""

from pathlib import Path

import pytest
from absl import flags

from resnet_cifar.cli import parse
from resnet_cifar.config import Config
from resnet_cifar.config_flags import define_file, read_config, run_file
from resnet_cifar.errors import UserError

ROOT = Path(__file__).parents[1]
QUICK = f"--config={ROOT}/configs/quickstart.py"


def read(*argv):
    values = flags.FlagValues()
    define_file(values)
    return read_config(values, parse(values, ["command", *argv]))


@pytest.mark.parametrize(
    ("flag", "field", "value"),
    [
        ("--config.seed=3", "seed", 3),
        ("--config.learning_rate=1e-2", "learning_rate", 0.01),
        ("--config.nesterov", "nesterov", True),
        ("--noconfig.nesterov", "nesterov", False),
        ("--config.decay_epochs=2,3.5", "decay_epochs", (2, 3.5)),
        ("--config.decay_epochs=(2, 3.5)", "decay_epochs", (2, 3.5)),
        ("--config.decay_epochs=1.5", "decay_epochs", (1.5,)),
        ("--config.decay_epochs=()", "decay_epochs", ()),
    ],
)
def test_a_flag_overrides_a_field_before_or_after_the_file(flag, field, value):
    for argv in ([QUICK, flag], [flag, QUICK]):
        config, recipe = read(*argv)
        assert (getattr(config, field), config.depth, recipe) == (value, 8, "")


def test_a_flagfile_may_hold_everything(tmp_path):
    (tmp_path / "inner").write_text("# A comment.\n--config.depth=14\n")
    (tmp_path / "outer").write_text(f"{QUICK}\n--flagfile={tmp_path / 'inner'}\n")
    config, _ = read("--flagfile", str(tmp_path / "outer"), "--config.seed", "5")
    assert (config.depth, config.seed, config.dataset) == (14, 5, "synthetic")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--seed=3", "--seed is unknown: did you mean --config.seed?"),
        ("--config.lr=3", "did you mean --config.learning_rate?"),
        ("--config.wd=3", "did you mean --config.weight_decay?"),
        ("--epochs=3", "did you mean --config.num_epochs?"),
        ("--qqqqqq", "--help lists the flags"),
        ("--config.decay_epochs=", r"numbers like 80,120, or \(\) for none"),
        ("--config.seed=x", "config.seed=x"),
        ("--flagfile=nowhere", "Unable to open flagfile"),
        ("rest", "unexpected argument 'rest'"),
    ],
)
def test_a_wrong_flag_gets_a_hint(flag, message):
    with pytest.raises(UserError, match=message):
        read(QUICK, flag)


@pytest.mark.parametrize("path", ["resnet20", "resnet20.py", "configs/resnet20.py"])
def test_a_missing_config_file_gets_a_hint(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"in {tmp_path}: did you mean {ROOT}/configs/resnet20.py"):
        read(f"--config={path}")


def test_a_config_file_gets_its_recipe_and_its_neighbours(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.modules", dict(__import__("sys").modules))
    (tmp_path / "values_beside.py").write_text("LR = 0.05\n")
    path = tmp_path / "mine.py"
    path.write_text(
        "from values_beside import LR\nfrom resnet_cifar.recipes import make_config\n"
        "def get_config(recipe='card'): return make_config(recipe, learning_rate=LR)\n"
    )
    assert run_file(path, "").learning_rate == run_file(path, "strong").learning_rate == 0.05
    assert run_file(path, "strong").decay == "cosine" and run_file(path, "").decay == "steps"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config():\n    return 1 / 0", "mine.py, line 2: ZeroDivisionError: division"),
        ("import nowhere", "mine.py, line 1: ModuleNotFoundError: No module named 'nowhere'"),
        ("x = (", r"mine.py: SyntaxError: .*line 1\)"),
        ("", r"mine.py has no function get_config\(\)"),
        ("get_config = dict", r"mine.py must return a resnet_cifar.config.Config, not \{\}"),
    ],
)
def test_an_error_in_a_config_file_names_file_and_line(text, message, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=message):
        run_file(tmp_path / "mine.py", "")


def test_config_files_return_configs():
    for path in sorted((ROOT / "configs").glob("*.py")):
        assert isinstance(run_file(path, ""), Config)
