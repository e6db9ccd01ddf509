"""docs/scale.md: its scripts parse, and the program takes their flags."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from absl import flags

from resnet_cifar import train_command
from resnet_cifar.cli import parse
from resnet_cifar.config import validate
from resnet_cifar.config_flags import read_config
from resnet_cifar.launch import Launch, find_launch

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "scale.md").read_text()


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
