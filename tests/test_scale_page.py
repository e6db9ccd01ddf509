"""docs/scale.md: its scripts parse, the program takes their flags, and their commands train."""

import json
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from absl import flags
from process_group import free_port

from resnet_cifar import train_command
from resnet_cifar.cli import parse
from resnet_cifar.config import validate
from resnet_cifar.config_flags import read_config
from resnet_cifar.launch import Launch, find_launch

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scale.md").read_text()

# Replaces what a small machine has not: the network, its batch, the data and the GPUs.
SMALL = (
    "--config=tests/faults/small.py --config.num_epochs=2 --config.decay=linear "
    "--config.batch_size=20 --config.data_dir= --require=cpu"
)
# Two tasks on this machine; JAX takes the port from the number of the job.
SRUN = """#!/bin/bash
[[ $1 == --kill-on-bad-exit=1 ]] && shift
export SLURM_JOB_ID={job} SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" {flags} &
    tasks+=($!)
done
for task in "${{tasks[@]}}"; do wait "$task" || exit; done
"""


def block(language):
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return text


def understood(command, environment):
    """Return the config and the place that the program reads from the words of a command."""
    values = flags.FlagValues()
    train_command.define_flags(values)
    arguments = parse(values, command[command.index("main.py") :])
    config, _ = read_config(values, arguments)
    validate(config)
    place = [values[name].value for name in ("coordinator", "num_processes", "process_id")]
    return config, find_launch(*place, environment)


def test_the_slurm_script_is_understood(monkeypatch):
    monkeypatch.chdir(ROOT)
    script = block("bash")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", script, re.MULTILINE))
    tasks = int(options["nodes"]) * int(options["ntasks-per-node"])
    assert options["gres"] == f"gpu:{options['ntasks-per-node']}"
    (command,) = re.findall(r"^srun .*", script.replace("\\\n", ""), re.MULTILINE)
    environment = {
        "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": str(tasks),
        "SLURM_PROCID": "9", "SLURM_LOCALID": "1",
    }  # fmt: skip
    config, launch = understood(shlex.split(command), environment)
    assert launch == Launch("", tasks, 9, 1)
    assert config.batch_size % tasks == 0
    assert config.learning_rate == 1.2 * config.batch_size / 1024


def test_the_jobset_is_understood(monkeypatch):
    monkeypatch.chdir(ROOT)
    jobset = yaml.safe_load(block("yaml"))
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job, name = replicated["template"]["spec"], jobset["metadata"]["name"]
    assert job["completions"] == job["parallelism"] == 2 and replicated["replicas"] == 1
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    assert container["command"] == ["sh", "-c"]
    for index in range(2):
        line = container["args"][0].replace("$JOB_COMPLETION_INDEX", str(index))
        config, launch = understood(shlex.split(line), {"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
        assert launch == Launch(f"{name}-{replicated['name']}-0-0.{name}:12345", 2, index)
        gpus = container["resources"]["limits"]["nvidia.com/gpu"]
        assert config.batch_size % (2 * gpus) == 0


@pytest.mark.parametrize("index", [0, 1])
def test_the_commands_by_hand_are_understood(index, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = re.findall(r"^ +(python main.py .*--coordinator.*)$", PAGE, re.MULTILINE)[index]
    _, launch = understood(shlex.split(command, comments=True), {})
    assert launch == Launch("node1:12345", 2, index)


@pytest.fixture
def settings(tmp_path):
    """Return an environment with `python` and a folder for other commands on its path."""
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "JAX_PLATFORMS": "cpu"}


def check_trained(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["device"].endswith("in 2 processes")


@pytest.mark.slow
def test_the_slurm_script_trains(tmp_path, settings):
    small = f"{SMALL} --workdir={tmp_path / 'run'}"
    srun = SRUN.format(job=random.randrange(4096), flags=small)
    (tmp_path / "srun").write_text(srun)
    (tmp_path / "srun").chmod(0o755)
    subprocess.run(["bash", "-c", block("bash")], cwd=ROOT, env=settings, check=True, timeout=300)
    check_trained(tmp_path / "run")


@pytest.mark.slow
def test_the_jobset_trains(tmp_path, settings):
    (replicated,) = yaml.safe_load(block("yaml"))["spec"]["replicatedJobs"]
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    (line,) = container["args"]
    line = line.replace("resnet56-train-0-0.resnet56:12345", f"127.0.0.1:{free_port()}")
    command = [*container["command"], f"{line} {SMALL} --workdir={tmp_path / 'run'}"]
    pods = [
        subprocess.Popen(command, cwd=ROOT, env=settings | {"JOB_COMPLETION_INDEX": str(index)})
        for index in range(2)
    ]
    assert [pod.wait(300) for pod in pods] == [0, 0]
    check_trained(tmp_path / "run")
