"""Say in a sentence that an older Python will not do: pip before 23.1 lists pages of versions."""

import sys

from setuptools import setup

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit(
        f"error: resnet_cifar needs Python 3.11 or later, and this is {sys.version.split()[0]}"
    )

setup()  # Everything else is in pyproject.toml.
