"""All commands: `python -m resnet_cifar VERB` or, once installed, `resnet_cifar VERB`."""

import difflib
import sys

from resnet_cifar import cli
from resnet_cifar.streams import safe_streams

# Verb: its module and what it does.
VERBS = {
    "train": ("resnet_cifar.train_command", "train one network, or resume its run"),
    "sweep": ("resnet_cifar.sweep", "train many networks, and resume what was interrupted"),
    "compare": ("resnet_cifar.compare", "show what differs between finished runs"),
    "evaluate": ("resnet_cifar.evaluate", "score trained networks and compare them"),
    "predict": ("resnet_cifar.predict", "classify pictures with a trained network"),
    "report": ("resnet_cifar.report.command", "turn finished runs into tables and pictures"),
    "export": ("resnet_cifar.export", "write a trained network for use elsewhere"),
    "import_torch": ("resnet_cifar.import_torch", "import the weights of a PyTorch checkpoint"),
}


def main(argv: list[str] | None = None) -> None:
    """Run a command; `argv` is like sys.argv, its default."""
    argv = sys.argv if argv is None else argv
    verb = argv[1] if len(argv) > 1 else "--help"
    if verb in VERBS:
        cli.run(VERBS[verb][0], [f"resnet_cifar {verb}", *argv[2:]])
    elif verb.lstrip("-") in cli.HELP:
        with safe_streams():
            print(usage())
    else:
        nearest = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        sys.exit(f"error: there is no command {verb!r}: {hint}the commands are {', '.join(VERBS)}")


def usage() -> str:
    """Return the list of verbs."""
    lines = ["usage: resnet_cifar VERB --FLAG=VALUE ...; resnet_cifar VERB --help lists the flags"]
    return "\n".join([*lines, ""] + [f"  {verb:<12} {text}" for verb, (_, text) in VERBS.items()])


if __name__ == "__main__":
    main()
