"""A workdir belongs to one config and to one process at a time."""

import dataclasses
import json
import os
import socket

import pytest

from resnet_cifar import workdir
from resnet_cifar.config import Config
from resnet_cifar.errors import UserError
from resnet_cifar.workdir import check_resumable, check_workdir, claimed, run_name


def test_a_workdir_may_be_relative_or_at_home(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert check_workdir("runs/a b", tiny) == tmp_path / "runs" / "a b"
    assert check_workdir("~/runs", tiny) == tmp_path / "home" / "runs"


def test_a_home_that_is_unknown_is_a_sentence(tiny):
    with pytest.raises(UserError, match="give an absolute path"):
        check_workdir("~nobody-of-this-name/runs", tiny)


def test_checking_writes_nothing(tiny, tmp_path):
    check_workdir(tmp_path / "new", tiny)
    assert not list(tmp_path.iterdir())


def test_a_second_process_is_refused(tiny, tmp_path):
    owner = f"in use by process {os.getpid()} on {socket.gethostname()}: .* --workdir"
    with claimed(tmp_path, tiny), pytest.raises(UserError, match=owner):
        check_workdir(tmp_path, tiny)
    check_workdir(tmp_path, tiny)


def test_the_lock_of_a_dead_process_is_free(tiny, tmp_path):
    (tmp_path / "lock").write_text("process 1 on a host that is gone")
    with claimed(tmp_path, tiny):
        pass


def test_a_lock_that_cannot_be_opened_is_a_sentence(tiny, tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(UserError, match="can't be written"):
        check_workdir(tmp_path, tiny)


def test_a_system_without_fcntl_is_a_sentence(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "fcntl", None)
    with pytest.raises(UserError, match="use Linux, macOS, or WSL"):
        check_workdir(tmp_path, tiny)


def test_a_path_through_a_file_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't be (read|written)"):
        check_workdir(tmp_path / "file" / "run", tiny)


def test_rows_without_a_config_are_refused(tiny, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"without its config.json"):
        check_workdir(tmp_path, tiny)


@pytest.mark.parametrize("content", ["[1]", "{}", "nonsense"])
def test_a_file_that_is_no_config_is_refused(tiny, tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config.json (is not the config|can't be read)"):
        check_workdir(tmp_path, tiny)


def saved(config, **changes):
    return json.loads(json.dumps(dataclasses.asdict(config))) | changes


def test_a_field_at_its_default_equals_a_missing_field(tiny, tmp_path):
    old = saved(tiny)
    del old["decay"], old["nesterov"]
    check_resumable(tmp_path, old, tiny)
    with pytest.raises(UserError, match="nesterov is False there and True here"):
        check_resumable(tmp_path, old, dataclasses.replace(tiny, nesterov=True))


def test_an_unknown_field_is_refused(tiny, tmp_path):
    with pytest.raises(UserError, match=r"dropout is 0\.5 there and None here"):
        check_resumable(tmp_path, saved(tiny, dropout=0.5), tiny)


def test_num_epochs_can_be_raised_with_decay_steps_only(tmp_path):
    config = Config(num_epochs=200)
    check_resumable(tmp_path, saved(config, num_epochs=160), config)
    with pytest.raises(
        UserError, match=r"num_epochs is 240\.0 there and 200\.0 here, and can only"
    ):
        check_resumable(tmp_path, saved(config, num_epochs=240), config)
    for decay in ("cosine", "linear"):
        config = dataclasses.replace(config, decay=decay)
        with pytest.raises(UserError, match=f"decay='{decay}' depends on it from the first step"):
            check_resumable(tmp_path, saved(config, num_epochs=160), config)


def test_the_config_is_written_once_and_kept(tiny, tmp_path):
    with claimed(tmp_path, tiny) as before:
        assert before["depth"] == 8
    with claimed(tmp_path, dataclasses.replace(tiny, eval_every_epochs=7)) as before:
        assert before["eval_every_epochs"] == 1


def test_runs_are_named_by_what_they_are():
    assert run_name("card", Config()) == "resnet56-cifar10-seed0"
    assert run_name("paper", Config(seed=3)) == "resnet56-cifar10-paper-seed3"
