"""What several GPUs would gain, on paper: `python -m benchmarks.scaling_model`.

It writes results/scaling_model.json. A step takes

    max(bytes / memory bandwidth, kernels x shortest kernel) + collectives

with the bytes and the bandwidth of `limits.py`, the kernels that XLA compiled
(results/gpu_program*.json), and no overlap of the two terms. A small all-reduce takes what NCCL's
own cost model says of its tree with the protocol LL; the gradients add the time of their bytes.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

from absl import app

from benchmarks.limits import roofline
from resnet_cifar.models import ResNet
from resnet_cifar.variables import array_shapes, num_parameters

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "results" / "scaling_model.json"
GPU = "NVIDIA H100 80GB HBM3"
DEPTHS = (56, 110)
BATCH_SIZE = 1024  # The card's.
ON_A_HOST = 8


class Link(NamedTuple):
    """How the GPUs of a host, or hosts, are connected."""

    hop_microseconds: float
    gigabytes_per_second: float  # One way, of a GPU, or of all GPUs of a host together.


NVLINK = Link(0.6, 450)
LINKS = {"InfiniBand": Link(5.0, 8 * 50), "Ethernet": Link(30, 12.5)}
ASSUMPTIONS = {
    "shortest_kernel_microseconds": 2,
    "all_reduce_microseconds": 6.8,  # Besides the hops.
    "NVLink": NVLINK._asdict(),
    **{name: link._asdict() for name, link in LINKS.items()},
}
SETUPS = [(1, ""), (2, ""), (4, ""), (8, "")] + [
    (ON_A_HOST * 2**n, link) for link in LINKS for n in range(1, 7)
]


def main(argv: list[str]) -> None:
    """Write the model."""
    del argv
    OUTPUT.write_text(json.dumps(model(), indent=2) + "\n")


def model() -> dict:
    """Return the times of every depth and setup, with what they assume."""
    rows = [row(depth, gpus, link) for depth in DEPTHS for gpus, link in SETUPS]
    return {"gpu": GPU, "batch_size": BATCH_SIZE, "assumptions": ASSUMPTIONS, "rows": rows}


def row(depth: int, gpus: int, link: str) -> dict:
    """Return the times of a step in ms, and images/s over those of one GPU.

    `constant` is a batch of 1,024 images over all GPUs, `growing` one of 1,024 on each.
    """
    communicating = collective_seconds(depth, gpus, link)
    alone = compute_seconds(depth, BATCH_SIZE, gpus=1)
    constant = compute_seconds(depth, BATCH_SIZE / gpus, gpus) + communicating
    growing = compute_seconds(depth, BATCH_SIZE, gpus) + communicating
    return {
        "depth": depth,
        "gpus": gpus,
        "link": link,
        "collective_milliseconds": round(1e3 * communicating, 2),
        "constant_milliseconds": round(1e3 * constant, 2),
        "constant_speedup": round(alone / constant, 3),
        "growing_milliseconds": round(1e3 * growing, 2),
        "growing_speedup": round(gpus * alone / growing, 3),
    }


def compute_seconds(depth: int, images: float, gpus: int) -> float:
    """Return the least time of a GPU for its part of a batch."""
    rate = roofline(depth, GPU) or math.nan
    shortest = 1e-6 * ASSUMPTIONS["shortest_kernel_microseconds"]
    return max(images / rate, kernels(depth, split=gpus > 1) * shortest)


def collective_seconds(depth: int, gpus: int, link: str) -> float:
    """Return the time of the all-reduces of a step, one after the other."""
    if gpus == 1:
        return 0.0
    number, size = all_reduces(depth)
    hosts = max(1, gpus // ON_A_HOST)
    hops = (gpus // hosts - 1) * NVLINK.hop_microseconds
    slowest = NVLINK
    if link:
        hops += math.log2(hosts) * LINKS[link].hop_microseconds
        slowest = LINKS[link]
    small = 1e-6 * (ASSUMPTIONS["all_reduce_microseconds"] + 2 * hops)
    return number * small + 2 * size / (1e9 * slowest.gigabytes_per_second)


def all_reduces(depth: int) -> tuple[int, int]:
    """Return the number and the bytes of the all-reduces of a step.

    Two for each BatchNorm, of two float32 a channel, and one for the gradients of the kernels, in
    bfloat16. The head's float32 gradients and the loss travel with one of them.
    """
    shapes = array_shapes(depth, num_classes=10, width=16, shortcut="A")
    channels = [shape[0] for name, shape in shapes.items() if name.endswith("/scale")]
    head = math.prod(shapes["params/head/kernel"]) + math.prod(shapes["params/head/bias"])
    convolutions = num_parameters(ResNet(depth)) - head - 2 * sum(channels)
    return 2 * len(channels) + 1, 2 * convolutions + 16 * sum(channels) + 4 * head + 4


def kernels(depth: int, *, split: bool) -> int:
    """Return the kernels of a step: compiled, or in the ratio of the two depths on one GPU."""
    alone = {r["depth"]: r["kernels"] for r in load("gpu_program") if r["program"] == "train"}
    if not split:
        return alone[depth]
    (several,) = (r for r in load("gpu_program_scale") if r["devices"] == ON_A_HOST)
    return round(several["kernels"] * alone[depth] / alone[several["depth"]])


def load(name: str) -> list[dict]:
    rows = json.loads((ROOT / "results" / f"{name}.json").read_text())["rows"]
    return [row for row in rows if row["gpu"] == GPU]


if __name__ == "__main__":
    app.run(main)
