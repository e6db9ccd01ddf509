"""Start a run from trained weights: the backbone, and the head where the classes are the same."""

from collections.abc import Callable
from typing import Any, NamedTuple

from resnet_cifar.checkpoint.format import by_path
from resnet_cifar.data import class_names, find_dataset
from resnet_cifar.errors import UserError
from resnet_cifar.pretrained import Pretrained, load
from resnet_cifar.state import TrainState, start_averages
from resnet_cifar.trainer import Trainer
from resnet_cifar.variables import stack_blocks, unstack_blocks
from resnet_cifar.weights import digest
from resnet_cifar.workdir import absolute


class Start(NamedTuple):
    """Trained weights for a run, and what checkpoint and summary say of them."""

    trained: Pretrained
    new_head: bool
    record: dict[str, Any]


def read_start(trainer: Trainer, load: Callable[[str], Pretrained] = load) -> Start | None:
    """Read `config.init_from`; None if it is empty.

    The head is new unless the classes are the same: equally many, and of the same names where both
    have names.

    Raises:
      UserError: the weights can't be read, or are of another network.
    """
    config = trainer.config
    if not config.init_from:
        return None
    trained = load(config.init_from)
    check_network(trainer, trained)
    names = class_names(config.dataset, config.data_dir)
    new_head = not same_classes(trained, trainer.programs.model.num_classes, names)
    path = absolute(config.init_from)
    record = {
        "path": str(path) if path.exists() else config.init_from,  # Or an address, or a name.
        "sha256": digest(by_path(trained.variables), {}),
        "new_head": new_head,
        "classes": trained.model.num_classes,
        "preprocessing": {name: list(rgb) for name, rgb in trained.preprocessing._asdict().items()},
    }
    return Start(trained, new_head, record)


def check_network(trainer: Trainer, trained: Pretrained) -> None:
    """Raise a UserError unless the trained network has the depth, width and shortcut of the run."""
    there, here = trained.model, trainer.programs.model
    names = [n for n in ("depth", "width", "shortcut") if getattr(there, n) != getattr(here, n)]
    if names:
        differences = ", ".join(f"{n} {getattr(there, n)}, not {getattr(here, n)}" for n in names)
        flags = " ".join(f"--config.{n}={getattr(there, n)}" for n in names)
        raise UserError(
            f"config.init_from={trainer.config.init_from!r} holds a network of {differences} as in "
            f"this config: give {flags}, or other weights"
        )


def same_classes(trained: Pretrained, num_classes: int, names: list[str]) -> bool:
    """Return whether a head fits; names that are missing or just numbers match any."""
    if trained.model.num_classes != num_classes:
        return False
    trained_names, numbers = list(trained.class_names), [str(i) for i in range(num_classes)]
    return trained_names in (names, numbers) or names in ([], numbers)


def initial_state(trainer: Trainer, start: Start | None) -> TrainState:
    """Return the state of a run at step 0; a new head has its random weights."""
    state = trainer.init_state()
    if not start:
        return state
    variables = unstack_blocks(start.trained.variables)
    if trainer.programs.model.remat:
        variables = stack_blocks(variables)
    if start.new_head:
        variables["params"]["head"] = state.params["head"]
    return start_averages(state.replace(**variables))


def start_lines(trainer: Trainer, start: Start | None) -> list[str]:
    """Return the lines of the header that say what a run begins with."""
    if not start:
        return []
    record, model = start.record, trainer.programs.model
    head = f"new head for {model.num_classes} classes" if start.new_head else "with its head"
    facts = find_dataset(trainer.config.dataset)
    found = [f"from {record['path']} (sha256 {record['sha256'][:12]}), {head}"]
    if tuple(start.trained.preprocessing) != (facts.mean, facts.std):
        found.append("trained with other pixel statistics: this run normalizes by its own images'")
    return [f"{'weights' if i == 0 else '':<10} {line}" for i, line in enumerate(found)]
