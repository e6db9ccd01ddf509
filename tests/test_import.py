"""Importing the package is cheap for those who need the steps alone."""

import subprocess
import sys


def test_import_is_light():
    code = (
        "import time, sys, jax, flax.linen; start = time.perf_counter(); import resnet_cifar;"
        "print(time.perf_counter() - start);"
        "heavy = ('tensorflow_datasets', 'tensorflow', 'orbax', 'matplotlib');"
        "print([name for name in heavy if name in sys.modules])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    seconds, loaded = out.splitlines()
    assert float(seconds) < 2
    assert loaded == "[]"


def test_public_names():
    import resnet_cifar

    for name in resnet_cifar.__all__:
        assert getattr(resnet_cifar, name).__doc__, name
