"""The collectives of a program for several GPUs, counted in its text."""

from benchmarks.gpu_program_hlo import parse
from benchmarks.gpu_program_scale import collectives

# A synchronous all-reduce, an asynchronous one, and an asynchronous all-gather to 8 devices.
HLO = """
ENTRY %main (p: f32[4], q: bf16[16]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %q = bf16[16]{0} parameter(1)
  %sum = f32[4]{0} all-reduce(%p), replica_groups={}, to_apply=%add
  %start = bf16[16]{0} all-reduce-start(%q), replica_groups={}, to_apply=%add
  %done = bf16[16]{0} all-reduce-done(%start)
  %gathering = (f32[4]{0}, f32[32]{0}) all-gather-start(%p), dimensions={0}
  %gathered = f32[32]{0} all-gather-done(%gathering)
  ROOT %out = f32[4]{0} add(%sum, %p)
}
"""


def test_collectives_are_counted_with_their_bytes():
    computations, _ = parse(HLO)
    (step,) = computations.values()
    assert collectives(step.values()) == [
        {"kind": "all-reduce", "number": 2, "bytes": 16 + 32, "largest_bytes": 32},
        {"kind": "all-gather", "number": 1, "bytes": 128, "largest_bytes": 128},
    ]
