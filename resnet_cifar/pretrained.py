"""Load a trained network, look into it, and give it a new head."""

import dataclasses
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from resnet_cifar import hub
from resnet_cifar.data import AnyArray
from resnet_cifar.errors import UserError
from resnet_cifar.layers import he_normal
from resnet_cifar.models import ResidualBlock, ResNet
from resnet_cifar.variables import unstack_blocks
from resnet_cifar.weights import Preprocessing, Pretrained, assemble, read_weights
from resnet_cifar.workdir import absolute

__all__ = ["Preprocessing", "Pretrained", "features", "load", "with_new_head"]

WEIGHTS = "model.safetensors"
EMA = "ema/"  # Begins the paths of the averages in a checkpoint.
PUBLISHED = Path(__file__).parents[1] / "weights"  # In a clone only: the wheel leaves them out.


def load(path: str | Path, *, averaged: bool = True, api: Any = None) -> Pretrained:
    """Load a trained network; nothing that is read is written, moved or deleted.

    Args:
      path: the workdir of a run (its newest good checkpoint), one checkpoint
        `WORKDIR/checkpoints/STEP`, a safetensors file, a folder with `model.safetensors`, in a
        clone of the repository the name of a file in its folder `weights`, such as
        "resnet20-cifar10", or `hf://USER/NAME` on the Hugging Face hub, the only one that is
        downloaded.
      averaged: of a run with `ema_decay`, return the averaged weights, which are its result. False:
        those of the last step, as the same run without `ema_decay` would have.
      api: has the methods of `huggingface_hub.HfApi`, its default.

    Returns:
      The network with its preprocessing, class names and config. It unpacks:
      `model, variables, preprocessing = load(path)`.

    Raises:
      UserError: there is no trained network, or it is damaged.

    Example:
      >>> from resnet_cifar import load, load_images
      >>> pretrained = load("resnet56-cifar10")
      >>> images, labels = load_images("cifar10", "test[:100]")  # doctest: +SKIP
      >>> pretrained.logits(images).argmax(axis=1)  # doctest: +SKIP
    """
    if str(path).startswith(hub.SCHEME):
        return dataclasses.replace(load(hub.fetch(str(path), api)), source=str(path))
    folder = absolute(path)
    try:
        if not folder.exists():
            folder = published(path) or folder
        if (folder / "checkpoints").is_dir():
            pretrained = read_checkpoints(folder, newest_first(folder / "checkpoints"), averaged)
        elif (folder / WEIGHTS).exists():
            pretrained = read_weights(folder / WEIGHTS)
        elif (folder / "metadata").is_dir():
            pretrained = read_checkpoints(folder, [folder], averaged)
        elif folder.is_file():
            pretrained = read_weights(folder)
        else:
            raise UserError(
                f"{path} {'holds no network' if folder.exists() else 'does not exist'}: give a "
                f"workdir, one of its checkpoints, a {WEIGHTS}, a folder that holds one, or "
                f"{published_names()}"
            )
    except OSError as error:
        raise UserError(f"{path} can't be read ({error}): check its name and its mode") from error
    return dataclasses.replace(pretrained, source=str(path))


def published(name: str | Path, folder: Path = PUBLISHED) -> Path | None:
    """Return the file of published weights with this name, None if there is none."""
    path = folder / f"{name}.safetensors"
    return path if path.parent == folder and path.is_file() else None


def published_names(folder: Path = PUBLISHED) -> str:
    """Return the choices among the published weights, for an error."""
    names = sorted(path.stem for path in folder.glob("*.safetensors"))
    return ", ".join(names) or "in a clone of the repository a name from its folder weights"


def newest_first(folder: Path) -> list[Path]:
    from resnet_cifar.checkpoint.format import saved_steps

    return [folder / str(step) for step in reversed(saved_steps(folder))]


def read_checkpoints(folder: Path, checkpoints: list[Path], averaged: bool) -> Pretrained:
    """Return the first good one of some checkpoints; damaged ones before it go to stderr."""
    from resnet_cifar.checkpoint.format import Damaged, read

    problems = []
    for path in checkpoints:
        try:
            metadata, arrays = read(path)
        except Damaged as problem:
            problems.append(f"the checkpoint {path} {problem}")
            continue
        own = {n.removeprefix(EMA): a for n, a in arrays.items() if n.startswith(EMA)}
        chosen = own if own and averaged else arrays
        config = metadata.get("config", {})
        pretrained = assemble(
            f"the checkpoint {path}",
            {n: a for n, a in chosen.items() if n.partition("/")[0] in ("params", "batch_stats")},
            metadata.get("preprocessing"),
            metadata.get("class_names"),
            config if averaged or not own else {**config, "ema_decay": 0.0},
        )
        for problem in problems:
            print(f"warning: {problem}; using that of step {path.name}", file=sys.stderr)
        return pretrained
    if problems:
        raise UserError(f"{folder} holds no good checkpoint: {'; '.join(problems)}")
    raise UserError(f"{folder} holds no checkpoint yet: wait for the first, or choose another")


def features(
    model: ResNet, variables: Any, images: Float[AnyArray, "b h w 3"]
) -> dict[str, Float[Array, "b ..."]]:
    """Return what a network makes of normalized images, layer by layer.

    Returns:
      "stem" and "stage1_block1" to "stage3_blockN", the activations [b, h, w, c] of stem and
      blocks, and "pooled", the mean over the pixels of the last block: the float32 vector
      [b, 4 * width] from which the head computes the logits.

    Example:
      >>> from resnet_cifar import ResNet
      >>> model, images = ResNet(depth=8), jnp.zeros((2, 32, 32, 3))
      >>> variables = lambda: model.init(jax.random.key(0), images, train=False)
      >>> shapes = jax.eval_shape(lambda: features(model, variables(), images))
      >>> shapes["stage3_block1"].shape, shapes["pooled"].shape
      ((2, 8, 8, 64), (2, 64))
    """
    outputs = compute_features(model, variables, images)
    blocks = range(1, (model.depth - 2) // 6 + 1)  # In the order of the network, not of the names.
    names = [f"stage{stage}_block{block}" for stage in (1, 2, 3) for block in blocks]
    return {name: outputs[name] for name in ("stem", *names, "pooled")}


@partial(jax.jit, static_argnums=0)
def compute_features(model: ResNet, variables: Any, images: Any) -> dict[str, Any]:
    def wanted(module, _):
        return isinstance(module, ResidualBlock) or module.name == "stem_bn"

    # The native unit leaves normalization and ReLU to the next convolution, and flax can't look
    # into the loop of `remat`.
    _, state = model.clone(native=False, remat=False).apply(
        unstack_blocks(variables),
        images,
        train=False,
        capture_intermediates=wanted,
        mutable=["intermediates"],
    )
    outputs: dict[str, Any] = {
        name: own["__call__"][0] for name, own in state["intermediates"].items()
    }
    last = outputs[f"stage3_block{(model.depth - 2) // 6}"]
    pooled = jnp.mean(last, axis=(1, 2), dtype=jnp.float32)
    return {**outputs, "stem": outputs["stem_bn"], "pooled": pooled}


def with_new_head(
    pretrained: Pretrained,
    num_classes: int,
    class_names: Sequence[str] | None,
    key: Key[Array, ""],
) -> Pretrained:
    """Return a copy whose head is untrained and has other classes.

    Args:
      pretrained: its backbone and preprocessing are kept.
      num_classes: length of the new logits.
      class_names: in the order of the new labels; None for "0", "1", ...
      key: random key for the head.

    Raises:
      UserError: there are not as many names as classes.
    """
    names = tuple(class_names or map(str, range(num_classes)))
    if len(names) != num_classes:
        raise UserError(f"class_names has {len(names)} names, but num_classes={num_classes}")
    params = pretrained.variables["params"]
    shape = (params["head"]["kernel"].shape[0], num_classes)
    head = {
        "kernel": np.asarray(he_normal(key, shape, jnp.float32)),
        "bias": np.zeros(num_classes, np.float32),
    }
    return dataclasses.replace(
        pretrained,
        model=pretrained.model.clone(num_classes=num_classes),
        variables={**pretrained.variables, "params": {**params, "head": head}},
        class_names=names,
    )
