"""No rank promotion and four CPU devices for every test; and a record of the faults that tests/faults tries."""

import datetime
import json
import random
from pathlib import Path

import jax
import pytest

from resnet_cifar.config import Config
from resnet_cifar.describe import circumstances

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def strict_dtypes():
    """Refuse implicit promotion; not for every test, as optax's schedules and flax's BatchNorm rely on it."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def tiny() -> Config:
    """Return a run of 4 epochs of 4 steps that takes a few seconds: depth 8 is the smallest of the family."""
    return Config(
        depth=8,
        dataset="synthetic",
        train_split="train[:130]",
        batch_size=32,
        num_epochs=4,
        learning_rate=0.1,
        warmup_epochs=1,
        decay_epochs=(2, 3),
        checkpoint_every_epochs=1,
    )


def pytest_addoption(parser):
    group = parser.getgroup("faults")
    group.addoption("--chains", type=int, default=0, help="Runs that are killed, 5 times each; 0: the quick part.")
    group.addoption("--faults-seed", type=int, help="Seed of the random moments; by default one is drawn, and printed.")
    group.addoption("--faults-output", help="JSON file for what came of it.")


def pytest_configure(config):
    if config.option.faults_seed is None:  # Before the workers of pytest-xdist are started, and so the same for all.
        config.option.faults_seed = random.randrange(10**6)
    config.pluginmanager.register(Record(config), "faults_record")


def pytest_generate_tests(metafunc):
    if "chain" in metafunc.fixturenames:
        chains = metafunc.config.option.chains
        number = chains if "kill" in metafunc.function.__name__ else chains // 4
        metafunc.parametrize("chain", range(max(1, number)))


@pytest.fixture
def long(request):
    """Skip what is no part of the quick run."""
    if not request.config.option.chains:
        pytest.skip("in the long run: CONTRIBUTING.md has its command")


@pytest.fixture
def tally(request):
    """Return a function that notes what became of one fault: (fault, survived, **numbers)."""

    def note(fault, survived, **numbers):
        request.node.user_properties.append(("fault", {"fault": fault, "survived": survived, **numbers}))

    return note


class Record:
    """Gathers the notes of all tests, from all workers."""

    def __init__(self, config):
        self.config, self.faults = config, []

    def pytest_report_header(self):
        return f"faults: --faults-seed={self.config.option.faults_seed}"

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            self.faults += [value for name, value in report.user_properties if name == "fault"]

    def pytest_sessionfinish(self):
        if not self.config.option.faults_output or hasattr(self.config, "workerinput"):
            return
        table = {}
        for fault in self.faults:
            row = table.setdefault(fault["fault"], {"tried": 0, "survived": 0})
            row["tried"] += 1
            row["survived"] += fault["survived"]
            for name in fault.keys() - {"fault", "survived"}:
                row[name] = max(row.get(name, 0), fault[name])
        result = {
            "faults": table,
            "seed": self.config.option.faults_seed,
            "date": datetime.date.today().isoformat(),
            **circumstances(),
        }
        result["device"] = result["device"].removeprefix("4 x ")  # The four are this process's alone.
        Path(self.config.option.faults_output).write_text(json.dumps(result, indent=2) + "\n")
