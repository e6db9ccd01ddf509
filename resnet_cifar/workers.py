"""A process for each GPU of one machine, each with runs of its own, which do not communicate."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from resnet_cifar.errors import UserError
from resnet_cifar.stop import Stop, Stopped

T = TypeVar("T")


def gpu_ids(gpus: str, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the GPUs of `--gpus=0,1` or `--gpus=all`, without JAX, which would take their memory.

    Args:
      gpus: numbers or UUIDs separated by commas, or "all".
      environment: CUDA_VISIBLE_DEVICES limits "all".

    Raises:
      UserError: one is named twice, or "all" finds none.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    ids = [name.strip() for name in (visible if gpus == "all" else gpus).split(",") if name.strip()]
    if gpus == "all" and not ids:
        ids = [str(index) for index in range(count_gpus())]
    if not ids or len(set(ids)) < len(ids):
        raise UserError(f"--gpus={gpus} must be GPUs of this machine, each once, like 0,1 or all")
    return ids


def count_gpus() -> int:
    """Return how many GPUs nvidia-smi lists."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"--gpus=all asks nvidia-smi, which failed ({error}): name the GPUs, like --gpus=0,1"
        ) from error
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def share(jobs: Sequence[T], number: int, cost: Callable[[T], float]) -> list[list[T]]:
    """Divide jobs into shares of about the same cost, each in the given order.

    The most expensive job goes first, always to the cheapest share so far.

    Example:
      >>> share([1, 9, 5, 4], 2, cost=float)
      [[1, 9], [5, 4]]
    """
    shares: list[list[int]] = [[] for _ in range(number)]
    totals = [0.0] * number
    for index in sorted(range(len(jobs)), key=lambda index: -cost(jobs[index])):
        least = totals.index(min(totals))
        shares[least].append(index)
        totals[least] += cost(jobs[index])
    return [[jobs[index] for index in sorted(own)] for own in shares]


def advice(num_runs: int, num_gpus: int, *, by_gpu: bool) -> str:
    """Say that the other way of using several GPUs suits better; empty if it does not.

    Runs that do not communicate lose nothing to each other. A run over several GPUs waits for
    their collectives in every step, but is the only use for more GPUs than there are runs.
    """
    if by_gpu and num_runs < num_gpus:
        return (
            f"{num_runs} runs leave some of {num_gpus} GPUs idle: without --gpus, every run uses "
            "all of them"
        )
    if not by_gpu and 1 < num_gpus <= num_runs:
        return (
            f"{num_runs} runs use {num_gpus} GPUs one after the other: --gpus=all gives each GPU "
            "runs of its own, and ends sooner"
        )
    return ""


def run_workers(
    commands: Mapping[str, Sequence[str]], stop: Stop, *, poll_seconds: float = 0.2
) -> None:
    """Run a command on each GPU, and wait for all of them.

    Args:
      commands: arguments of `python` by GPU; each sees that GPU alone.
      stop: polled; a signal is passed on, and the commands save.
      poll_seconds: between two looks at them.

    Raises:
      UserError: some commands failed.
      Stopped: they were asked to stop.
    """
    stop.hold()
    workers = {
        gpu: subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": gpu},
            start_new_session=True,  # A Ctrl-C reaches them once, from here.
        )
        for gpu, command in commands.items()
    }
    told = False
    while any(worker.poll() is None for worker in workers.values()):
        if stop.signal and not told:
            for worker in workers.values():
                worker.send_signal(stop.signal)
            told = True
        time.sleep(poll_seconds)
    if stop.signal:
        raise Stopped("stopped on all GPUs: rerun the command to resume")
    if failed := [gpu for gpu, worker in workers.items() if worker.returncode]:
        raise UserError(f"some runs failed on GPU {', '.join(failed)}: the lines above say which")
