"""The flags --config=FILE:RECIPE and --config.FIELD=VALUE, made from the fields of Config."""

import ast
import dataclasses
import difflib
import inspect
import io
import os
import runpy
import sys
import textwrap
import tokenize
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from resnet_cifar.config import Config
from resnet_cifar.errors import UserError

REPOSITORY = Path(__file__).parents[1]


class Numbers(flags.ArgumentParser):
    """Parses 80,120 and (80, 120) and ()."""

    def parse(self, argument: Any) -> tuple[Any, ...]:
        try:
            value = ast.literal_eval(argument) if isinstance(argument, str) else argument
        except (ValueError, SyntaxError):
            raise ValueError("it must be numbers like 80,120, or () for none") from None
        return tuple(value) if isinstance(value, tuple | list) else (value,)


config_flags.register_flag_parser_for_type(tuple[float, ...], Numbers())  # pyright: ignore[reportArgumentType]


def define_file(values: flags.FlagValues) -> None:
    """Define --config."""
    text = "Config file, and a recipe after a colon, as in configs/resnet56.py:paper."
    flags.DEFINE_string("config", None, text, flag_values=values)


def define_require(values: flags.FlagValues) -> None:
    """Define --require, for `devices.require`."""
    text = "Fail unless JAX uses this platform, such as gpu."
    flags.DEFINE_string("require", "", text, flag_values=values)


def override(
    config: Config, arguments: Sequence[str], own: Collection[str] = ()
) -> tuple[Config, dict[str, Any]]:
    """Return a config with some fields overridden, and these fields.

    Args:
      config: left as it is.
      arguments: --config.FIELD=VALUE, in any form that absl accepts.
      own: the command's own flags, for hints.

    Raises:
      UserError: an argument is no such flag, or its value is not of the field's type.
    """
    known = [*own, *(f"config.{field.name}" for field in dataclasses.fields(Config))]
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and name not in known and name.removeprefix("no") not in known:
            raise UserError(unknown_flag(name, known))
    values, argv = flags.FlagValues(), ["", *arguments]
    try:
        config_flags.DEFINE_config_dataclass(
            "config", dataclasses.replace(config), flag_values=values, sys_argv=argv
        )
        rest = values(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(str(error)) from error
    if len(rest) > 1:
        raise UserError(
            f"unexpected argument {rest[1]!r}: flags begin with --, as in --config.seed=1"
        )
    flag: Any = values["config"]
    return flag.value, config_flags.get_override_values(flag)


def read_config(values: flags.FlagValues, arguments: Sequence[str]) -> tuple[Config, str]:
    """Return the config of the command line, and its recipe or "".

    Args:
      values: have --config.
      arguments: override its fields.

    Raises:
      UserError: there is no such file, or it fails; names the file and the line.
    """
    path, _, recipe = (values["config"].value or "").partition(":")
    if not path:
        raise UserError(
            "give a config: --config=configs/resnet56.py, or --config=configs/quickstart.py to try"
        )
    if not Path(path).is_file():
        raise UserError(no_such_file(Path(path)))
    return override(run_file(Path(path), recipe), arguments, [*values])[0], recipe


def run_file(path: Path, recipe: str) -> Config:
    """Return what `get_config` of a file returns; it gets the recipe, if there is one."""
    try:
        with importable(path.absolute().parent):
            get_config = runpy.run_path(str(path), run_name="config").get("get_config")
            if get_config is None:
                raise UserError(f"{path} has no function get_config()")
            if recipe and not inspect.signature(get_config).parameters:
                raise UserError(f"{path} knows no recipes: leave out :{recipe}")
            config = get_config(*[recipe] * bool(recipe))
    except UserError:
        raise
    except Exception as error:  # A config file is a program: anything can be wrong with it.
        raise UserError(f"{error_place(path, error)}: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise UserError(
            f"get_config() of {path} must return a resnet_cifar.config.Config, not {config!r:.80}"
        )
    return config


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let a config file import its neighbours."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def error_place(path: Path, error: Exception) -> str:
    """Return the file, and the line where the error left it."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def no_such_file(path: Path) -> str:
    """Say that there is no such config file, and which one may be meant."""
    name = f"{path.stem}.py"
    for found in (Path("configs", name), REPOSITORY / path, REPOSITORY / "configs" / name):
        if found.is_file():
            return f"there is no config file {path} in {os.getcwd()}: did you mean {found}?"
    family = ", ".join(sorted(file.name for file in (REPOSITORY / "configs").glob("*.py")))
    known = f"configs/ has {family}; " if family else ""
    return f"there is no config file {path}: {known}another depth is --config.depth=50"


def unknown_flag(name: str, names: Collection[str]) -> str:
    """Say that a flag is unknown, and which one may be meant."""
    nearest = nearest_flag(name.removeprefix("config.").replace("-", "_"), names)
    hint = f"did you mean --{nearest}?" if nearest else "--help lists the flags"
    return f"the flag --{name} is unknown: {hint}"


def nearest_flag(word: str, names: Collection[str]) -> str:
    """Return the flag that a word may mean: `seed` and `lr` are fields, `lerning_rate` a typo."""
    flag = {name.removeprefix("config."): name for name in names}
    initials = {"".join(part[0] for part in name.split("_")): name for name in flag if "_" in name}
    close = difflib.get_close_matches(word, flag, n=1, cutoff=0.5)
    likely = word if word in flag else initials.get(word, close[0] if close else "")
    return flag.get(likely, "")


def field_comments() -> list[tuple[str, str]]:
    """Return (field, comment) in the order of Config's source, and ("", heading) between them."""
    source = textwrap.dedent(inspect.getsource(Config))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    lines = ["", *source.splitlines()]
    fields = {
        line: node.target.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    found: list[tuple[str, str]] = []
    for line in sorted({*comments, *fields}):
        name, comment = fields.get(line, ""), comments.get(line, "")
        continues = not name and lines[line - 1].strip() != ""  # No blank line before it.
        if found and found[-1][0] and (continues or name == found[-1][0]):
            found[-1] = (found[-1][0], f"{found[-1][1]} {comment}".strip())
        else:
            found.append((name, comment))
    return found


def help_lines(values: flags.FlagValues, hidden: Collection[str] | None) -> list[str]:
    """Return one line for each flag: a command's own, then the fields of the config.

    Args:
      values: the command's own flags.
      hidden: fields that can't be overridden; None if none can.
    """
    lines = ["Flags (--flagfile=FILE reads more of them from a file):"]
    lines += [flag_lines(name, values[name].default, values[name].help) for name in values]
    if hidden is None:
        return lines
    lines.append("\nFields of the config, with the defaults of Config (a config file sets others):")
    for name, comment in field_comments():
        if not name:
            lines.append(f"\n{comment}")
        elif name not in hidden:
            lines.append(flag_lines(f"config.{name}", getattr(Config, name), comment))
    return lines


def flag_lines(name: str, default: Any, text: str | None) -> str:
    """Return a flag with its default value and its help, wrapped."""
    value = "" if default is None else default
    value = f"{value:g}" if isinstance(value, float) else value
    value = ",".join(map(str, value)) if isinstance(value, tuple | list) else value
    name = f"  --[no]{name}" if isinstance(default, bool) else f"  --{name}={value}"
    indent = " " * 36
    filled = textwrap.fill(text or "", 100, initial_indent=indent, subsequent_indent=indent)
    return f"{name:<35} {filled[36:]}" if len(name) < 36 else f"{name}\n{filled}"
