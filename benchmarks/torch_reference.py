"""Time the same networks in PyTorch, at their best and as they are usually trained.

python -m benchmarks.torch_reference --depths=20,56 --batch_size=128 --output=results/torch_cpu.json

- bare: the step of "best" on one batch that is already normalized.
- best: the images live on the device, where they are cropped, flipped and normalized;
  channels_last; on a GPU `torch.compile` with CUDA graphs, elsewhere eager by default.
- usual: a DataLoader whose workers crop, flip and normalize each image on the host; eager.

bfloat16 is autocast, the default on a GPU.

Needs torch, and only `benchmarks/limits.py` of this project.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from benchmarks.limits import convolutions

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
MEAN, STD = torch.tensor((0.4914, 0.4822, 0.4465)), torch.tensor((0.2470, 0.2435, 0.2616))
MEAN_THERE, STD_THERE = MEAN.to(DEVICE), STD.to(DEVICE)


class Block(nn.Module):
    """Two 3x3 convolutions and shortcut A."""

    def __init__(self, c: int, c2: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c, c2, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c2)
        self.conv2 = nn.Conv2d(c2, c2, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c2)
        self.stride, self.extra = stride, c2 - c

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.extra:
            x = functional.pad(
                x[:, :, :: self.stride, :: self.stride],
                (0, 0, 0, 0, self.extra // 2, self.extra // 2),
            )
        return functional.relu(x + y, inplace=True)


def resnet(depth: int) -> nn.Sequential:
    """Return the network of He et al. 2015."""
    layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    c = 16
    for stage in range(3):
        for block in range((depth - 2) // 6):
            c2 = 16 << stage
            layers.append(Block(c, c2, 2 if stage and not block else 1))
            c = c2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class HostImages(torch.utils.data.Dataset):
    """Images that are cropped, flipped and normalized one by one."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        top, left = torch.randint(0, 9, (2,)).tolist()
        image = functional.pad(self.images[i], (4, 4, 4, 4))[:, top : top + 32, left : left + 32]
        image = image.flip(-1) if torch.rand(()) < 0.5 else image
        return (image / 255 - MEAN[:, None, None]) / STD[:, None, None], self.labels[i]


def augment(images: torch.Tensor) -> torch.Tensor:
    """Crop, flip and normalize a batch on its device."""
    n = len(images)
    padded = functional.pad(images, (4, 4, 4, 4))
    top, left = torch.randint(0, 9, (2, n, 1), device=images.device)
    across = torch.arange(32, device=images.device)[None]
    columns = left + torch.where(
        torch.rand(n, 1, device=images.device) < 0.5, across, across.flip(1)
    )
    rows = top + across
    picked = padded.permute(0, 2, 3, 1)[
        torch.arange(n, device=images.device)[:, None, None], rows[:, :, None], columns[:, None]
    ]
    return ((picked / 255 - MEAN_THERE) / STD_THERE).permute(0, 3, 1, 2)


def make_step(
    depth: int, compile_mode: str, dtype: str
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return a training step of images and labels on the device."""
    model = resnet(depth).to(DEVICE, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        model.parameters(), 0.01, momentum=0.9, weight_decay=1e-4, fused=True
    )
    forward = torch.compile(model, mode=compile_mode) if compile_mode else model

    def step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = functional.cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def time_bare(options: argparse.Namespace, depth: int) -> list[float]:
    """Return the seconds of each turn of so many steps on one batch."""
    step = make_step(depth, options.compile_mode, options.dtype)
    images = torch.randn(options.batch_size, 3, 32, 32, device=DEVICE).contiguous(
        memory_format=torch.channels_last
    )
    labels = torch.arange(options.batch_size, device=DEVICE) % 10
    return timed(lambda: last(step(images, labels) for _ in range(options.steps)), options.repeats)


def time_best(options: argparse.Namespace, depth: int) -> list[float]:
    """Return the seconds of each epoch of so many steps, the images on the device."""
    images, labels = (a.to(DEVICE) for a in noise(options.batch_size * options.steps))
    step = make_step(depth, options.compile_mode, options.dtype)
    prepare = torch.compile(augment) if options.compile_mode else augment

    def epoch() -> None:
        batches = torch.randperm(len(images), device=DEVICE).split(options.batch_size)
        last(step(prepare(images[rows]), labels[rows]) for rows in batches)

    return timed(epoch, options.repeats)


def time_usual(options: argparse.Namespace, depth: int) -> list[float]:
    """Return the seconds of each epoch of so many steps, the images from a DataLoader."""
    step = make_step(depth, "", options.dtype)
    loader = torch.utils.data.DataLoader(
        HostImages(*noise(options.batch_size * options.steps)),
        options.batch_size,
        shuffle=True,
        num_workers=min(16, os.cpu_count() or 1),
        pin_memory=ON_GPU,
        persistent_workers=True,
        drop_last=True,
    )

    def epoch() -> None:
        last(
            step(images.to(DEVICE, non_blocking=True), labels.to(DEVICE, non_blocking=True))
            for images, labels in loader
        )

    return timed(epoch, options.repeats)


def last(losses: Iterator[torch.Tensor]) -> None:
    """Go through all steps and wait for the last."""
    for loss in losses:
        newest = loss
    newest.item()


def noise(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return so many images of noise, uint8 [n, 3, 32, 32], and labels."""
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (n,))


def timed(epoch: Callable[[], None], repeats: int) -> list[float]:
    """Return the seconds of each call but the first."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        epoch()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def time_convolutions(options: argparse.Namespace) -> list[dict]:
    """Return seconds of the three products of each distinct convolution, channels_last."""
    rows, dtype, batch_size = [], getattr(torch, options.dtype), options.batch_size
    copies = 20 if ON_GPU else 1
    for layer in dict.fromkeys(layer for layer, _ in convolutions(14)):

        def tensors(*shape: int, dtype=dtype) -> list[torch.Tensor]:
            """Return inputs that are not in the cache since the last time."""
            one = torch.randn(shape, device=DEVICE, dtype=dtype).contiguous(
                memory_format=torch.channels_last
            )
            return [one.clone(memory_format=torch.preserve_format) for _ in range(copies)]

        size, stride = layer.size // layer.stride, [layer.stride] * 2
        x, dy = (
            tensors(batch_size, layer.c, layer.size, layer.size),
            tensors(batch_size, layer.c2, size, size),
        )
        inputs = list(zip(x, tensors(layer.c2, layer.c, 3, 3), dy, strict=True))

        def products(*mask, inputs=inputs, stride=stride):
            for x, kernel, dy in inputs:
                if mask:
                    torch.ops.aten.convolution_backward(
                        dy, x, kernel, None, stride, [1, 1], [1, 1], False, [0, 0], 1, mask
                    )
                else:
                    functional.conv2d(x, kernel, None, stride, 1)
            if ON_GPU:
                torch.cuda.synchronize()

        masks = {
            "forward": (),
            "input_gradient": (True, False, False),
            "kernel_gradient": (False, True, False),
        }
        row: dict = {**layer._asdict(), "gflops": layer.flops * batch_size / 1e9}
        for name, mask in masks.items():
            times = timed(lambda mask=mask, products=products: products(*mask), options.repeats)
            row[name] = statistics.median(times) / copies
        rows.append(row)
        print(row, flush=True)
    return rows


def main() -> None:
    """Time what the flags say; write the file after every depth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--depths", default="20", help="Depths of the networks, separated by commas; may be empty."
    )
    parser.add_argument("--batch_size", type=int, default=128, help="Images a step.")
    parser.add_argument(
        "--steps", type=int, default=30, help="Steps timed at once: those of an epoch."
    )
    parser.add_argument("--repeats", type=int, default=5, help="How often each is timed.")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="bfloat16" if ON_GPU else "float32",
        help="dtype of the convolutions.",
    )
    parser.add_argument("--modes", default="bare,best,usual", help="What to time.")
    parser.add_argument(
        "--compile_mode",
        default="max-autotune" if ON_GPU else "",
        help="Mode of torch.compile for bare and best, empty for eager.",
    )
    parser.add_argument(
        "--convolutions", action="store_true", help="Time the single convolutions too."
    )
    parser.add_argument("--output", help="JSON file to write; none by default.")
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    result: dict = {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name()
        if ON_GPU
        else f"{platform.machine()} CPU, {os.cpu_count()} cores",
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
        "compile_mode": options.compile_mode,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rows": [],
    }
    timers = {"bare": time_bare, "best": time_best, "usual": time_usual}
    for depth in map(int, filter(None, options.depths.split(","))):
        row: dict = {
            "depth": depth,
            "batch_size": options.batch_size,
            "dtype": options.dtype,
        }
        row["seconds"] = {mode: timers[mode](options, depth) for mode in options.modes.split(",")}
        images = options.batch_size * options.steps
        row |= {
            mode: images / statistics.median(seconds) for mode, seconds in row["seconds"].items()
        }
        result["rows"].append(row)
        print(row, flush=True)
        write(result, options.output)
    if options.convolutions:
        result["convolutions"] = time_convolutions(options)
        write(result, options.output)


def write(result: dict, output: str | None) -> None:
    """Write the file, if there is to be one."""
    if output:
        Path(output).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
