"""What the documentation shows works, and says what is there."""

import json
import re
import runpy
import tomllib
from pathlib import Path

import pytest

from benchmarks.page import update
from resnet_cifar.recipes import RECIPES
from resnet_cifar.report import runs as results
from resnet_cifar.report.pages import PAGES
from resnet_cifar.report.pages import update as report_update
from resnet_cifar.report.tables import DEPTHS, TITLES

ROOT = Path(__file__).parents[1]


def test_the_page_on_the_step_runs():
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "use_the_step.md").read_text(), re.DOTALL
    )
    assert len(blocks) == 5
    exec(compile("\n".join(blocks), "docs/use_the_step.md", "exec"), {"__name__": "page"})


def test_ci_runs_the_second_command_of_the_readme():
    commands = re.findall(
        r"^    (python3 -m venv .*)$", (ROOT / "README.md").read_text(), re.MULTILINE
    )
    assert len(commands) == 2
    assert commands[1] in (ROOT / ".ci" / "run").read_text()


def test_every_file_that_the_documentation_links_to_exists():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_readme_names_every_module():
    text = (ROOT / "README.md").read_text()
    for path in (ROOT / "resnet_cifar").glob("*.py"):
        assert path.name in text, path.name


def test_requirements_are_those_of_the_package():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = [
        line.partition("#")[0].strip()
        for line in (ROOT / "requirements.txt").read_text().splitlines()
    ]
    assert [
        line for line in lines if line and not line.startswith("jax[") and ";" not in line
    ] == wanted[1:]
    assert f'{wanted[0].replace("jax", "jax[cuda12]")}; sys_platform == "linux"' in lines


def test_the_table_of_faults_is_that_of_the_results():
    faults = runpy.run_path(str(ROOT / "tests" / "faults" / "table.py"))
    page = (ROOT / "docs" / "reliability.md").read_text()
    assert (
        faults["update"](page, json.loads((ROOT / "results" / "faults.json").read_text())) == page
    )


def test_the_tables_of_speed_are_those_of_the_results():
    page = (ROOT / "docs" / "speed.md").read_text()
    assert update(page) == page


@pytest.mark.parametrize("name", PAGES)
def test_the_tables_of_the_card_are_those_of_the_results(name):
    page = (ROOT / name).read_text()
    up = "../" * name.count("/")
    assert report_update(page, ROOT / "results", up) == page
    marked = set(re.findall(r"<!-- (\w+): begin -->", page))
    assert marked and marked <= set(re.findall(r"<!-- (\w+): end -->", page))


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_card_holds_only_runs_of_its_recipes(recipe):
    for run in results.read(ROOT / "results" / f"{recipe}.json"):
        assert results.label(run) == recipe and run["depth"] in DEPTHS and run["dataset"] in TITLES


def test_the_rehearsal_is_no_row_of_the_card():
    runs = results.read(ROOT / "results" / "sweep_cpu.json")
    assert len(runs) == 12 and not {results.label(run) for run in runs} & set(RECIPES)


def test_the_commands_of_the_documentation_are_those_of_the_results():
    known = (ROOT / "results" / "README.md").read_text()
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for command in re.findall(
            r"^ +(.*(?:--output|--faults-output)=results/.*)$", page.read_text(), re.MULTILINE
        ):
            assert f"`{command}`" in known, command
