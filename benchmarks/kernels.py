"""Trace training steps on a GPU: the time of every convolution, and of everything between them.

    python -m benchmarks.kernels --output=results/gpu/kernels_20.json

XLA launches a step's kernels one after the other, so their times add up to the step's but for the
gaps. The bytes of a kernel are its operands and results, as if no cache held any.
"""

import argparse
import datetime
import glob
import json
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from benchmarks.gpu_program_hlo import Computation, Instruction, moved, parse, step_of
from resnet_cifar.plan import blank_splits
from resnet_cifar.provenance import environment
from resnet_cifar.recipes import make_config
from resnet_cifar.trainer import Trainer

PRODUCTS = {
    "__cudnn$convForward": "forward",
    "__cudnn$convBackwardInput": "input_gradient",
    "__cudnn$convBackwardFilter": "kernel_gradient",
}
Event = tuple[str, float]  # Name of a kernel's HLO instruction, nanoseconds.


def main() -> None:
    """Trace, print and write."""
    parser = argparse.ArgumentParser(description="Trace training steps on a GPU.")
    parser.add_argument("--depth", type=int, default=20, help="Depth of the network.")
    parser.add_argument("--batch_size", type=int, default=1024, help="Images a step.")
    parser.add_argument("--steps", type=int, default=8, help="Steps to trace.")
    parser.add_argument("--output", type=Path, help="JSON file to write; none by default.")
    options = parser.parse_args()
    depth, steps = options.depth, options.steps
    config = make_config("card", depth=depth, batch_size=options.batch_size)
    trainer = Trainer(config, load=blank_splits)
    state = trainer.programs.devices.replicate(trainer.init_state())
    rows = np.arange(steps * config.batch_size, dtype=np.int32).reshape(steps, -1)
    hlo = trainer.program("train", state, rows).as_text() or ""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(4):
            if turn == 3:
                jax.profiler.start_trace(folder)
            start = time.perf_counter()
            state, _ = trainer.train(state, 0, rows)
            trainer.drain()
            seconds.append(time.perf_counter() - start)
        jax.profiler.stop_trace()
        (path,) = glob.glob(f"{folder}/plugins/profile/*/*.xplane.pb")
        kernels = summarize(gpu_events(path), hlo, steps=steps)
    result = {
        "depth": depth,
        "batch_size": config.batch_size,
        "dtype": str(trainer.programs.dtype),
        "milliseconds": 1e3 * min(seconds[:3]) / steps,
        **kernels,
        "date": datetime.date.today().isoformat(),
        **environment(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


def gpu_events(path: str) -> list[Event]:
    """Return the kernels of a trace."""
    lines = [
        line
        for plane in jax.profiler.ProfileData.from_file(path).planes
        if plane.name.startswith("/device:GPU")
        for line in plane.lines
    ]
    return [
        (str(dict(event.stats).get("hlo_op", "")), event.duration_ns)
        for line in lines
        for event in line.events
    ]


def summarize(events: Iterable[Event], hlo: str, *, steps: int) -> dict[str, list[dict]]:
    """Return the time and bytes of a step by kind of convolution, and of everything else.

    Args:
      events: the kernels of some steps.
      hlo: the text of the program.
      steps: their number.
    """
    computations, entry = parse(hlo)
    step = step_of(computations, entry)
    nanoseconds = defaultdict(float)
    for instruction, duration in events:
        nanoseconds[convolution_kind(step.get(instruction))] += duration
    sizes = bytes_by_kind(step, computations)
    return {
        "kernels": [
            {
                "layer": kind[0] if kind else None,
                "product": kind[1] if kind else None,
                "milliseconds": nanoseconds[kind] / steps / 1e6,
                "bytes": sizes[kind],
            }
            for kind in sorted(nanoseconds, key=lambda kind: kind or ("~", "~"))
        ]
    }


def bytes_by_kind(step: Computation, computations: dict[str, Computation]) -> Counter:
    sizes = Counter()
    for instruction in step.values():
        if instruction.op in ("fusion", "custom-call"):
            sizes[convolution_kind(instruction)] += moved(instruction, step, computations)
    return sizes


def convolution_kind(instruction: Instruction | None) -> tuple[str, str] | None:
    """Return the layer and the product of a convolution; None of anything else."""
    if instruction is None:
        return None
    target = re.search(r'custom_call_target="([\w$]+)"', instruction.attributes)
    layer = re.search(r"/(stem_conv|stage\d_block\d+/conv\d)/", instruction.attributes)
    if not target or target[1] not in PRODUCTS or not layer:
        return None
    return layer_name(layer[1]), PRODUCTS[target[1]]


def layer_name(path: str) -> str:
    """Return size, channels and stride of a convolution.

    Example:
      >>> layer_name("stage2_block1/conv1")
      '32x32, 16 to 32, stride 2'
      >>> layer_name("stage2_block3/conv1")
      '16x16, 32 to 32'
    """
    if path == "stem_conv":
        return "32x32, 3 to 16"
    stage = int(path[5])
    size, c = 64 >> stage, 8 << stage
    if stage > 1 and path.endswith("block1/conv1"):
        return f"{2 * size}x{2 * size}, {c // 2} to {c}, stride 2"
    return f"{size}x{size}, {c} to {c}"


if __name__ == "__main__":
    main()
