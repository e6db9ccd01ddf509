"""Classify pictures with a trained network.

  resnet_cifar predict --weights=runs/resnet20-cifar10-seed0 cat.jpg dog.png
  resnet_cifar predict --weights=model.safetensors --json photos/ > predictions.jsonl

The arguments are pictures in any format that Pillow reads, or folders of them. The largest centred
square of each picture is scaled to 32 x 32 and normalized as in training. The output has a line for
each picture, with the five likeliest classes and their probabilities. A file that can't be read is
named on stderr and skipped, and the exit status is then 1.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from resnet_cifar.cli import enable_compile_cache, operands
from resnet_cifar.data.pictures import existing, files_below, read_picture
from resnet_cifar.errors import UserError
from resnet_cifar.evaluation import percent
from resnet_cifar.pretrained import Pretrained, load
from resnet_cifar.stop import Stop

HIDDEN = None
CLASSES = 5
AT_ONCE = 100  # Pictures read before they are classified.


class Prediction(NamedTuple):
    """The likeliest classes of a picture with their probabilities, the likeliest first."""

    file: str
    classes: list[tuple[str, float]]


def predict(
    network: str | Path | Pretrained, images: Sequence[str | Path]
) -> tuple[list[Prediction], list[str]]:
    """Classify pictures.

    Args:
      network: a path, as `load` takes it, or what it returned.
      images: files that Pillow reads, of any size.

    Returns:
      The predictions in order, and a sentence for each file that can't be read.

    Raises:
      UserError: there is no such network.

    Example:
      predictions, problems = predict("runs/resnet20-cifar10-seed0", ["cat.jpg"])
      name, probability = predictions[0].classes[0]
    """
    if isinstance(network, str | Path):
        network = load(network)
    files, pixels, problems = [], [], []
    for image in images:
        try:
            pixels.append(read_picture(Path(image)))
            files.append(str(image))
        except UserError as error:
            problems.append(str(error))
    if not files:
        return [], problems
    rows = network.probabilities(np.stack(pixels))
    pairs = zip(files, rows, strict=True)
    return [Prediction(file, likeliest(row, network.class_names)) for file, row in pairs], problems


def likeliest(probabilities: np.ndarray, names: tuple[str, ...]) -> list[tuple[str, float]]:
    order = np.argsort(-probabilities, kind="stable")[:CLASSES]
    return [(names[i], float(probabilities[i])) for i in order]


def files_of(images: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the files of a command line, folders expanded, and what is wrong with the others."""
    files, problems = [], []
    for image in images:
        try:
            path = existing(image)
            found = files_below(path) if path.is_dir() else [path]
            files += found
            problems += [] if found else [f"the folder {path} is empty"]
        except UserError as error:
            problems.append(str(error))
    return files, problems


def as_text(prediction: Prediction) -> str:
    classes = ", ".join(
        f"{name} {percent(probability)}" for name, probability in prediction.classes
    )
    return f"{prediction.file}: {classes}"


def as_json(prediction: Prediction) -> str:
    classes = [{"name": name, "probability": value} for name, value in prediction.classes]
    return json.dumps({"file": prediction.file, "classes": classes})


def define_flags(values: flags.FlagValues) -> None:
    text = "Trained network: a workdir, a checkpoint or a .safetensors file."
    flags.DEFINE_string("weights", "", text, flag_values=values)
    flags.DEFINE_bool("json", False, "Print a line of JSON for each picture.", flag_values=values)


def main(values: flags.FlagValues, arguments: list[str], stop: Stop) -> None:
    del stop  # Nothing to save.
    images = operands(values, arguments)
    if not values["weights"].value:
        raise UserError("give the network, such as --weights=runs/resnet20-cifar10-seed0")
    if not images:
        raise UserError("give the pictures, files or folders, after the flags")
    enable_compile_cache()
    network = load(values["weights"].value)
    files, problems = files_of(images)
    complain(problems)
    skipped, show = len(problems), as_json if values["json"].value else as_text
    for start in range(0, len(files), AT_ONCE):
        predictions, problems = predict(network, files[start : start + AT_ONCE])
        complain(problems)
        skipped += len(problems)
        for prediction in predictions:
            print(show(prediction), flush=True)
    if skipped:
        raise UserError(f"{skipped} file{'s were' if skipped > 1 else ' was'} skipped")


def complain(problems: Sequence[str]) -> None:
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit("error: the command is python -m resnet_cifar predict")
