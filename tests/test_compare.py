"""Runs, or groups of runs, beside each other."""

import re

import pytest
from synthetic_runs import make_workdir

from resnet_cifar import __main__
from resnet_cifar.compare import compare
from resnet_cifar.errors import UserError


@pytest.fixture
def groups(tmp_path):
    for seed in (0, 1):
        make_workdir(tmp_path / "a" / f"seed{seed}", "card", 0.90 + 0.01 * seed, seed=seed)
        make_workdir(
            tmp_path / "b" / f"seed{seed}", "card", 0.91 + 0.01 * seed, seed=seed, momentum=0.5
        )
    return tmp_path / "a", tmp_path / "b"


def test_groups_are_compared_seed_by_seed(groups, tmp_path, capsys):
    a, b = groups
    compare(groups, tmp_path / "curves.png")
    out = capsys.readouterr().out
    assert "| runs | momentum | validation accuracy (%) | test accuracy (%), seeds |" in out
    assert f"| {a} | 0.9 | - | 90.50 ± 0.71 (2) |" in out
    assert f"| {b} over {a} | +1.00 ± 0.00 (2) | 0 |" in out
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_networks_of_different_depths_are_compared(tmp_path, capsys):
    make_workdir(tmp_path / "a", depth=20)
    make_workdir(tmp_path / "b", depth=56)
    compare([tmp_path / "a", tmp_path / "b"])
    out = capsys.readouterr().out
    assert "| runs | depth |" in out
    assert "No interval for" in out and "needs two or more seeds" in " ".join(out.split())


def test_paths_without_runs_are_refused(groups, tmp_path):
    with pytest.raises(UserError, match="has no finished run"):
        compare([groups[0], tmp_path / "nowhere"])
    with pytest.raises(UserError, match="two or more different folders"):
        compare([groups[0]])


def test_the_command_compares(groups, capsys):
    __main__.main(["resnet_cifar", "compare", *map(str, groups)])
    assert re.search(r"\+1\.00", capsys.readouterr().out)
    with pytest.raises(SystemExit, match=r"--outptu=x' is unknown|unknown"):
        __main__.main(["resnet_cifar", "compare", "--outptu=x", *map(str, groups)])
