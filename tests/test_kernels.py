"""The kernels of a traced step, sorted by layer and product."""

import doctest

import pytest

from benchmarks import kernels
from benchmarks.kernels_table import kernel_table

CONVOLUTION = (
    "%conv.{n} = (bf16[2,32,32,16]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%x, %w), "
    'custom_call_target="__cudnn$conv{product}", '
    'metadata={{op_name="jit(_train)/while/body/ResNet/{layer}/conv_general_dilated"}}'
)
HLO = f"""
ENTRY %main (x: bf16[2,32,32,16], w: bf16[3,3,16,16]) -> bf16[2,32,32,16] {{
  %x = bf16[2,32,32,16]{{3,2,1,0}} parameter(0)
  %w = bf16[3,3,16,16]{{3,2,1,0}} parameter(1)
  {CONVOLUTION.format(n=1, product="Forward", layer="stage1_block1/conv1")}
  {CONVOLUTION.format(n=2, product="Forward", layer="stage1_block2/conv2")}
  {CONVOLUTION.format(n=3, product="BackwardInput", layer="stage1_block2/conv2")}
  ROOT %sum = bf16[2,32,32,16]{{3,2,1,0}} fusion(%x, %x), kind=kLoop
}}
"""
ACTIVATION, KERNEL = 2 * 32 * 32 * 16 * 2, 9 * 16 * 16 * 2


@pytest.fixture
def result():
    events = [("conv.1", 1e6), ("conv.2", 3e6), ("conv.3", 2e6), ("sum", 5e5), ("memset", 5e5)]
    summary = kernels.summarize(events * 2, HLO, steps=2)
    return {"depth": 20, "batch_size": 2, "dtype": "bfloat16", **summary}


def test_time_and_bytes_are_summed_by_layer_and_product(result):
    found = {
        (row["layer"], row["product"]): (row["milliseconds"], row["bytes"])
        for row in result["kernels"]
    }
    one = 2 * ACTIVATION + KERNEL
    assert found == {
        ("32x32, 16 to 16", "forward"): (4, 2 * one),
        ("32x32, 16 to 16", "input_gradient"): (2, one),
        (None, None): (1, 2 * ACTIVATION),
    }


def test_the_table_shows_shares_of_the_step(result):
    table = "\n".join(kernel_table(result))
    assert "| 32x32, 16 to 16 | 4.00 (0.0) | 2.00 (0.0) |  | 86% |" in table
    assert "| everything else | 1.00 (0.0) |  |  | 14% |" in table
    assert "7.0 ms of kernels" in table


def test_layer_names():
    assert doctest.testmod(kernels).attempted
    assert kernels.layer_name("stem_conv") == "32x32, 3 to 16"
    assert kernels.layer_name("stage3_block1/conv1") == "16x16, 32 to 64, stride 2"
    assert kernels.layer_name("stage1_block1/conv1") == "32x32, 16 to 16"
