"""Write the PyTorch checkpoints of this folder, and PyTorch's logits for them.

  pip install torch && python tests/torch_files/make.py

The networks are written out here as their repositories define them: ResNet8 of width 2, with
random weights.
"""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

HERE = Path(__file__).parent
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
BASIC = "layer{stage}.0.{part}{number}"
NAMES = {  # Stem, the layers of a block, its projection, head.
    "akamaster": (("conv1", "bn1"), BASIC, None, "linear"),
    "chenyaofo": (
        ("conv1", "bn1"),
        BASIC,
        ("layer{stage}.0.downsample.0", "layer{stage}.0.downsample.1"),
        "fc",
    ),
    "pytorchcv": (
        ("features.init_block.conv", "features.init_block.bn"),
        "features.stage{stage}.unit1.body.conv{number}.{part}",
        (
            "features.stage{stage}.unit1.identity_conv.conv",
            "features.stage{stage}.unit1.identity_conv.bn",
        ),
        "output",
    ),
}


def images():
    """Return uint8 [3, 32, 32, 3], as tests/test_import_torch.py does."""
    return (np.arange(3 * 32 * 32 * 3) * 37 // 5 % 256).astype(np.uint8).reshape(3, 32, 32, 3)


class Net:
    """A network as a state_dict, filled as it is first run."""

    def __init__(self, layout):
        self.names, self.state = NAMES[layout], OrderedDict()

    def conv(self, name, x, channels, size, stride):
        shape = (channels, x.shape[1], size, size)
        kernel = self.state.setdefault(f"{name}.weight", torch.randn(shape) / shape[1] ** 0.5 / 2)
        return F.conv2d(x, kernel, stride=stride, padding=size // 2)

    def norm(self, name, x):
        n, state = x.shape[1], self.state
        weight = state.setdefault(f"{name}.weight", torch.rand(n) + 0.5)
        bias = state.setdefault(f"{name}.bias", torch.randn(n) / 4)
        mean = state.setdefault(f"{name}.running_mean", torch.randn(n) / 4)
        var = state.setdefault(f"{name}.running_var", torch.rand(n) + 0.5)
        state.setdefault(f"{name}.num_batches_tracked", torch.tensor(7))
        return F.batch_norm(x, mean, var, weight, bias)

    def block(self, x, stage):
        _, part, projection, _ = self.names
        conv1, bn1, conv2, bn2 = (
            part.format(stage=stage, part=kind, number=number)
            for number in (1, 2)
            for kind in ("conv", "bn")
        )
        channels, stride = 2**stage, 1 if stage == 1 else 2
        y = F.relu(self.norm(bn1, self.conv(conv1, x, channels, 3, stride)))
        y = self.norm(bn2, self.conv(conv2, y, channels, 3, 1))
        if stride == 2 and projection:
            conv, norm = (text.format(stage=stage) for text in projection)
            x = self.norm(norm, self.conv(conv, x, channels, 1, 2))
        elif stride == 2:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, channels // 4, channels // 4))
        return F.relu(y + x)

    def __call__(self, x):
        (conv, norm), head = self.names[0], self.names[3]
        x = F.relu(self.norm(norm, self.conv(conv, x, 2, 3, 1)))
        for stage in (1, 2, 3):
            x = self.block(x, stage)
        weight = self.state.setdefault(f"{head}.weight", torch.randn(10, 8))
        bias = self.state.setdefault(f"{head}.bias", torch.randn(10))
        return F.linear(x.mean((2, 3)), weight, bias)


def main():
    torch.manual_seed(0)
    pixels = torch.tensor(images()).permute(0, 3, 1, 2) / 255
    x = (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    nets = {layout: Net(layout) for layout in NAMES}
    logits = {layout: net(x).tolist() for layout, net in nets.items()}
    (HERE / "logits.json").write_text(json.dumps(logits, indent=1) + "\n")

    state = OrderedDict((f"module.{k}", v) for k, v in nets["akamaster"].state.items())
    content = {"state_dict": state, "best_prec1": torch.tensor(91.7), "epoch": 3}
    torch.save(content, HERE / "akamaster.th", _use_new_zipfile_serialization=False)
    torch.save(nets["chenyaofo"].state, HERE / "chenyaofo.pt")
    parameters = {
        k: torch.nn.Parameter(v) if v.is_floating_point() else v
        for k, v in nets["pytorchcv"].state.items()
    }
    content = {"model": parameters, "accuracy": np.float64(0.5), "optimizer": {"state": {0: {}}}}
    torch.save(content, HERE / "pytorchcv.pth", pickle_protocol=4)


if __name__ == "__main__":
    main()
