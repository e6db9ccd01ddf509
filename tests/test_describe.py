"""The header says what will happen, in the numbers of the schedule itself."""

import dataclasses

import jax
import pytest

from resnet_cifar import describe
from resnet_cifar.plan import blank_splits
from resnet_cifar.recipes import make_config
from resnet_cifar.trainer import Trainer


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        (
            {"warmup": "constant", "decay_factor": 0.5},
            [
                "0.05 until step 4 (epoch 1)",
                "0.1 until step 8 (epoch 2)",
                "0.05 until step 12 (epoch 3)",
                "0.025 until step 16 (epoch 4)",
            ],
        ),
        (
            {"decay": "cosine"},
            [
                "rising from 0 to 0.1 until step 4 (epoch 1)",
                "cosine from 0.1 to 0 until step 16 (epoch 4)",
            ],
        ),
    ],
)
def test_the_header_has_the_schedule(tiny, fields, lines):
    trainer = Trainer(dataclasses.replace(tiny, **fields), load=blank_splits)
    found = [line.split("learning rate ")[1] for line in describe.schedule_lines(trainer)]
    assert found == lines


def test_the_header_says_whose_kernels_run(tiny):
    device = describe.header(Trainer(tiny, load=blank_splits))[0]
    assert device.endswith(f", XLA's kernels (width={tiny.width} is no multiple of 16)")


def test_the_time_to_compile_with_remat_is_that_of_any_depth(tiny):
    def line(**fields):
        return describe.compiling(Trainer(dataclasses.replace(tiny, **fields), load=blank_splits))

    assert line(depth=1202, remat=True) == line(depth=56, remat=True) != line(depth=56)
    assert line(depth=8, remat=True) == line(depth=8)


def test_operations_in_a_loop_over_blocks_are_not_counted(tiny):
    trainer = Trainer(dataclasses.replace(tiny, depth=20, remat=True), load=blank_splits)
    assert describe.compute(trainer, jax.eval_shape(trainer.init_state)).startswith("not counted")


def test_the_header_names_every_split(tiny):
    config = dataclasses.replace(tiny, validation_split="train[130:200]")
    header = "\n".join(describe.header(Trainer(config, load=blank_splits)))
    assert "130 train, 100 test, 70 validation" in header


def test_the_header_says_what_is_split(tiny):
    four = "\n".join(describe.header(Trainer(tiny, load=blank_splits)))
    assert "split      each batch, 8 images on each of 4 devices" in four
    one = describe.header(Trainer(dataclasses.replace(tiny, num_devices=1), load=blank_splits))
    assert "each batch" not in "\n".join(one)


def test_the_header_says_what_linear_scaling_would_give():
    assert not describe.scaling_hint(make_config("card"))
    (hint,) = describe.scaling_hint(make_config("card", batch_size=4096))
    assert "card has 1.2 for batches of 1,024" in hint and "learning_rate=4.8" in hint
    assert not describe.scaling_hint(make_config("card", batch_size=4096, learning_rate=4.8))
    (hint,) = describe.scaling_hint(make_config("paper", batch_size=256))
    assert "learning_rate=0.2" in hint


def test_the_schedule_is_drawn_from_start_to_end(tiny):
    points = describe.learning_rates(Trainer(tiny, load=blank_splits))
    assert points[0] == (0.0, 0.0) and len(points) == 16
    assert points[-1][0] == 15 / 4 and points[-1][1] == pytest.approx(0.001)
