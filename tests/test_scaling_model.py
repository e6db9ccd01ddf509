"""The model of several GPUs: its all-reduces are those that XLA compiled, its file is current."""

import json

import pytest

from benchmarks import scaling_model
from benchmarks.scaling_model import all_reduces, collective_seconds, load, model


def test_the_all_reduces_are_those_of_the_compiled_program():
    (row,) = (row for row in load("gpu_program_scale") if row["devices"] == 8)
    (compiled,) = row["collectives"]
    assert all_reduces(row["depth"]) == (compiled["number"], compiled["bytes"])


def test_small_all_reduces_take_what_nccl_estimates():
    """By its model for a tree with the protocol LL: 6.8 + 2 x (7 x 0.6 + log2(64) x 5) us."""
    number, size = all_reduces(56)
    seconds = collective_seconds(56, 512, "InfiniBand")
    assert seconds == pytest.approx(number * 75.2e-6 + 2 * size / 400e9)
    assert collective_seconds(56, 1, "") == 0


def test_the_file_is_what_the_model_gives():
    assert json.loads(scaling_model.OUTPUT.read_text()) == json.loads(json.dumps(model()))
