"""Gathering finished runs, and files of results."""

import json

import pytest
from synthetic_runs import make_run, make_summary, make_workdir

from resnet_cifar.errors import UserError
from resnet_cifar.report.runs import (
    add_runs,
    collect_runs,
    compact,
    completed,
    read_runs,
    read_summary,
    select,
    write_runs,
)


def test_only_finished_runs_are_collected(tmp_path):
    make_workdir(tmp_path / "deep" / "done")
    make_workdir(tmp_path / "interrupted", seed=1)
    (tmp_path / "interrupted" / "summary.json").unlink()
    runs, unfinished = collect_runs(tmp_path)
    assert [run["seed"] for run in runs] == [0] and unfinished == [tmp_path / "interrupted"]


def test_two_runs_of_one_config_are_refused(tmp_path):
    make_workdir(tmp_path / "a", accuracy=0.90, num_epochs=6)
    make_workdir(tmp_path / "b", accuracy=0.95, num_epochs=6.0)
    with pytest.raises(UserError, match=r"a and .*b are runs of the same config"):
        collect_runs(tmp_path)


def test_a_diverged_run_is_collected_with_its_reason(tmp_path):
    make_workdir(tmp_path / "b", seed=1)
    (tmp_path / "b" / "summary.json").unlink()
    (tmp_path / "b" / "diverged.txt").write_text("step 3 has the loss nan\n")
    runs, unfinished = collect_runs(tmp_path)
    assert runs[0]["diverged"] == "step 3 has the loss nan" and not unfinished
    assert completed(runs) == []


@pytest.mark.parametrize("content", ["", "garbage", "[]", "{}", '{"config": {"num_epochs": 160}}'])
def test_a_damaged_summary_is_named(tmp_path, content):
    (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match=r"summary.json can't be read .*move that run away"):
        collect_runs(tmp_path)


@pytest.mark.parametrize("field", ["dataset", "depth", "seed"])
def test_a_config_must_name_data_set_depth_and_seed(field):
    summary = make_summary()
    del summary["config"][field]
    with pytest.raises(KeyError):
        compact(summary)


def test_a_summary_is_none_where_there_is_none(tmp_path):
    assert read_summary(tmp_path) is None
    make_workdir(tmp_path / "run", accuracy=0.123)
    assert read_summary(tmp_path / "run") == make_summary(accuracy=0.123)


def test_compacting_rounds_epochs_and_keeps_the_environment():
    run = compact(make_summary() | {"settings": {"jax_enable_x64": "True"}})
    assert run["epochs"]["train"]["accuracy"] == [0.1235]
    assert run["settings"] == {"jax_enable_x64": "True"} and run["device"] == "Some GPU"
    assert not {"dataset", "depth", "seed", "data_dir"} & run["config"].keys()


def test_a_file_of_results_has_a_line_for_each_run(tmp_path):
    runs = [make_run(seed=seed) for seed in range(3)]
    write_runs(tmp_path / "new" / "x.json", runs)
    lines = (tmp_path / "new" / "x.json").read_text().splitlines()
    assert [json.loads(line.rstrip(","))["seed"] for line in lines[1:-1]] == [0, 1, 2]
    assert read_runs(tmp_path / "new" / "x.json") == runs
    assert read_runs(tmp_path / "absent.json") == []


def test_runs_are_added_in_order_and_once(tmp_path):
    path = tmp_path / "card.json"
    add_runs(path, [make_run(seed=1)])
    add_runs(path, [make_run(seed=0), make_run(seed=1)])
    assert [run["seed"] for run in read_runs(path)] == [0, 1]


def test_a_second_run_of_a_seed_is_refused(tmp_path):
    path = tmp_path / "card.json"
    add_runs(path, [make_run(accuracy=0.93)])
    before = path.read_text()
    with pytest.raises(UserError, match="another run of ResNet56 on cifar10 with seed 0: keep one"):
        add_runs(path, [make_run(accuracy=0.9999)])
    assert path.read_text() == before


def test_a_file_from_before_a_field_existed_still_fits(tmp_path):
    path = tmp_path / "card.json"
    old = make_run()
    del old["config"]["nesterov"]
    write_runs(path, [old])
    add_runs(path, [make_run()])
    assert read_runs(path) == [make_run()]


@pytest.mark.parametrize("content", ["", "[]", '{"runs": [{}]}'])
def test_a_damaged_file_of_results_is_named(tmp_path, content):
    (tmp_path / "card.json").write_text(content)
    with pytest.raises(UserError, match=r"card.json is damaged .*restore it"):
        read_runs(tmp_path / "card.json")


def test_runs_are_selected_by_network_and_data_set():
    runs = [
        make_run(depth=depth, dataset=name)
        for depth in (20, 56)
        for name in ("cifar10", "cifar100")
    ]
    assert select(runs, "cifar100", 20) == [runs[1]]
