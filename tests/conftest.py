"""Four CPU devices and no rank promotion for every test; a record of what tests/faults tries."""

import datetime
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

try:
    import beartype  # noqa: F401
except ImportError:
    pytest.exit("the tests need the dev extras: pip install -e '.[dev]'", returncode=1)

# The modules whose annotations carry shapes are checked against them in every test.
SHAPED = (
    *("convolution", "data.images", "epochs", "layers", "models", "norm_conv", "pretrained"),
    *("regularization", "steps", "weights"),
)
install_import_hook([f"resnet_cifar.{name}" for name in SHAPED], "beartype.beartype")

from cifar_archives import manual  # noqa: F401

from resnet_cifar import native
from resnet_cifar.config import Config
from resnet_cifar.data import synthetic
from resnet_cifar.provenance import environment

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def programs(tmp_path_factory):
    """Compile a program once for all tests, their processes and all workers of pytest-xdist.

    JAX_COMPILATION_CACHE_DIR makes several sessions share the programs.
    """
    own = tmp_path_factory.getbasetemp().parent / "programs"
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or own
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


@pytest.fixture(scope="session")
def native_kernels():
    """Skip tests that need the native kernels where there are none."""
    if not native.load().usable:
        pytest.skip(f"no native kernels: {native.load().reason}")


@pytest.fixture
def strict_dtypes():
    """Refuse implicit promotion of dtypes, which parts of flax rely on."""
    with jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="module")
def tiny() -> Iterator[Config]:
    """Return a run of seconds: 4 epochs of 4 steps, the smallest network, few images."""
    sizes = dict(synthetic.SIZES)
    synthetic.SIZES.update(train=200, test=100)
    yield Config(
        depth=8,
        width=4,
        dataset="synthetic",
        train_split="train[:130]",
        dtype="float32",
        batch_size=32,
        num_epochs=4,
        learning_rate=0.1,
        warmup_epochs=1,
        decay_epochs=(2, 3),
        checkpoint_every_epochs=1,
    )
    synthetic.SIZES.update(sizes)


def pytest_addoption(parser):
    group = parser.getgroup("faults")
    group.addoption(
        "--chains",
        type=int,
        default=0,
        help="Runs that are killed, 5 times each; 0: the quick part.",
    )
    group.addoption(
        "--faults-seed",
        type=int,
        help="Seed of the random moments; by default one is drawn, and printed.",
    )
    group.addoption("--faults-output", help="JSON file for what came of it.")


def pytest_configure(config):
    # Drawn before pytest-xdist starts its workers, so that all have the same.
    if config.option.faults_seed is None:
        config.option.faults_seed = random.randrange(10**6)
    if config.option.chains:  # The long run is of the real thing, and of all of it.
        config.option.markexpr = ""
    else:  # Twice as fast to compile.
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    config.pluginmanager.register(Record(config), "faults_record")


def pytest_generate_tests(metafunc):
    if "chain" in metafunc.fixturenames:
        chains = metafunc.config.option.chains
        number = chains if "kill" in metafunc.function.__name__ else chains // 8
        metafunc.parametrize("chain", range(max(1, number)))


@pytest.fixture(scope="session")  # So that it comes before any run that others share.
def long(request):
    """Skip what is no part of the quick run."""
    if not request.config.option.chains:
        pytest.skip("in the long run: CONTRIBUTING.md has its command")


@pytest.fixture
def tally(request):
    """Return a function that notes what became of one fault: (fault, survived, **numbers)."""

    def note(fault, survived, **numbers):
        request.node.user_properties.append(
            ("fault", {"fault": fault, "survived": survived, **numbers})
        )

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

    def pytest_sessionfinish(self, exitstatus):
        """Write the file, unless something failed: then there is nothing to tell but that."""
        if (
            exitstatus
            or not self.config.option.faults_output
            or hasattr(self.config, "workerinput")
        ):
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
            **environment(),
        }
        # Only this process pretends to have four devices.
        result["device"] = result["device"].removeprefix("4 x ")
        Path(self.config.option.faults_output).write_text(json.dumps(result, indent=2) + "\n")
