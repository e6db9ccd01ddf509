"""Evaluate trained networks: accuracy, calibration, mistakes, and how networks compare.

  resnet_cifar evaluate runs/resnet20-cifar10-seed0
  resnet_cifar evaluate runs/a runs/b runs/c --flip --output=evaluation
  resnet_cifar evaluate model.safetensors --data=CIFAR-10-C

Each PATH is a workdir, one checkpoint, a .safetensors file or, in a clone, the name of a file in
weights/ such as resnet20-cifar10. The images are the test split of the
data that the first PATH was trained on, or --data: cifar10, cifar100, synthetic, synthetic100, a
.npz with images and labels, a folder with a folder of pictures for each class, or the .npy files of
CIFAR-10.1, CIFAR-10-C and CIFAR-100-C. Several PATHs are also averaged into an ensemble and tested
against the first: McNemar's exact test on the images, and Student's t over the seeds that two
variants share.

The output has top-1 and top-5 accuracy, the negative log-likelihood (NLL, in nats) and the expected
calibration error (ECE, 15 bins). With --output=DIR, DIR/evaluation.json has all of them, also by
class, and reliability.png, confusion.png and mistakes.png show them.
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from resnet_cifar.cli import enable_compile_cache, operands
from resnet_cifar.data import DATASETS, Images, is_dataset, parse_split, positions
from resnet_cifar.data.files import corruptions, read_files
from resnet_cifar.errors import UserError
from resnet_cifar.evaluation import log_softmax, mean_of_probabilities, score
from resnet_cifar.evaluation_data import common_names, read_data, relabelled
from resnet_cifar.pretrained import Pretrained, load
from resnet_cifar.provenance import environment
from resnet_cifar.report.corruptions import (
    SEVERITIES,
    Table,
    corruption_json,
    corruption_lines,
    in_order,
)
from resnet_cifar.report.evaluations import (
    ENSEMBLE,
    Evaluation,
    Result,
    evaluation_json,
    evaluation_lines,
)
from resnet_cifar.report.network_comparisons import compare_networks
from resnet_cifar.stop import Stop
from resnet_cifar.workdir import absolute, write_atomically

HIDDEN = None


def evaluate(
    networks: Sequence[str | Path | Pretrained],
    data: str = "",
    split: str = "test",
    *,
    flip: bool = False,
    data_dir: str = "",
) -> Evaluation:
    """Score networks, and compare them if there are several.

    Args:
      networks: paths, as `load` takes them, or what it returned.
      data: a data set, or files as `data.files.read_files` takes; by default what the networks
        were trained on.
      split: such as "test" or "train[45000:]".
      flip: score the mean of the probabilities for each image and its mirror image, too.
      data_dir: TFDS folder.

    Raises:
      UserError: a network or the images are missing, or their classes differ.

    Example:
      evaluation = evaluate(["runs/a", "runs/b"])
      print(evaluation.main.scores.correct, evaluation.main.scores.reliability.error)
    """
    loaded = load_all(networks)
    title, images = read_data(loaded, data, split, data_dir)
    results = score_all(loaded, images, flip)
    configs = [network.config for network in loaded]
    comparison = compare_networks(configs, results[: len(loaded)]) if len(loaded) > 1 else None
    return Evaluation(title, images, common_names(loaded), results, comparison)


def evaluate_corruptions(
    networks: Sequence[str | Path | Pretrained],
    data: str | Path,
    split: str = "test",
    *,
    flip: bool = False,
) -> dict[str, Table]:
    """Score networks on CIFAR-10-C or CIFAR-100-C.

    Args:
      networks: as for `evaluate`.
      data: the folder of the corruptions' files, or one of these files.
      split: "test", or a slice of it such as "test[:1000]", of each severity.
      flip: as for `evaluate`.

    Returns:
      For each network and their ensemble, and for each corruption, the scores of severities 1 to 5.

    Raises:
      UserError: as for `evaluate`, or a file does not have five parts of equally many images.
    """
    loaded, files = load_all(networks), corruptions(data)
    if parse_split(split)[0] != "test":
        raise UserError(f"--split={split} does not fit {data}, corrupted test images: use test")
    tables: dict[str, Table] = {}
    for corruption in tqdm(in_order([*files]), disable=None, leave=False):
        for images in severities(files[corruption], split, loaded):
            for result in score_all(loaded, images, flip):
                table = tables.setdefault(result.label, {})
                table.setdefault(corruption, []).append(result.scores)
    return tables


def severities(file: Path, split: str, networks: Sequence[Pretrained]) -> list[Images]:
    """Return the images of the severities 1 to 5, or the same slice of each."""
    images, names = read_files(file)
    pixels, labels = relabelled(str(file), images, names, networks)
    n, rest = divmod(len(labels), SEVERITIES)
    if rest:
        raise UserError(f"{file} has {len(labels):,} images, which are not five equal severities")
    parts = [[n * i + row for row in positions(split, n)] for i in range(SEVERITIES)]
    return [Images(pixels[rows], labels[rows]) for rows in parts]


def load_all(networks: Sequence[str | Path | Pretrained]) -> list[Pretrained]:
    """Load networks; UserError if there are none, or one twice, or of several sets of classes."""
    if not networks:
        raise UserError(
            "give the PATH of a network: a workdir, a checkpoint or a .safetensors file"
        )
    loaded = [load(n) if isinstance(n, str | Path) else n for n in networks]
    sources = [network.source for network in loaded]
    if again := [source for i, source in enumerate(sources) if source in sources[:i]]:
        raise UserError(f"{again[0]} is given twice: give each network once")
    common_names(loaded)
    return loaded


def score_all(networks: Sequence[Pretrained], images: Images, flip: bool) -> list[Result]:
    """Score each network, and their ensemble; then with flips averaged."""
    pixels, labels = np.asarray(images.images), np.asarray(images.labels)
    kinds = {False: [outputs(network, pixels) for network in networks]}
    if flip:
        mirrored = [outputs(network, pixels[:, :, ::-1]) for network in networks]
        pairs = zip(kinds[False], mirrored, strict=True)
        kinds[True] = [mean_of_probabilities(pair) for pair in pairs]
    results = []
    for flipped, members in kinds.items():
        named = list(zip([network.source for network in networks], members, strict=True))
        if len(members) > 1:
            named.append((ENSEMBLE, mean_of_probabilities(members)))
        results += [Result(name, flipped, own, score(own, labels)) for name, own in named]
    return results


def outputs(network: Pretrained, pixels: np.ndarray) -> np.ndarray:
    """Return log-probabilities; UserError if some are not finite."""
    logits = network.logits(pixels)
    if not np.isfinite(logits).all():
        raise UserError(f"{network.source} gives outputs that are not finite: it diverged")
    return log_softmax(logits)


def is_corrupted(data: str) -> bool:
    return data not in DATASETS and is_dataset(data) and bool(corruptions(data))


@contextlib.contextmanager
def writing(path: str) -> Iterator[Path]:
    """Turn errors of writing to the folder of --output into UserErrors."""
    try:
        yield absolute(path)
    except OSError as error:
        raise UserError(f"--output={path} can't be written: {error}") from error


def define_flags(values: flags.FlagValues) -> None:
    def define(name: str, default: str, text: str) -> None:
        flags.DEFINE_string(name, default, text, flag_values=values)

    define("data", "", "Data set, file or folder; by default what the first PATH was trained on.")
    define("split", "test", "Split, or a slice such as train[45000:].")
    define("data_dir", "", "TFDS folder; by default that of the training run.")
    define("output", "", "Folder for evaluation.json and the pictures.")
    text = "Score the mean over each image and its mirror image, too."
    flags.DEFINE_bool("flip", False, text, flag_values=values)
    flags.DEFINE_bool("json", False, "Print JSON instead of text.", flag_values=values)


def main(values: flags.FlagValues, arguments: list[str], stop: Stop) -> None:
    del stop  # Nothing to save.
    given: dict[str, Any] = values.flag_values_dict()
    networks = operands(values, arguments)
    enable_compile_cache()
    if output := given["output"]:
        with writing(output) as folder:  # Fail before the work.
            folder.mkdir(parents=True, exist_ok=True)
    evaluation = None
    options = {name: given[name] for name in ("data", "split", "flip")}
    if is_corrupted(given["data"]):
        tables = evaluate_corruptions(networks, **options)
        lines, content = corruption_lines(tables), corruption_json(given["data"], tables)
    else:
        evaluation = evaluate(networks, **options, data_dir=given["data_dir"])
        lines, content = evaluation_lines(evaluation), evaluation_json(evaluation)
    content |= environment()
    print(json.dumps(content) if given["json"] else "\n".join(lines))
    if output:
        with writing(output) as folder:
            written = write(folder, content, evaluation)
        if not given["json"]:
            print(f"\nwrote {', '.join(written)} to {output}")


def write(folder: Path, content: dict[str, Any], evaluation: Evaluation | None) -> list[str]:
    """Write the JSON, and the pictures of an evaluation; return the names of the files."""
    write_atomically(folder / "evaluation.json", json.dumps(content, indent=1) + "\n")
    if not evaluation:
        return ["evaluation.json"]
    from resnet_cifar.report.evaluation_plots import plot_evaluation  # Slow.

    return ["evaluation.json", *plot_evaluation(evaluation, folder)]


if __name__ == "__main__":
    sys.exit("error: the command is python -m resnet_cifar evaluate")
