"""Every hyperparameter once, with its unit and its source, and the check that a set of them makes sense."""

import dataclasses
import difflib
import itertools
import math
from typing import Any, get_origin, get_type_hints

from resnet_cifar.data import DATASETS
from resnet_cifar.errors import UserError
from resnet_cifar.models import depth_problem


@dataclasses.dataclass
class Config:
    """One run. The defaults are the card's recipe for ResNet56 on CIFAR-10.

    Durations are in epochs and may be fractional; they are rounded to whole steps.
    """

    # Model.
    depth: int = 56  # 6n + 2 layers (He et al. 2015, section 4.2).
    width: int = 16  # Filters of the first stage; the others have two and four times as many.
    shortcut: str = (
        "A"  # "A": zeros for new channels (paper, card). "B": 1x1 convolution and BatchNorm.
    )
    bn_scale_init: str = (
        "uniform"  # "uniform": U[0, 1), as the card's number was reached. "ones": the usual.
    )
    dtype: str = "auto"  # Of activations. "auto": bfloat16 on accelerators, float32 on a CPU.

    # Data. Splits are TFDS strings; they count in the order of the original archive.
    dataset: str = "cifar10"  # "cifar10", "cifar100", "synthetic" (10 classes) or "synthetic100".
    data_dir: str = (
        ""  # Folder of the TFDS data sets; empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    )
    train_split: str = "train"
    validation_split: str = (
        ""  # Scored while training if given; the test set is then scored once, at the end.
    )

    # Recipe.
    batch_size: int = 1024  # Images a step, over all devices. A last partial batch is dropped.
    num_epochs: float = 160
    learning_rate: float = 1.2  # Its peak, after the warm-up.
    warmup: str = (
        "linear"  # "linear": from 0, step by step. "constant": at learning_rate * decay_factor.
    )
    warmup_epochs: float = 5
    decay: str = (
        "steps"  # "steps": at decay_epochs. "cosine" and "linear": from the peak to 0 at the end.
    )
    decay_epochs: tuple[float, ...] = (80, 120)  # Of decay="steps"; the others do not look at them.
    decay_factor: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4  # Coupled (L2), on all parameters.

    # Run.
    seed: int = 0  # Of the parameters, the order, the augmentation and the synthetic images.
    eval_every_epochs: int = 1  # 0: at the end only.
    checkpoint_every_epochs: int = 10  # 0: at the end only.


CHOICES = {
    "shortcut": ("A", "B"),
    "bn_scale_init": ("uniform", "ones"),
    "dtype": ("auto", "float32", "bfloat16"),
    "dataset": tuple(DATASETS),
    "warmup": ("linear", "constant"),
    "decay": ("steps", "cosine", "linear"),
}
# Field: smallest and largest value allowed.
RANGES = {
    "width": (1, math.inf),
    "batch_size": (1, math.inf),
    "num_epochs": (0, 1_000_000),
    "learning_rate": (0, math.inf),
    "warmup_epochs": (0, math.inf),
    "decay_epochs": (0, math.inf),
    "decay_factor": (0, 1),
    "momentum": (0, 1),
    "weight_decay": (0, 1),
    "seed": (0, 2**32 - 1),
    "eval_every_epochs": (0, math.inf),
    "checkpoint_every_epochs": (0, math.inf),
}


def validate(config: Config) -> None:
    """Raise a UserError that names the first field whose value makes no sense."""
    for name, kind in get_type_hints(Config).items():
        value = getattr(config, name)
        check_type(name, value, kind)
        if name in CHOICES and value not in CHOICES[name]:
            raise UserError(unknown(f"config.{name}={value!r}", value, CHOICES[name]))
        for number in value if isinstance(value, tuple) else (value,):
            if name in RANGES and not (
                RANGES[name][0] <= number <= RANGES[name][1] and math.isfinite(number)
            ):
                low, high = RANGES[name]
                limits = f"at least {low}" if high == math.inf else f"from {low} to {high}"
                raise UserError(f"config.{name}={value} is out of range: it must be {limits}")
    if problem := depth_problem(config.depth):
        raise UserError(f"config.{problem}")
    if any(a >= b for a, b in itertools.pairwise(milestones(config))):
        raise UserError(
            f"milestones out of order: warmup_epochs={config.warmup_epochs}, decay_epochs={config.decay_epochs} and "
            f"num_epochs={config.num_epochs} must each come after the one before"
        )


def milestones(config: Config) -> tuple[float, ...]:
    """Return the epochs at which the schedule changes: the end of the warm-up, the decays and the end."""
    return (
        config.warmup_epochs,
        *(config.decay_epochs if config.decay == "steps" else ()),
        config.num_epochs,
    )


def check_type(name: str, value: Any, kind: Any) -> None:
    """Raise a UserError unless a value is of a field's type; an int passes as a float, a bool as a bool only."""
    allowed = {float: (int, float)}.get(kind, (get_origin(kind) or kind,))
    members = value if isinstance(value, tuple) else ()
    bad_member = any(isinstance(m, bool) or not isinstance(m, (int, float)) for m in members)
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, allowed) or bad_member:
        wanted = "numbers like 80,120" if get_origin(kind) else f"of type {kind.__name__}"
        raise UserError(f"config.{name}={value!r} must be {wanted}")


def unknown(subject: str, value: Any, choices: Any) -> str:
    """Say that a subject, whose value is none of the choices, is unknown, and which choice is nearest."""
    nearest = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return f"{subject} is unknown: {hint}the choices are {', '.join(choices)}"


def with_defaults(saved: dict[str, Any]) -> dict[str, Any]:
    """Complete a config that was saved before some fields existed; tuples become lists."""
    defaults = dataclasses.asdict(Config())
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in {**defaults, **saved}.items()
    }
