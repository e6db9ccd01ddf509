"""Turn finished runs into tables and pictures.

  resnet_cifar report
  resnet_cifar report --workdir=runs/half --output=runs/half/report.json

Collects the finished runs below the workdir and prints mean and sample standard deviation for each
network. Runs that follow a recipe exactly are added to results/<recipe>.json. With --output, all
runs go into that file instead, with curves and, if the runs differ in two fields, a heat map beside
it. The best variant is chosen by validation, never by test. Then the pictures beside these files
and the tables between the markers in README.md and docs/ are regenerated.
"""

from pathlib import Path

from absl import flags

from resnet_cifar.errors import UserError
from resnet_cifar.report.publish import WORKDIR, report
from resnet_cifar.stop import Stop

HIDDEN = None


def define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", WORKDIR, "Folder of the runs' folders.", flag_values=values)
    text = "File (.json) for all runs of the workdir, whatever their config."
    flags.DEFINE_string("output", "", text, flag_values=values)
    text = "Clone of the repository; by default the nearest folder from the workdir upwards."
    flags.DEFINE_string("root", "", text, flag_values=values)


def main(values: flags.FlagValues, arguments: list[str], stop: Stop) -> None:
    del stop
    if arguments:
        raise UserError(f"the argument {arguments[0]!r} is unknown: --help lists the flags")
    given: dict[str, str] = values.flag_values_dict()
    report(
        Path(given["workdir"]),
        output=Path(given["output"]).expanduser() if given["output"] else None,
        root=Path(given["root"]) if given["root"] else None,
    )


if __name__ == "__main__":
    raise SystemExit("error: the command is python -m resnet_cifar report")
