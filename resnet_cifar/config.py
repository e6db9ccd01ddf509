"""Every hyperparameter, with its unit and source, and the validation of a config."""

import contextlib
import dataclasses
import difflib
import itertools
import math
from typing import Any, get_origin, get_type_hints

from resnet_cifar.data import DATASETS, is_dataset
from resnet_cifar.errors import UserError
from resnet_cifar.models import depth_problem


@dataclasses.dataclass
class Config:
    """One run. The defaults are the card's recipe for ResNet56 on CIFAR-10.

    Durations are in epochs, may be fractional, and are rounded to whole steps.
    """

    # Model.
    depth: int = 56  # 6n + 2 layers (He et al. 2015, section 4.2).
    width: int = 16  # Filters of the first stage. The next stages have 2x and 4x as many.
    shortcut: str = "A"  # "A": zero-padded identity (paper, card). "B": 1x1 conv + BatchNorm.
    bn_scale_init: str = "uniform"  # "uniform": U[0, 1), as in the card's run. "ones": standard.
    dtype: str = "auto"  # Activations: "auto" is bfloat16 on accelerators, float32 on a CPU.
    remat: bool = False  # True: takes less memory and more time (rematerialization).
    init_from: str = ""  # Trained weights to finetune: a workdir, a checkpoint, a safetensors file.

    # Data. Splits are TFDS strings. Slices count in the order of the original archive.
    dataset: str = "cifar10"  # Or "cifar100", "synthetic", "synthetic100", or a path: your images.
    data_dir: str = ""  # TFDS folder. Empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    train_split: str = "train"  # Images to train on; a slice is "train[:45000]".
    validation_split: str = ""  # If given, scored while training; the test set only at the end.

    # Recipe.
    batch_size: int = 1024  # Images per step over all devices. The last partial batch is dropped.
    num_epochs: float = 160  # Length of the run.
    learning_rate: float = 1.2  # Peak, after the warm-up.
    warmup: str = "linear"  # "linear": rises from 0. "constant": learning_rate * decay_factor.
    warmup_epochs: float = 5  # Length of the warm-up; 0: none.
    decay: str = "steps"  # "steps": at decay_epochs. "cosine", "linear": from the peak to 0.
    decay_epochs: tuple[float, ...] = (80, 120)  # When the rate drops, for decay="steps".
    decay_factor: float = 0.1  # Factor of the rate at each of decay_epochs.
    momentum: float = 0.9  # Decay of the averaged gradient; b1 of "adamw".
    nesterov: bool = False  # True: Nesterov momentum.
    weight_decay: float = 1e-4  # Coupled (L2) for "sgd", decoupled for the others.
    decay_mask: bool = False  # True: no weight decay of BatchNorm and biases.
    optimizer: str = "sgd"  # Or "adamw" (Loshchilov & Hutter 2019), "muon" (Jordan et al. 2024).

    # Regularization, off by default.
    label_smoothing: float = 0.0  # Usual: 0.1 (Szegedy et al. 2016). Evaluation stays plain.
    mixup: float = 0.0  # Alpha of Beta(alpha, alpha), usual: 0.2 to 1 (Zhang et al. 2018).
    mixup_off_epochs: float = 0.0  # The last epochs go without mixup (GluonCV).
    cutout: int = 0  # Side of the square in pixels, usual: 16 or 8 (DeVries & Taylor 2017).
    ema_decay: float = 0.0  # Per step, of averaged weights. Usual: 0.999, or 0.9998 (timm).
    train_fraction: float = 1.0  # Share of the train split, chosen by the seed.
    label_noise: float = 0.0  # Share of training labels with another class, chosen by the seed.

    # Run.
    seed: int = 0  # Seeds the parameters, the order, the augmentation and the synthetic images.
    eval_every_epochs: int = 1  # Epochs between evaluations; 0: only at the end.
    checkpoint_every_epochs: int = 10  # Epochs between checkpoints; 0: only at the end.
    num_devices: int = 0  # Devices to split each batch over, in all processes. 0: all of them.


CHOICES = {
    "shortcut": ("A", "B"),
    "bn_scale_init": ("uniform", "ones"),
    "dtype": ("auto", "float32", "bfloat16"),
    "warmup": ("linear", "constant"),
    "optimizer": ("sgd", "adamw", "muon"),
    "decay": ("steps", "cosine", "linear"),
}
FLOAT32 = (1.1754944e-38, 3.4028234e38)  # Smallest normal and largest value.
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
    "label_smoothing": (0, 1),
    "mixup": (0, math.inf),
    "mixup_off_epochs": (0, math.inf),
    "cutout": (0, 32),
    "ema_decay": (0, 1),
    "train_fraction": (0, 1),
    "label_noise": (0, 1),
    "seed": (0, 2**32 - 1),
    "eval_every_epochs": (0, math.inf),
    "checkpoint_every_epochs": (0, math.inf),
    "num_devices": (0, math.inf),
}


def validate(config: Config) -> None:
    """Raise a UserError that names the first field with an invalid value.

    Example:
      >>> validate(Config(depth=20))
      >>> validate(Config(momentum=1.5))
      Traceback (most recent call last):
      resnet_cifar.errors.UserError: config.momentum=1.5 is out of range: it must be from 0 to 1
    """
    for name, kind in get_type_hints(Config).items():
        value = getattr(config, name)
        check_type(name, value, kind)
        if name in CHOICES and value not in CHOICES[name]:
            raise UserError(unknown(f"config.{name}={value!r}", value, CHOICES[name]))
        if name in RANGES:
            check_range(name, value, kind)
    if not is_dataset(config.dataset):
        choices = (*DATASETS, "the path of a folder or an .npz")
        raise UserError(unknown(f"config.dataset={config.dataset!r}", config.dataset, choices))
    if problem := depth_problem(config.depth):
        raise UserError(f"config.{problem}")
    if not config.train_split:
        raise UserError(
            'config.train_split=\'\' names no images: use "train" or a slice like "train[:45000]"'
        )
    if config.mixup_off_epochs > config.num_epochs:
        raise UserError(
            f"config.mixup_off_epochs={config.mixup_off_epochs} must be at most "
            f"config.num_epochs={config.num_epochs}"
        )
    if any(a >= b for a, b in itertools.pairwise(milestones(config))):
        raise UserError(milestone_problem(config))


def check_range(name: str, value: Any, kind: Any) -> None:
    low, high = RANGES[name]
    for number in value if isinstance(value, tuple) else (value,):
        if not low <= number <= high or number == math.inf:
            limits = f"at least {low}" if high == math.inf else f"from {low} to {high}"
            raise UserError(f"config.{name}={value} is out of range: it must be {limits}")
        if kind is not int and number and not FLOAT32[0] <= number <= FLOAT32[1]:
            raise UserError(
                f"config.{name}={value} is out of range: float32 holds 0 and "
                f"{FLOAT32[0]:.2g} to {FLOAT32[1]:.2g}"
            )


def milestones(config: Config) -> tuple[float, ...]:
    """Return the epochs at which the schedule changes: end of warm-up, decays, end of training."""
    decays = config.decay_epochs if config.decay == "steps" else ()
    return (config.warmup_epochs, *decays, config.num_epochs)


def milestone_problem(config: Config) -> str:
    names = ["warmup_epochs", "decay_epochs", "num_epochs"]
    if config.decay != "steps" or not config.decay_epochs:
        names.remove("decay_epochs")
    values = ", ".join(f"config.{name}={getattr(config, name)}" for name in names)
    return f"{values} must be in ascending order: raise or lower one of them"


def with_defaults(saved: dict[str, Any]) -> dict[str, Any]:
    """Complete the saved dict of a config, in the form of JSON, for comparison with another.

    A field that is missing gets its default, numbers of float fields become floats, and tuples
    become lists. Unknown fields and values of a wrong type stay as they are.

    Example:
      >>> with_defaults({"num_epochs": 160}) == with_defaults(dataclasses.asdict(Config()))
      True
    """
    completed = dataclasses.asdict(Config()) | saved
    kinds = get_type_hints(Config)
    return {name: as_json(value, kinds.get(name)) for name, value in completed.items()}


def as_json(value: Any, kind: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [as_json(member, float) for member in value]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return float(value)
    return value


def check_type(name: str, value: Any, kind: Any) -> None:
    """Raise a UserError unless a value has its field's type; an int passes as a float."""
    allowed = {float: (int, float)}.get(kind, (get_origin(kind) or kind,))
    members = value if isinstance(value, tuple) else ()
    bad_member = any(isinstance(m, bool) or not isinstance(m, (int, float)) for m in members)
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, allowed) or bad_member:
        numbers = "numbers like 80,120, or () for none"
        wanted = numbers if get_origin(kind) else f"of type {kind.__name__}"
        raise UserError(f"config.{name}={value!r} must be {wanted}")


def unknown(subject: str, value: Any, choices: Any) -> str:
    """Return a message that a value is unknown, with the nearest choice and all choices."""
    nearest = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return f"{subject} is unknown: {hint}the choices are {', '.join(choices)}"
