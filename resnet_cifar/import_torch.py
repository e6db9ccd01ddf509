"""Import the weights of a PyTorch checkpoint, without PyTorch and without running its pickle.

  resnet_cifar import_torch FILE --preprocessing=imagenet --output=FOLDER --dataset=cifar10

reads ResNets for CIFAR of any depth and width in the layouts of akamaster/pytorch_resnet_cifar10,
chenyaofo/pytorch-cifar-models and osmr/imgclsmob (pytorchcv), and writes FOLDER/model.safetensors,
which `resnet_cifar.load` reads. The file is one of torch.save, or safetensors with the same keys.
Only plain tensors are read. Anything else is refused by name, and nothing of the file is run.

A checkpoint does not say how its images were normalized. Look it up where it was trained: with
another mean and std the network works, but worse.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from resnet_cifar.cli import operands
from resnet_cifar.config import unknown
from resnet_cifar.data import DATASETS, class_names, load_images
from resnet_cifar.errors import UserError
from resnet_cifar.pretrained import WEIGHTS
from resnet_cifar.stop import Stop
from resnet_cifar.torch_file import read_torch
from resnet_cifar.torch_names import from_torch
from resnet_cifar.variables import num_parameters
from resnet_cifar.weights import Preprocessing, Pretrained, assemble, save_weights

HIDDEN = None
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PREPROCESSING = {
    **{name: Preprocessing(*DATASETS[name][2:4]) for name in ("cifar10", "cifar100")},
    "imagenet": IMAGENET,
}


def define_flags(values: flags.FlagValues) -> None:
    text = (
        f"Mean and std of the pixels in [0, 1] that it was trained with: {', '.join(PREPROCESSING)}"
        ", or six numbers, the means of R, G and B, then the stds: 0.49,0.48,0.45,0.25,0.24,0.26."
    )
    flags.DEFINE_string("preprocessing", "", text, flag_values=values)
    flags.DEFINE_string("output", "", f"Folder for {WEIGHTS}.", flag_values=values)
    text = (
        "Data set whose class names are stored, such as cifar10, downloaded if it is missing; by "
        "default 0, 1, ..."
    )
    flags.DEFINE_string("dataset", "", text, flag_values=values)


def main(values: flags.FlagValues, arguments: list[str], stop: Stop) -> None:
    del stop
    given: dict[str, str] = values.flag_values_dict()
    if len(operands(values, arguments)) != 1:
        raise UserError(
            f"give one file, not {' '.join(arguments) or 'none'}: "
            "import_torch FILE --preprocessing=NAME --output=FOLDER; --help lists the flags"
        )
    if not given["output"]:
        raise UserError("give --output=FOLDER, where the weights are to go")
    if not given["preprocessing"]:
        raise UserError(
            "give --preprocessing, the pixel statistics of the training, which the file does not "
            f"hold: {', '.join(PREPROCESSING)}, or six numbers"
        )
    names = dataset_classes(given["dataset"]) if given["dataset"] else None
    layout, pretrained = import_torch(arguments[0], preprocessing_of(given["preprocessing"]), names)
    path = Path(given["output"]).expanduser() / WEIGHTS
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path.parent} can't be made ({error}): give another --output") from error
    save_weights(path, pretrained)
    print("\n".join(network_lines(layout, pretrained, path)))


def import_torch(
    path: str | Path, preprocessing: Preprocessing, class_names: Sequence[str] | None = None
) -> tuple[str, Pretrained]:
    """Read a PyTorch checkpoint of a ResNet.

    Args:
      path: the file.
      preprocessing: what the network was trained with, such as `PREPROCESSING["cifar10"]`.
      class_names: in the order of the labels; by default "0", "1", ...

    Returns:
      The layout of its keys, "akamaster", "chenyaofo" or "pytorchcv", and the network.

    Raises:
      UserError: the file is damaged, holds more than plain tensors, another network, or one of
        another number of classes.
    """
    tensors = read_torch(path)
    try:
        layout, arrays = from_torch(tensors)
    except UserError as error:
        raise UserError(f"{path} can't be imported: {error}") from error
    if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise UserError(f"{path} can't be imported: {broken[0]} is not finite, so it is damaged")
    pretrained = assemble(path, arrays, preprocessing._asdict(), None, {})
    if class_names is None:
        return layout, pretrained
    if len(class_names) != pretrained.model.num_classes:
        raise UserError(
            f"{path} holds a network of {pretrained.model.num_classes} classes, but "
            f"{len(class_names)} class names were given: check --dataset"
        )
    return layout, replace(pretrained, class_names=tuple(class_names))


def preprocessing_of(text: str) -> Preprocessing:
    """Return the preprocessing of a name or of six numbers; UserError if it is neither."""
    if text in PREPROCESSING:
        return PREPROCESSING[text]
    try:
        numbers: Any = tuple(float(number) for number in text.strip("()").split(","))
    except ValueError:
        choices = [*PREPROCESSING, "six numbers"]
        raise UserError(unknown(f"--preprocessing={text!r}", text, choices)) from None
    if len(numbers) != 6 or not np.isfinite(numbers).all() or min(numbers[3:]) <= 0:
        raise UserError(
            f"--preprocessing={text} must be six finite numbers, three means and three positive "
            "stds of pixels in [0, 1]"
        )
    return Preprocessing(numbers[:3], numbers[3:])


def dataset_classes(dataset: str) -> list[str]:
    if dataset not in DATASETS:
        raise UserError(unknown(f"--dataset={dataset!r}", dataset, DATASETS))
    if not class_names(dataset):
        load_images(dataset, "test")  # Downloads the data set, which has the names.
    return class_names(dataset)


def network_lines(layout: str, pretrained: Pretrained, path: Path) -> list[str]:
    """Return what was read and written, to be printed."""
    model, (mean, std) = pretrained.model, pretrained.preprocessing
    names = pretrained.class_names
    shown = ", ".join(names[:10]) + ", ..." * (len(names) > 10)
    return [
        f"read           {pretrained.source}, layout of {layout}",
        f"model          ResNet{model.depth}, shortcut {model.shortcut}, width {model.width}, "
        f"{model.num_classes} classes, {num_parameters(model):,} parameters",
        f"preprocessing  mean {mean}, std {std}",
        f"classes        {shown}",
        f"wrote          {path}",
    ]


if __name__ == "__main__":
    sys.exit("error: the command is python -m resnet_cifar import_torch")
