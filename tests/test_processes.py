"""Several processes: how they are found, what they agree on, and a run of two over the loopback."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from resnet_cifar import processes
from resnet_cifar.checkpoint import read
from resnet_cifar.errors import UserError
from resnet_cifar.log import read_rows
from resnet_cifar.processes import (
    Launch,
    SharedStop,
    check_port,
    compare,
    find_launch,
    last_words,
)
from resnet_cifar.stop import Stop

ROOT = Path(__file__).parents[1]
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
OPENMPI = {f"OMPI_COMM_WORLD_{name}": value for name, value in
           {"SIZE": "2", "RANK": "1", "LOCAL_RANK": "0"}.items()}  # fmt: skip
ORTE = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:5"}


@pytest.mark.parametrize(
    ("flags", "environment", "launch"),
    [
        (("", None, None), {}, None),
        (("a:1", 2, 0), {}, Launch("a:1", 2, 0)),
        (("", None, None), SLURM, Launch("", 8, 5, 1)),
        (("a:1", None, None), SLURM, Launch("a:1", 8, 5, 1)),
        (("", 1, None), SLURM, None),
        (("", None, None), SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        (("", None, None), {k: v for k, v in SLURM.items() if "STEP" not in k}, None),
        (("", None, None), OPENMPI | ORTE, Launch("", 2, 1, 0)),
        (("a:1", None, None), OPENMPI, Launch("a:1", 2, 1, 0)),
        (("", None, None), {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_flags_and_launchers_place_a_process(flags, environment, launch):
    assert find_launch(*flags, environment) == launch


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (("a:1", 2, None), {}, "belong together: give all three"),
        (("a:1", None, None), {}, "belong together"),
        (("a:1", 2, 2), {}, "--process_id=2 is out of range: 2 processes have the numbers 0 to 1"),
        (("a", 2, 0), {}, "--coordinator=a must be HOST:PORT"),
        (("", 2, 0), {}, "--coordinator= must be HOST:PORT"),
        (("", None, None), OPENMPI, "--coordinator= must be HOST:PORT"),
    ],
)
def test_incomplete_places_are_refused(flags, environment, message):
    with pytest.raises(UserError, match=message):
        find_launch(*flags, environment)


def test_a_port_in_use_is_refused():
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(UserError, match="can't be used here"):
            check_port(f"127.0.0.1:{taken.getsockname()[1]}")


def test_a_process_that_differs_is_named():
    compare([{"a": 1}, {"a": 1}])
    with pytest.raises(UserError, match=r"config\.seed is 4 in process 2 and 3 in process 0"):
        compare([{"config.seed": 3}, {"config.seed": 3}, {"config.seed": 4}])
    with pytest.raises(UserError, match="new is None in process 1 and 'x' in process 0"):
        compare([{"new": "x"}, {}])


def test_a_single_process_exchanges_nothing():
    processes.check_alike({"a": 1})
    assert processes.from_primary(lambda: {"rows": []}) == {"rows": []}


def test_a_stop_is_seen_once_a_dispatch_has_carried_it():
    asked, other = SharedStop(Stop()), SharedStop(Stop())
    asked._own.signal = signal.SIGTERM
    assert asked.signal is None and (asked.vote, other.vote) == (15, 0)
    for stop in (asked, other):
        stop.hear(0)
        assert stop.signal is None
        stop.hear(max(asked.vote, other.vote))
        assert stop.signal is stop._own.signal is signal.SIGTERM


def test_last_words_are_said_only_by_the_dead():
    code = "import os, sys; from resnet_cifar.processes import last_words\nwith last_words('gone'):"
    for end, words in (("os.abort()", "error: gone\n"), ("pass", "")):
        done = subprocess.run(
            [sys.executable, "-c", f"{code} {end}"],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert done.stderr == words
    with last_words("never"):
        pass


def test_two_processes_train_like_one(programs, tmp_path):
    """Process 0 alone writes and prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "main.py", "--config=configs/quickstart.py", "--config.width=4",
        "--config.batch_size=32", "--config.train_split=train[:64]", "--config.num_epochs=2",
        "--config.decay_epochs=()", "--config.learning_rate=0.01", "--config.validation_split=",
    ]  # fmt: skip

    def start(workdir, *flags):
        return subprocess.Popen(
            [*command, f"--workdir={tmp_path / workdir}", *flags],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        )  # fmt: skip

    place = [f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    started = [start(f"two{i}", *place, f"--process_id={i}") for i in (0, 1)] + [start("one")]
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], outputs
    assert "in 2 processes" in outputs[0][0] and "Traceback" not in outputs[0][1]
    assert not outputs[1][0] and not (tmp_path / "two1").exists()
    one, two = (read(tmp_path / name / "checkpoints" / "4").arrays for name in ("one", "two0"))
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=1e-5)
    steps = [[row["step"] for row in read_rows(tmp_path / name)] for name in ("one", "two0")]
    assert steps[0] == steps[1]
