"""Write a trained network for use elsewhere, and verify what was written.

  resnet_cifar export runs/resnet20-cifar10-seed0 --output=exported
  resnet_cifar export runs/resnet20-cifar10-seed0 --output=exported --format=torch
  resnet_cifar export runs/resnet20-cifar10-seed0 --output=exported --push=USER/NAME

PATH is whatever `load` takes: a workdir, one of its checkpoints, a .safetensors file or, in a
clone, the name of a file in weights/ such as resnet20-cifar10. What was
written is read again and compared with the network, before the command succeeds. The formats:

  safetensors  The copy to keep: every later version reads it. model.safetensors has the arrays, the
               config, the preprocessing, the class names, and a digest of it all. config.json and
               README.md are for the Hugging Face hub.
  torch        model.pt is a state_dict for torch.load, also with weights_only=True, with the names
               of akamaster/pytorch_resnet_cifar10 (shortcut A) or chenyaofo/pytorch-cifar-models
               (B). model.pt.json has the preprocessing and the class names. PyTorch keeps reading
               such files, but the two projects may rename their layers.
  stablehlo    model.stablehlo is a program for jax.export.deserialize: uint8 images [b, 32, 32, 3]
               in, probabilities out, on cpu, cuda and tpu. JAX reads it for six months at least:
               never keep it as the only copy. model.stablehlo.json describes it.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax.traverse_util import unflatten_dict

from resnet_cifar import hub
from resnet_cifar.checkpoint.format import by_path
from resnet_cifar.cli import enable_compile_cache, operands
from resnet_cifar.data import load_images
from resnet_cifar.errors import UserError
from resnet_cifar.model_card import hub_config, model_card
from resnet_cifar.pretrained import Pretrained, load
from resnet_cifar.stop import Stop
from resnet_cifar.torch_file import read_torch
from resnet_cifar.torch_names import from_torch, to_torch
from resnet_cifar.torch_writer import torch_bytes
from resnet_cifar.variables import stack_blocks, unstack_blocks
from resnet_cifar.weights import compute_logits, weights_bytes
from resnet_cifar.workdir import absolute, write_atomically

HIDDEN = None
PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = 1e-4  # Largest difference of a probability: XLA may round another program differently.
NUM_IMAGES = 64

Probabilities = Callable[[np.ndarray], np.ndarray]


def export(
    path: str | Path,
    output: str | Path,
    *,
    form: str = "safetensors",
    push: str = "",
    api: Any = None,
) -> float:
    """Write a trained network in another form, verify it, and push it if asked to.

    Args:
      path: of the network, as for `load`.
      output: a folder, made if it does not exist. Files of other content are not overwritten.
      form: "safetensors", "torch" or "stablehlo".
      push: USER/NAME on the Hugging Face hub, for "safetensors".
      api: has the methods of `huggingface_hub.HfApi`, its default.

    Returns:
      The largest difference between probabilities of the network and of what was written.

    Raises:
      UserError: the network can't be read, or can't be written, or is not what was written.
    """
    if form not in FORMATS:
        raise UserError(f"--format={form} is unknown: the choices are {', '.join(FORMATS)}")
    if push:
        hub.check_push(push, form)
    chosen, trained = FORMATS[form], load(path)
    folder = absolute(output)
    files = dict(zip(chosen.files, chosen.make(trained), strict=True))
    if push:
        files["README.md"] = model_card(trained, f"{hub.SCHEME}{push}").encode()
    write_files(folder, files)
    difference = largest_difference(trained, chosen.read(folder, trained))
    if not difference <= TOLERANCE:
        raise UserError(
            f"what was written to {folder} differs from the network by {difference:.2g} in a "
            f"probability, more than {TOLERANCE:g}: do not use it, and report this"
        )
    if push:
        hub.push(folder, push, api)
    return difference


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write files into a folder; UserError if it has one of them with other content.

    Those with the same content stay, so that a failed push can be retried.
    """
    try:
        for name, content in files.items():
            if (folder / name).exists() and (folder / name).read_bytes() != content:
                raise UserError(
                    f"--output={folder} has another {name}: choose another folder, or delete it"
                )
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(folder / name, content)
    except OSError as error:
        raise UserError(f"--output={folder} can't be written ({error}): choose another") from error


def largest_difference(trained: Pretrained, probabilities: Probabilities) -> float:
    """Compare two networks on synthetic images and on noise."""
    images, _ = load_images("synthetic", f"test[:{NUM_IMAGES}]")
    noise = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)
    images = np.concatenate([images, noise])
    return float(abs(probabilities(images) - trained.probabilities(images)).max())


def make_safetensors(trained: Pretrained) -> tuple[bytes, ...]:
    card = model_card(trained).encode()
    return weights_bytes(trained), json_bytes(hub_config(trained)), card


def read_safetensors(folder: Path, trained: Pretrained) -> Probabilities:
    del trained
    return load(folder).probabilities


def make_torch(trained: Pretrained) -> tuple[bytes, ...]:
    layout = "akamaster" if trained.model.shortcut == "A" else "chenyaofo"
    tensors = to_torch(by_path(unstack_blocks(trained.variables)), layout)
    facts = {"names": layout, "input": "float32 [b, 3, 32, 32]: (RGB / 255 - mean) / std"}
    return torch_bytes(tensors), json_bytes(facts | hub_config(trained))


def read_torch_again(folder: Path, trained: Pretrained) -> Probabilities:
    """Return the network of `model.pt`, by the reader of `import_torch`."""
    _, arrays = from_torch(read_torch(folder / "model.pt"))
    variables = unflatten_dict(arrays, sep="/")
    variables = stack_blocks(variables) if trained.model.remat else variables
    return dataclasses.replace(trained, variables=variables).probabilities


def make_stablehlo(trained: Pretrained) -> tuple[bytes, ...]:
    """Export `images -> probabilities` with the weights inside."""
    exported = lower(trained)
    facts = {
        "input": "uint8 [b, 32, 32, 3], RGB from 0 to 255: normalized inside",
        "output": "float32 [b, classes], probabilities",
        "platforms": PLATFORMS,
        "jax": jax.__version__,
        "calling_convention_version": exported.calling_convention_version,
    }
    return bytes(exported.serialize()), json_bytes(facts | hub_config(trained))


def lower(trained: Pretrained) -> Any:
    """Return the `jax.export.Exported` of a network, for a batch of any size."""
    from jax import export as jax_export

    def probabilities(images):
        parts = (trained.model, trained.preprocessing, trained.variables)
        return jax.nn.softmax(compute_logits(*parts, images))

    (b,) = jax_export.symbolic_shape("b")
    images = jax.ShapeDtypeStruct((b, 32, 32, 3), jnp.uint8)
    return jax_export.export(jax.jit(probabilities), platforms=PLATFORMS)(images)


def read_stablehlo(folder: Path, trained: Pretrained) -> Probabilities:
    from jax import export as jax_export

    del trained
    call = jax_export.deserialize(bytearray((folder / "model.stablehlo").read_bytes())).call
    return lambda images: np.asarray(call(images))


def json_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


class Format(NamedTuple):
    """The files of a format, how to make their contents, and how to use them."""

    files: tuple[str, ...]
    make: Callable[[Pretrained], tuple[bytes, ...]]
    read: Callable[[Path, Pretrained], Probabilities]


FORMATS = {
    "safetensors": Format(
        ("model.safetensors", "config.json", "README.md"), make_safetensors, read_safetensors
    ),
    "torch": Format(("model.pt", "model.pt.json"), make_torch, read_torch_again),
    "stablehlo": Format(
        ("model.stablehlo", "model.stablehlo.json"), make_stablehlo, read_stablehlo
    ),
}


def define_flags(values: flags.FlagValues) -> None:
    text = f"{', '.join(FORMATS)}."
    flags.DEFINE_string("format", "safetensors", text, flag_values=values)
    flags.DEFINE_string("output", "", "Folder to write to.", flag_values=values)
    text = "USER/NAME on the Hugging Face hub to push to; needs pip install huggingface_hub."
    flags.DEFINE_string("push", "", text, flag_values=values)


def main(values: flags.FlagValues, arguments: list[str], stop: Stop) -> None:
    del stop
    given: dict[str, str] = values.flag_values_dict()
    paths = operands(values, arguments)
    if len(paths) != 1:
        raise UserError(f"give one PATH, not {' '.join(paths) or 'none'}: --help has examples")
    if not given["output"]:
        raise UserError("give a folder to write to, such as --output=exported")
    form, push = given["format"], given["push"]
    enable_compile_cache()
    difference = export(paths[0], given["output"], form=form, push=push)
    names = ", ".join(FORMATS[form].files)
    print(f"wrote {names} to {given['output']}")
    print(f"read again: the probabilities differ by {difference:.2g} at most")
    if push:
        print(f"pushed to {hub.SCHEME}{push}")


if __name__ == "__main__":
    raise SystemExit("error: the command is python -m resnet_cifar export")
