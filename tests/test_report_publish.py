"""The report, from workdirs to files of results, pictures and pages."""

import json
from pathlib import Path

import pytest
from synthetic_runs import make_run, make_workdir

from resnet_cifar.errors import UserError
from resnet_cifar.report.publish import add_to_recipes, find_root, publish, report
from resnet_cifar.report.runs import read_runs
from resnet_cifar.report.variants import group_by_variant, run_key

SECTIONS = ("card", "family", "pictures", "comparison", "peers")
PAGE = "".join(f"<!-- {name}: begin -->\nold\n<!-- {name}: end -->\n" for name in SECTIONS)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "clone"
    (folder / "docs").mkdir(parents=True)
    (folder / "results").mkdir()
    for name in ("README.md", "docs/model_card.md"):
        (folder / name).write_text(PAGE)
    return folder


def test_a_report_fills_the_clone_that_holds_the_workdir(root, capsys):
    for seed in (0, 1):
        accuracy = 0.93 + 0.002 * seed
        make_workdir(root / "runs" / f"seed{seed}", accuracy=accuracy, seed=seed)
    report(root / "runs")
    first = capsys.readouterr().out
    report(root / "runs")
    second = capsys.readouterr().out
    assert "| card | cifar10 | ResNet56 | 93.10 ± 0.14 (2) | 61 |" in first
    assert "wrote README.md" in first and "wrote" not in second
    assert "93.10 ± 0.14 (2)" in (root / "README.md").read_text()
    assert "](../results/card.png)" in (root / "docs" / "model_card.md").read_text()


def test_finetuned_runs_and_own_images_stay_out_of_the_card(root, capsys):
    make_workdir(root / "runs" / "a", init_from="runs/other")
    make_workdir(root / "runs" / "b", dataset="/home/me/cifar10")
    report(root / "runs")
    out = capsys.readouterr().out
    assert "not in the model card: card with init_from=runs/other (1)" in out
    assert "not in the model card: card (1)" in out
    assert list((root / "results").glob("*.json")) == []


def test_an_output_takes_all_runs_and_needs_no_clone(tmp_path):
    make_workdir(tmp_path / "runs" / "a")
    make_workdir(tmp_path / "runs" / "b", weight_decay=0.1)
    output = tmp_path / "report.json"
    report(tmp_path / "runs", output=output)
    assert len(read_runs(output)) == 2 and output.with_suffix(".png").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "report.json", "report.png"}


def test_an_output_leaves_the_files_of_recipes_alone(root):
    make_workdir(root / "runs" / "a")
    report(root / "runs", output=root / "runs" / "report.json")
    assert list((root / "results").iterdir()) == []


def test_a_workdir_elsewhere_is_reported_into_the_named_root(root, tmp_path):
    make_workdir(tmp_path / "elsewhere" / "a")
    report(tmp_path / "elsewhere", root=root)
    assert len(read_runs(root / "results" / "card.json")) == 1


def test_the_root_is_the_nearest_marked_readme(root):
    inner = root / "runs" / "inner"
    inner.mkdir(parents=True)
    (root / "runs" / "README.md").write_text("not marked\n")
    assert find_root(inner, None) == root
    (inner / "README.md").write_text(PAGE)
    assert find_root(inner, None) == inner
    assert find_root(inner, root) == root


def test_pages_are_made_again_in_a_clone_without_runs(root, capsys):
    report(root / "runs")
    out = capsys.readouterr().out
    assert f"no run below {root / 'runs'} has finished" in out and "wrote README.md" in out
    assert "old" not in (root / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workdir": "."}, "in no clone of the repository: name one with --root"),
        ({"workdir": "clone/runz"}, "--workdir=.*runz is not a folder"),
        ({"workdir": "runz"}, "--workdir=.*runz is not a folder"),
        ({"workdir": ".", "root": "."}, "--root=.* must be a clone"),
        ({"workdir": ".", "output": "card.json"}, "must not have the name of a recipe"),
        ({"workdir": ".", "output": "picture.png"}, "must end in .json"),
        ({"workdir": ".", "output": "x.json"}, "nothing to write to .*x.json"),
        ({"workdir": ".", "output": "peers.json"}, "exists and is not a file of runs"),
    ],
)
def test_a_wrong_argument_is_named_and_nothing_written(tmp_path, root, arguments, message):
    (tmp_path / "peers.json").write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match=message):
        report(**{name: tmp_path / value for name, value in arguments.items()})
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_file_that_cannot_be_written_is_an_error_for_users(tmp_path):
    make_workdir(tmp_path / "runs" / "a")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the report can't be written"):
        report(tmp_path / "runs", output=tmp_path / "file" / "x.json")


def test_only_runs_by_a_recipe_enter_the_card(tmp_path, capsys):
    runs = [
        make_run(seed=1),
        make_run(seed=0),
        make_run(num_epochs=2, warmup_epochs=1, decay_epochs=()),
        make_run(depth=8),
        make_run(dataset="synthetic"),
    ]
    add_to_recipes(group_by_variant(runs), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["card.json"]
    stored = [run_key(run) for run in read_runs(tmp_path / "card.json")]
    assert stored == [("cifar10", 56, 0), ("cifar10", 56, 1)]
    out = capsys.readouterr().out
    assert "not in the model card: card with num_epochs=2" in out
    assert "not in the model card: card (2)\n" in out


def test_runs_reported_earlier_are_kept(tmp_path):
    add_to_recipes({"card": [make_run(seed=0)]}, tmp_path)
    add_to_recipes({"card": [make_run(seed=1)]}, tmp_path)
    assert [run["seed"] for run in read_runs(tmp_path / "card.json")] == [0, 1]


def test_a_file_of_a_changed_recipe_is_refused(tmp_path):
    path = tmp_path / "card.json"
    add_to_recipes({"card": [make_run()]}, tmp_path)
    path.write_text(path.read_text().replace('"learning_rate": 1.2', '"learning_rate": 3.3'))
    with pytest.raises(UserError, match="do not follow the recipe card as it is now"):
        add_to_recipes({"card": [make_run(seed=1)]}, tmp_path)


def test_publishing_twice_changes_nothing(root):
    by_recipe = {
        "card": [make_run(seed=seed) for seed in (0, 1)] + [make_run(depth=20)],
        "strong": [make_run("strong", 0.94 + 0.002 * seed, seed=seed) for seed in (0, 1)],
    }
    add_to_recipes(by_recipe, root / "results")
    peer = {
        "dataset": "cifar10", "name": "them", "url": "https://x.org", "device": "old GPU",
        "minutes": {"56": 35}, "accuracy": {"56": 93.1}, "recipe": "", "selection": "",
    }  # fmt: skip
    (root / "results" / "peers.json").write_text(json.dumps({"peers": [peer]}))
    assert publish(root) == [
        Path("results/card.png"),
        Path("results/strong.png"),
        Path("results/accuracy_against_time.png"),
        Path("README.md"),
        Path("docs/model_card.md"),
    ]
    assert publish(root) == []
