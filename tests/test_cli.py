"""What commands share: help, sentences, a process left as it was; and the page on notebooks."""

import dataclasses
import re
import runpy
import signal
import sys
from pathlib import Path

import jax
import pytest
from absl import flags, logging

from resnet_cifar import __main__, cli
from resnet_cifar.config import Config
from resnet_cifar.data import synthetic
from resnet_cifar.errors import UserError

ROOT = Path(__file__).parents[1]


def command(*argv):
    __main__.main(["resnet_cifar", *argv])


@pytest.mark.parametrize("argv", [[], ["--help"], ["help"]])
def test_without_a_verb_the_verbs_are_listed(argv, capsys):
    command(*argv)
    assert all(re.search(rf"^  {verb} ", capsys.readouterr().out, re.M) for verb in ["train"])


def test_an_unknown_verb_gets_the_nearest():
    with pytest.raises(SystemExit, match="no command 'tarin': did you mean train"):
        command("tarin")


@pytest.mark.parametrize("verb", ["train", "sweep"])
def test_help_shows_every_field_with_its_comment(verb, capsys):
    command(verb, "--config.depth=20", "--help")
    text = " ".join(capsys.readouterr().out.split())
    fixed = {"train": set(), "sweep": {"depth", "dataset", "seed"}}[verb]
    for field in dataclasses.fields(Config):
        name = f"[no]config.{field.name}" if field.type is bool else f"config.{field.name}="
        assert (f"--{name}" in text) == (field.name not in fixed)
    assert "--config.weight_decay=0.0001 Coupled (L2)" in text
    assert "--workdir=" in text and "--[no]dry_run" in text


def test_commands_leave_the_process_as_it_was(capsys):
    def state():
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        fd = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(fd)
        level = logging.get_absl_logger().level
        return handlers, fd, level, sys.stdout, sys.stderr, sys.unraisablehook, len(flags.FLAGS)

    before = state()
    for _ in range(2):
        command("sweep", "--help")
        with pytest.raises(SystemExit, match="give a config"):
            command("train")
        assert state() == before


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("a sentence\nof two lines"), "a sentence\nof two lines"),
        (MemoryError(), r"does not fit into memory: .* \(MemoryError\)"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore"), r"memory: .*Out of memory\)$"),
        (RuntimeError("INTERNAL: Error dispatching computation: Out of memory"), "into memory"),
        (RuntimeError("Unable to initialize backend 'x': no x"), "backend 'x': no x: set JAX_PLAT"),
        (RuntimeError("Could not determine home directory."), "set HOME"),
    ],
)
def test_an_error_that_users_can_fix_is_a_sentence(error, sentence):
    assert re.search(sentence, cli.explain(error))


def test_an_error_of_the_program_is_no_sentence():
    assert cli.explain(ValueError("a bug")) == ""


MODULES = {module: verb for verb, (module, _) in __main__.VERBS.items()}


@pytest.mark.parametrize(("module", "verb"), [*MODULES.items(), ("resnet_cifar.train", "train")])
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
def test_running_the_module_of_a_verb_names_the_command(module, verb):
    with pytest.raises(SystemExit, match=f"the command is python -m resnet_cifar {verb}"):
        runpy.run_module(module, run_name="__main__")


@pytest.mark.parametrize("unusable", ["a file", "no home"])
def test_an_unusable_compile_cache_is_not_fatal(unusable, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "file") if unusable == "a file" else "/dev/null")
    before = jax.config.jax_compilation_cache_dir
    cli.enable_compile_cache()
    assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.slow
def test_the_blocks_of_the_notebook_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(synthetic.SIZES, "train", 300)
    monkeypatch.setitem(synthetic.SIZES, "test", 100)
    page = (ROOT / "docs/notebook.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    exec(compile(code, "docs/notebook.md", "exec"), {"__name__": "page"})
    out = capsys.readouterr().out
    assert "0 runs left" in out and "2.0 test " in out
