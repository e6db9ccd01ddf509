"""A network in words: the config.json and the README.md that the Hugging Face hub shows."""

from pathlib import Path
from typing import Any

from resnet_cifar.config import with_defaults
from resnet_cifar.data import dataset_title
from resnet_cifar.report.pages import markdown_table, wrap
from resnet_cifar.report.runs import DATASET_TITLES, final_accuracy, read_summary
from resnet_cifar.report.variants import format_value
from resnet_cifar.variables import num_parameters
from resnet_cifar.weights import Pretrained

PAPER = "https://arxiv.org/abs/1512.03385"
HUB_DATASETS = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}
UNTOLD = ("data_dir", "eval_every_epochs", "checkpoint_every_epochs")  # They change no result.
MOST_NAMES = 20


def hub_config(trained: Pretrained) -> dict[str, Any]:
    """Return network, classes and preprocessing as JSON, by the hub's names where it has some."""
    model, names = trained.model, trained.class_names
    return {
        "model_type": "resnet_cifar",
        "depth": model.depth,
        "width": model.width,
        "shortcut": model.shortcut,
        "num_classes": model.num_classes,
        "id2label": {str(label): name for label, name in enumerate(names)},
        "label2id": {name: label for label, name in enumerate(names)},
        "image_mean": list(trained.preprocessing.mean),
        "image_std": list(trained.preprocessing.std),
    }


def model_card(trained: Pretrained, address: str = "hf://USER/NAME") -> str:
    """Return the README.md of a network: what it is, its result, its use and its training.

    Args:
      trained: the network. If it was loaded from the workdir of a finished run, the card has the
        accuracy of that run.
      address: from which a reader loads it.
    """
    model = trained.model
    dataset = dataset_title(trained.config["dataset"]) if trained.config else ""
    title = f"ResNet{model.depth}" + (
        f" on {DATASET_TITLES.get(dataset, dataset)}" if dataset else ""
    )
    names = ", ".join(trained.class_names[:MOST_NAMES]) + ", ..." * (model.num_classes > MOST_NAMES)
    return "\n".join(
        [
            *front_matter(dataset),
            f"# {title}",
            "",
            *wrap(
                f"A residual network of {model.depth} layers ([He et al. 2015]({PAPER}), section "
                f"4.2) with shortcut {model.shortcut}, width {model.width} and "
                f"{num_parameters(model):,} parameters. It classifies 32x32 images into "
                f"{model.num_classes} classes: {names}."
            ),
            "",
            "## Result",
            "",
            *wrap(result(trained)),
            "",
            "## Use",
            "",
            "```python",
            "from resnet_cifar import load",
            "",
            f'pretrained = load("{address}")',
            "probabilities = pretrained.probabilities(images)  # uint8 [n, 32, 32, 3], RGB.",
            "```",
            "",
            *wrap(
                "The preprocessing is part of the weights: pixels in [0, 1] minus "
                f"{rounded(trained.preprocessing.mean)}, divided by "
                f"{rounded(trained.preprocessing.std)}, by channel."
            ),
            "",
            "## Training",
            "",
            *training(trained),
            "",
            "## Limitations",
            "",
            *wrap(
                "The network gives one of its classes for any image. Do not use it for decisions "
                "about people or safety. Accuracy on newly collected images of the same kind is "
                "lower."
            ),
            "",
        ]
    )


def front_matter(dataset: str) -> list[str]:
    """Return the metadata that the hub reads."""
    lines = ["---", "library_name: resnet_cifar", "license: apache-2.0"]
    lines += ["pipeline_tag: image-classification", "tags: [jax, flax, resnet, cifar]"]
    if dataset in HUB_DATASETS:
        lines += [f"datasets: [{HUB_DATASETS[dataset]}]", "metrics: [accuracy]"]
    return [*lines, "---", ""]


def result(trained: Pretrained) -> str:
    summary = read_summary(Path(trained.source)) if trained.config else None
    if not summary:
        return "The accuracy was not recorded with these weights."
    averaged = bool(trained.config.get("ema_decay"))
    accuracy = final_accuracy(summary) if averaged else summary["test_accuracy"]
    return (
        f"{accuracy:.2%} of the test images after the last epoch, with seed "
        f"{summary['config']['seed']}{', with averaged weights' * averaged}. No epoch was chosen "
        "by the test set."
    )


def training(trained: Pretrained) -> list[str]:
    if not trained.config:
        return ["How these weights were trained is not recorded."]
    fields = {n: v for n, v in with_defaults(trained.config).items() if n not in UNTOLD}
    fields["dataset"] = dataset_title(fields["dataset"])  # Without the folders of this machine.
    fields["init_from"] = Path(fields["init_from"]).name
    return markdown_table(
        ["field", "value"], [[f"`{n}`", format_value(v)] for n, v in fields.items()]
    )


def rounded(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.5g}" for value in values) + ")"
