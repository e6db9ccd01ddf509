"""The examples in the docstrings."""

import doctest
import importlib

import pytest

MODULES = (
    *("config", "data.images", "evaluation", "models", "optim", "pretrained", "recipes", "steps"),
    *("torch_names", "weights"),
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    result = doctest.testmod(importlib.import_module(f"resnet_cifar.{name}"))
    assert result.failed == 0 and (result.attempted or name == "models")
