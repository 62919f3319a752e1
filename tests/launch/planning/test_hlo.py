"""Cycles and collectives in the text of a compiled program."""

import pytest

from launch.planning import chips, hlo

V5E = chips.CHIPS["v5e"]
TEXT = """\
HloModule jit_f, is_scheduled=true

%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %fusion.1 = bf16[8,128]{1,0} fusion(%p), kind=kLoop, calls=%inner, \
metadata={op_name="jit(f)/Net/while/body/conv/dot_general"}, \
backend_config={"estimated_cycles":"1500"}
}

%cond (p: (s32[], bf16[8,128])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(10)
  ROOT %compare.1 = pred[]{:T(512)} compare(%a, %constant.1), direction=LT
}

ENTRY %main (x: bf16[8,128]) -> bf16[8,128] {
  %kernel.1 = bf16[8,128]{1,0} custom-call(%x), frontend_attributes={data={
"block": "256"
}}, metadata={op_name="jit(f)/Net/attention/pallas_call"}
  %while.1 = (s32[], bf16[8,128]{1,0}) while(%t), condition=%cond, \
body=%body, metadata={op_name="jit(f)/while"}
  %fusion.2 = bf16[8,128]{1,0} fusion(%x), kind=kLoop, calls=%inner, \
metadata={op_name="jit(f)/Net/norm/add"}, \
backend_config={"estimated_cycles":"3000"}
  COLLECTIVE
}
"""


def operations(collective=""):
  return hlo.operations(TEXT.replace("COLLECTIVE", collective), V5E)


def test_the_body_of_a_loop_counts_once_for_each_trip():
  found = {op.path: op for op in operations()}
  looped = found["jit(f)/Net/while/body/conv"]
  assert looped.times == 10
  assert looped.seconds == pytest.approx(10 * 1500 / 1.5e9)
  assert found["jit(f)/Net/norm"].seconds == pytest.approx(3000 / 1.5e9)
  assert len(found) == 2


def test_a_loop_that_the_compiler_starts_a_step_ahead():
  ahead = """\
  %constant.2 = s32[] constant(1)
  %add.1 = s32[]{:S(6)} add(%a, %constant.2)
  ROOT %compare.1 = pred[] compare(%add.1, %constant.1), direction=LT
"""
  lines = TEXT.splitlines(keepends=True)
  [last] = (line for line in lines if "ROOT" in line)
  found = hlo.operations(TEXT.replace(last, ahead), V5E)
  assert {op.times for op in found} == {9, 1}


def test_another_loop_is_refused():
  text = TEXT.replace("direction=LT", "direction=NE")
  with pytest.raises(ValueError, match="cannot tell the trips"):
    hlo.operations(text, V5E)


@pytest.mark.parametrize(
  ("line", "seconds"),
  [
    # 1 MiB from 4 chips: three quarters of it come over two links.
    (
      "%g = bf16[512,1024]{1,0} all-gather(%x), replica_groups=[2,4]<=[8]",
      2**20 * 3 / 4 / 90e9,
    ),
    # The tuple of an asynchronous operation has the operand too.
    (
      "%g = (bf16[128,1024]{1,0}, bf16[512,1024]{1,0}) "
      "all-gather-start(%x), replica_groups={{0,1,2,3},{4,5,6,7}}",
      2**20 * 3 / 4 / 90e9,
    ),
    (
      "%g = f32[256,1024]{1,0} all-reduce(%x), replica_groups={{0,1}}",
      2**20 / 90e9,
    ),
    (
      "%g = f32[256,1024]{1,0} reduce-scatter(%x), replica_groups=[1,4]<=[4]",
      2**20 * 3 / 90e9,
    ),
    (
      "%g = f32[256,1024]{1,0} all-to-all(%x), replica_groups=[1,8]<=[8]",
      2**20 * 8 / 4 / 90e9,
    ),
    ("%g = s8[1024,1024]{1,0} collective-permute(%x)", 2**20 / 45e9),
  ],
)
def test_collectives_take_the_time_of_their_links(line, seconds):
  (found,) = [op for op in operations(line) if op.is_collective]
  assert found.seconds == pytest.approx(seconds)
