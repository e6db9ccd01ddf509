"""Compare finished runs, or groups of runs that differ in their seeds.

  resnet_cifar compare runs/resnet20-cifar10-seed0 runs/resnet32-cifar10-seed0
  resnet_cifar compare runs/with_mixup runs/without --output=comparison.png

Each PATH is the folder of a run, or a folder with folders of runs; unfinished ones are left out.
Prints the fields that differ, the accuracies, and the difference over pairs of equal seeds with
its 95 % interval (Student's t). With --output, draws the test accuracy over epochs. For two single
runs, `resnet_cifar evaluate` compares their answers image by image.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from resnet_cifar.cli import operands
from resnet_cifar.errors import UserError
from resnet_cifar.report.publish import draw_learning
from resnet_cifar.report.run_comparisons import comparison, read_groups
from resnet_cifar.stop import Stop

HIDDEN = None


def define_flags(values: flags.FlagValues) -> None:
    text = "Picture (.png) of the test accuracy over epochs."
    flags.DEFINE_string("output", "", text, flag_values=values)


def main(values: flags.FlagValues, arguments: list[str], stop: Stop) -> None:
    del stop
    output = values["output"].value
    compare(operands(values, arguments), Path(output) if output else None)


def compare(paths: Sequence[str | Path], output: Path | None = None) -> None:
    """Print a comparison of runs, or of groups of runs, and draw their curves.

    Args:
      paths: folders of runs, or folders that hold those of several seeds; at least two.
      output: a picture, `.png`.

    Raises:
      UserError: a folder has no finished run, or the picture can't be written.
    """
    if output and output.suffix != ".png":
        raise UserError(f"--output={output} must end in .png")
    groups = read_groups([Path(path).expanduser() for path in paths])
    print("\n".join(comparison(groups)))
    if output:
        try:
            draw_learning(groups, output)
        except OSError as error:
            raise UserError(f"the picture can't be written: {error}") from error
        print(f"wrote {output}")


if __name__ == "__main__":
    sys.exit("error: the command is python -m resnet_cifar compare")
