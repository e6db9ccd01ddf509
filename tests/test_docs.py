"""The documentation: its code runs, its links exist, its tables follow the results."""

import json
import re
import runpy
import tomllib
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import make_pretrained

from benchmarks import page as speed
from benchmarks.native_table import best_of_torch, native_rates
from resnet_cifar.evaluation import McNemar
from resnet_cifar.predict import Prediction, as_text
from resnet_cifar.recipes import RECIPES
from resnet_cifar.report.evaluations import (
    Comparison,
    Result,
    aligned,
    class_lines,
    comparison_lines,
    mistake_lines,
    score_cells,
)
from resnet_cifar.report.pages import fill
from resnet_cifar.report.publish import PAGES, in_card, page_sections
from resnet_cifar.report.ranking import mean_validation
from resnet_cifar.report.runs import (
    CARD_DEPTHS,
    epochs_of,
    final_accuracy,
    read_peers,
    read_runs,
    select,
)
from resnet_cifar.report.statistics import Spread, paired_difference, spread
from resnet_cifar.report.variants import group_by_variant, variant_name
from resnet_cifar.weights import save_weights

ROOT = Path(__file__).parents[1]


@pytest.fixture
def quick_compile():
    """Let XLA optimize little: the examples compile in half the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # Other tests get programs of their own.


@pytest.mark.slow
def test_the_examples_of_the_step_run(quick_compile):
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "use_the_step.md").read_text(), re.DOTALL
    )
    assert len(blocks) == 6
    exec(compile("\n".join(blocks), "docs/use_the_step.md", "exec"), {"__name__": "page"})


@pytest.mark.slow
def test_the_examples_of_the_weights_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_weights("resnet20-cifar10", make_pretrained(tuple("abcdefghij")))  # A smaller one.
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    labels = np.arange(64) % 3
    np.savez("fruit.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    text = (ROOT / "docs" / "use_the_weights.md").read_text()
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    exec(compile(code, "docs/use_the_weights.md", "exec"), {"__name__": "page"})


def test_ci_runs_the_second_command_of_the_readme():
    commands = re.findall(
        r"^    (python3 -m venv .*)$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text()


def test_every_linked_file_exists():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_readme_lists_modules_in_the_order_of_the_layers():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    levels = {name.strip(): i for i, layer in enumerate(layers) for name in layer.split("|")}
    layout = (ROOT / "README.md").read_text().partition("## Code layout")[2].split("```")[1]
    names = re.findall(r"^  (?=\S)(.*?)  ", layout, re.MULTILINE)
    listed = [name for line in names for name in re.findall(r"(\w+)(?:\.py|/)", line)]
    assert set(listed) == set(levels)
    assert [levels[name] for name in listed] == sorted(levels[name] for name in listed)


def test_requirements_match_the_package():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = [
        line.partition("#")[0].strip()
        for line in (ROOT / "requirements.txt").read_text().splitlines()
    ]
    assert [
        line for line in lines if line and not line.startswith("jax[") and ";" not in line
    ] == wanted[1:]
    assert f'{wanted[0].replace("jax", "jax[cuda12]")}; sys_platform == "linux"' in lines


def test_the_tables_of_faults_follow_the_results():
    table = runpy.run_path(str(ROOT / "tests" / "faults" / "table.py"))
    for name, page in table["PAGES"].items():
        text = (ROOT / page).read_text()
        assert fill(ROOT / page, table["sections"](name)) == text, "run tests/faults/table.py"


@pytest.mark.parametrize("name", speed.PAGES)
def test_the_tables_of_benchmarks_follow_the_results(name):
    text = fill(ROOT / name, speed.sections())
    assert text == (ROOT / name).read_text(), "run `python -m benchmarks.page`"


@pytest.mark.parametrize("name", PAGES)
def test_the_tables_of_the_report_follow_the_results(name):
    text = fill(ROOT / name, page_sections(ROOT, name))
    assert text == (ROOT / name).read_text(), "run `python -m resnet_cifar report`"


@pytest.mark.parametrize(
    ("page", "sections"),
    [
        ("README.md", ["card"]),
        ("docs/model_card.md", ["family", "peers", "comparison", "pictures", "recipes"]),
        ("docs/sweep.md", ["sweep_cpu"]),
        ("docs/experiments.md", ["smoothing", "ingredients", "short_recipes", "optimizers"]),
        (
            "docs/speed.md",
            ["gpu", "gpu_kernels", "gpu_program", "cpu", "variants", "native", "startup"],
        ),
        ("docs/reliability.md", ["faults"]),
        ("docs/scale.md", ["scaling_model", "scaling_cpu", "remat", "process_faults"]),
    ],
)
def test_every_generated_section_is_on_its_page(page, sections):
    markers = re.findall(r"<!-- (\w+): begin -->", (ROOT / page).read_text())
    assert markers == sections


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_model_card_has_only_runs_by_its_recipes(recipe):
    for run in read_runs(ROOT / "results" / f"{recipe}.json"):
        assert variant_name(run) == recipe and in_card(run)


def test_what_is_said_of_the_numbers_follows_the_results():
    card, readme = (ROOT / "docs" / "model_card.md").read_text(), (ROOT / "README.md").read_text()
    runs = read_runs(ROOT / "results" / "card.json")
    paper, composer, *_ = read_peers(ROOT / "results")
    measured = {depth: select(runs, "cifar10", depth) for depth in CARD_DEPTHS[:4]}
    ours = {depth: 100 * fmean(map(final_accuracy, own)) for depth, own in measured.items()}
    section = card.partition("### What these numbers say")[2].partition("\n#")[0]
    assert re.findall(r"^\| ResNet\d+ \| ([\d.]+)", section, re.MULTILINE) == [
        f"{accuracy:.2f}" for accuracy in ours.values()
    ]
    short = [paper["accuracy"][str(depth)] - ours[depth] for depth in (44, 56)]
    short.append(composer["accuracy"]["56"] - ours[56])
    said = (
        "ResNet44 and ResNet56 are {:.1f} and {:.1f} points below it, and ResNet56 is {:.1f} below"
    )
    assert said.format(*short) in " ".join(readme.split())


def chosen_runs(file, **fields):
    """Return the runs of three seeds with these values in their config."""
    runs = read_runs(ROOT / "results" / f"{file}.json")
    own = [run for run in runs if fields.items() <= run["config"].items()]
    assert [run["seed"] for run in own] == [0, 1, 2]
    return own


def best_run(file, **fields):
    """Return the runs of three seeds that are best by validation among those with the values."""
    groups = group_by_variant(read_runs(ROOT / "results" / f"{file}.json"))
    own = [runs for runs in groups.values() if fields.items() <= runs[0]["config"].items()]
    return max(own, key=lambda runs: mean_validation(runs) or 0)


def difference(runs, over):
    paired = paired_difference(runs, over)
    assert paired
    return f"{100 * paired.mean:.2f} ± {100 * paired.half_interval:.2f}"


def test_what_is_said_of_the_short_runs_follows_the_results():
    text = " ".join((ROOT / "docs" / "experiments.md").read_text().split())

    recipe = {
        "card": chosen_runs("short_recipes", bn_scale_init="uniform", shortcut="A"),
        "strong": chosen_runs("short_recipes", decay="cosine", mixup=0.0, shortcut="A"),
        "fast": chosen_runs("short_recipes", decay="linear", shortcut="A"),
        "best": chosen_runs("short_recipes", mixup=1.0, shortcut="A"),
    }
    fast, strong, best = (
        difference(recipe[name], recipe["card"]) for name in ("fast", "strong", "best")
    )
    said = f"`fast` gains {fast} points over `card`, `strong` {strong} and `best` {best}."
    assert said in text

    muon, adamw, sgd = (best_run("optimizers", optimizer=o) for o in ("muon", "adamw", "sgd"))
    accuracies = (f"{100 * fmean(map(final_accuracy, own)):.2f}" for own in (muon, adamw, sgd))
    assert "Muon {}, AdamW {}, SGD {}.".format(*accuracies) in text
    assert f"AdamW over SGD is not settled: +{difference(adamw, sgd)}." in text
    decayed = chosen_runs("ingredients", weight_decay=5e-4)
    assert f"Muon is still ahead by {difference(muon, decayed)}." in text

    averaged = chosen_runs("ingredients", ema_decay=0.99)
    raw = [{**run, "test_accuracy_ema": run["test_accuracy"]} for run in averaged]
    assert f"averaging changes the accuracy by {difference(averaged, raw)}." in text


def test_what_is_said_of_the_fast_recipe_follows_the_results():
    fast = spread([100 * final_accuracy(run) for run in chosen_runs("fast")])
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"With `fast`, ResNet56 reaches {fast.mean:.2f} ± {fast.deviation:.2f} (three" in text


def test_what_is_said_of_the_native_kernels_follows_the_results():
    over_xla, over_torch = [], []
    for batch in (128, 1024):
        rates = native_rates(speed.load, (20, batch, "float32"))
        ours = rates["native"]
        for row in speed.load(f"native_cpu/native_20_{batch}_float32")["rows"]:
            images = row["whole"] * fmean(row["seconds"]["whole"])  # Of an epoch of whole steps.
            assert images == pytest.approx(batch * round(images / batch))
        over_xla.append(ours["whole"] / rates["xla"]["whole"])
        over_torch.append(ours["whole"] / best_of_torch(rates))
    text = " ".join((ROOT / "README.md").read_text().split())
    for ratios, words in ((over_xla, "with them"), (over_torch, "as PyTorch")):
        said = " to ".join(sorted({f"{ratio:.1f}" for ratio in ratios}))
        assert f"{said} times as fast {words}" in text


def test_the_test_accuracy_swings_as_the_model_card_says():
    accuracies = []
    for run in read_runs(ROOT / "results" / "card.json"):
        rows = epochs_of(run, "test")
        epochs = np.array(rows["epoch"])
        accuracies += [*np.array(rows["accuracy"])[(epochs >= 40) & (epochs <= 80)]]
    said = f"between {100 * min(accuracies):.0f} and {100 * max(accuracies):.0f} %"
    assert said in " ".join((ROOT / "docs" / "model_card.md").read_text().split())


def test_the_rehearsal_is_not_in_the_model_card():
    runs = read_runs(ROOT / "results" / "sweep_cpu.json")
    assert len(runs) == 12 and not {variant_name(run) for run in runs} & set(RECIPES)


def evaluation_parts(name):
    """Return the tables and lines that `evaluate` printed with the JSON of a file in results."""
    content = json.loads((ROOT / "results" / name).read_text())
    results = []
    for row in content["results"]:
        bins = SimpleNamespace(error=row["ece"])
        scores = row | {"reliability": bins, "confusion": np.array(row["confusion"])}
        results.append(Result(row["name"], row["flip"], np.array([]), SimpleNamespace(**scores)))
    main = [result for result in results if not result.flip][-1]
    evaluation = SimpleNamespace(main=main, class_names=content["class_names"])
    yield aligned([["", "correct", "top-1", "top-5", "NLL", "ECE"], *map(score_cells, results)])
    if "mcnemar" not in content:
        yield class_lines(evaluation)
        yield mistake_lines(evaluation)
        return
    pairs = [(t.pop("first"), t.pop("second"), McNemar(**t)) for t in content["mcnemar"]]
    yield comparison_lines(Comparison(Spread(**content["accuracy"]), pairs, []))


@pytest.mark.parametrize("name", ["evaluation_resnet20.json", "evaluation_two_networks.json"])
def test_the_output_of_evaluate_follows_the_results(name):
    text = (ROOT / "docs" / "use_the_weights.md").read_text()
    for lines in evaluation_parts(name):
        assert "\n".join(f"    {line}" for line in lines) in text


def test_the_output_of_predict_follows_the_results():
    text = (ROOT / "docs" / "use_the_weights.md").read_text()
    for line in (ROOT / "results" / "predictions_resnet20.jsonl").read_text().splitlines():
        content = json.loads(line)
        classes = [(row["name"], row["probability"]) for row in content["classes"]]
        assert f"    {as_text(Prediction(content['file'], classes))}\n" in text


def test_the_readme_prints_what_the_page_prints():
    page = (ROOT / "docs" / "use_the_weights.md").read_text().splitlines()
    readme = (ROOT / "README.md").read_text().partition("## Use trained weights")[2]
    scores = [line for line in readme.splitlines() if re.search("ECE$|%  0|frog .*%", line)]
    assert len(scores) == 4
    assert {line.replace("frog.png:", "photos/frog.png:") for line in scores} <= {*page}


def test_commands_that_write_results_are_listed_there():
    known = (ROOT / "results" / "README.md").read_text()
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for command in re.findall(
            r"^ +(.*(?:--output|--faults-output)=results/.*)$", page.read_text(), re.MULTILINE
        ):
            assert f"`{command}`" in known, command
