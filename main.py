"""Train a CIFAR ResNet.

  python main.py --config=configs/resnet56.py
  python main.py --config=configs/resnet56.py:paper --config.dataset=cifar100 --config.seed=3

`python main.py --help` lists the flags and the fields of a config.
"""

import signal
import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        f"error: resnet_cifar needs Python 3.11 or later, and this is {sys.version.split()[0]}"
    )

before = signal.getsignal(signal.SIGINT)
if not hasattr(sys, "ps1"):  # Not at a prompt. Some of the imports would swallow a Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
try:
    from resnet_cifar.cli import run
finally:
    signal.signal(signal.SIGINT, before)

if __name__ == "__main__":
    run("resnet_cifar.train_command", sys.argv)
