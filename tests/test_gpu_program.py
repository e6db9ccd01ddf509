"""The counts of a GPU program, and the programs of ResNet8 compiled for a GPU without one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_program_hlo import count, launches
from benchmarks.limits import training_bytes

ROOT = Path(__file__).parents[1]
# Two images: at least 8,192 elements are large. The gather takes 2 x 3,072 bytes of 30,720.
HLO = """
HloModule jit_scan, is_scheduled=true

%gathering (p0: u8[10,32,32,3], p1: s32[2]) -> bf16[2,32,32,3] {
  %p0 = u8[10,32,32,3]{3,2,1,0} parameter(0)
  %p1 = s32[2]{0} parameter(1)
  %taken = u8[2,32,32,3]{3,2,1,0} gather(%p0, %p1), offset_dims={1,2,3}
  ROOT %converted = bf16[2,32,32,3]{3,2,1,0} convert(%taken)
}

%widening (p.2: bf16[2,32,32,16]) -> (f32[2,32,32,16], f32[16]) {
  %p.2 = bf16[2,32,32,16]{3,2,1,0} parameter(0)
  %wide = f32[2,32,32,16]{3,2,1,0} convert(%p.2)
  %sum = f32[16]{0} reduce(%wide, %zero), dimensions={0,1,2}, to_apply=%add
  ROOT %both = (f32[2,32,32,16]{3,2,1,0}, f32[16]{0}) tuple(%wide, %sum)
}

%updating (p.3: f32[48], p.4: f32[], p.5: s32[]) -> f32[48] {
  %p.3 = f32[48]{0} parameter(0)
  %p.4 = f32[] parameter(1)
  %p.5 = s32[] parameter(2)
  %one = f32[1]{0} bitcast(%p.4)
  ROOT %updated = f32[48]{0} dynamic-update-slice(%p.3, %one, %p.5)
}

%body (state: (s32[], f32[48], u8[10,32,32,3], s32[2])) -> (s32[], f32[48]) {
  %state = (s32[], f32[48]{0}, u8[10,32,32,3]{3,2,1,0}, /*index=3*/s32[2]{0}) parameter(0)
  %step = s32[] get-tuple-element(%state), index=0
  %losses = f32[48]{0} get-tuple-element(%state), index=1
  %data = u8[10,32,32,3]{3,2,1,0} get-tuple-element(%state), index=2
  %rows = s32[2]{0} get-tuple-element(%state), index=3
  %images = bf16[2,32,32,3]{3,2,1,0} fusion(%data, %rows), kind=kLoop, calls=%gathering
  %kernel = bf16[3,3,3,16]{3,2,1,0} constant({...})
  %conv = (bf16[2,32,32,16]{3,2,1,0}, u8[0]{0}) custom-call(%images, %kernel), custom_call_target="__cudnn$convForward", backend_config={"a":"b"}
  %y = bf16[2,32,32,16]{3,2,1,0} get-tuple-element(%conv), index=0
  %copied = bf16[2,32,32,16]{2,3,1,0} copy(%y)
  %widened = (f32[2,32,32,16]{3,2,1,0}, f32[16]{0}) fusion(%copied), kind=kInput, calls=%widening
  %loss = f32[] constant(0)
  %start = ((f32[48]{0}, f32[], s32[]), f32[48]{0}, u32[]) fusion-start(%losses, %loss, %step), kind=kLoop, calls=%updating
  %done = f32[48]{0} fusion-done(%start)
  ROOT %next = (s32[], f32[48]{0}) tuple(%step, %done)
}

ENTRY %main (arg: s32[]) -> s32[] {
  %arg = s32[] parameter(0)
  %loop = (s32[], f32[48]{0}) while(%arg), condition=%condition, body=%body
  ROOT %out = s32[] get-tuple-element(%loop), index=0
}
"""  # noqa: E501
THUNKS = """
000: kCommandBuffer [source | next=001 (1)]
    001: kCustomKernel [source | sink] loop_fusion
002: kWhile         [prev=000 (1) | sink]
condition:
    003: kCustomKernel [source | sink] loop_compare_fusion
  body:
    000: kCommandBuffer [source | next=006 (1)]
        004: kCustomKernel [source | next=005 (1)] gathering
        005: kCopy         [prev=004 (1) | sink] kCopy
    006: kConvolution   [prev=000 (1) | sink] kConvolution
    007: kAsyncStart    [source | sink] async_id=7
    008: kCustomKernel  [prev=006 (1) | sink] widening
    009: kAsyncDone     [source | sink] async_id=7
010: kCopy [source | sink] kCopy
"""


def test_counts_of_a_step():
    image, activation = 2 * 3_072, 2 * 16_384
    gather = image + 2 * 4 + 2 * image
    convolution = 2 * image + 2 * 432 + 2 * activation
    copy = 2 * 2 * activation
    widen = 2 * activation + 4 * activation + 4 * 16
    update = 4 + 4 + 4
    assert count(HLO, batch_size=2) == {
        "kernels": 5,
        "convolutions": 1,
        "bytes_per_image": (gather + convolution + copy + widen + update) / 2,
        "large_float32": 1,
        "large_copies": 1,
    }
    assert count(HLO, batch_size=1000)["large_float32"] == 0


def test_launches_of_a_step():
    assert launches(THUNKS) == 4
    assert launches("000: kCommandBuffer\n    001: kCopy\n002: kGemm\n") == 2


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None, reason="needs jax-cuda12-plugin"
)
def test_programs_without_large_float32(tmp_path):
    """Compiled in a process of their own, as the plugin registers itself in JAX."""
    command = "-m benchmarks.gpu_program --depths=8 --gpus=h100 --only=train,eval"
    output = tmp_path / "out.json"
    subprocess.run(
        [sys.executable, *command.split(), f"--output={output}"],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        check=True,
        timeout=600,
    )
    train, evaluation = json.loads(output.read_text())["rows"]
    assert training_bytes(8) < train["bytes_per_image"] < 1.05 * training_bytes(8)
    assert (train["convolutions"], evaluation["convolutions"]) == (3 * 7 - 1, 7)
    assert train["launches"] < train["kernels"]
    assert all(row["large_float32"] == row["large_copies"] == 0 for row in (train, evaluation))


def test_published_programs():
    """At most 17.2 MB an image for ResNet56, never less than the limit, no large float32."""
    rows = json.loads((ROOT / "results" / "gpu_program.json").read_text())["rows"]
    of = {(row["gpu"].split()[1], row["depth"], row["program"]): row for row in rows}
    assert of["H100", 56, "train"]["bytes_per_image"] <= 17.2e6
    assert of["H100", 56, "eval"]["bytes_per_image"] <= 4.8e6
    for (gpu, depth, program), row in of.items():
        if program == "train":
            assert row["bytes_per_image"] >= training_bytes(depth)
            assert row["bytes_per_image"] < of[gpu, depth, "plain"]["bytes_per_image"]
            assert row["large_float32"] == 0
