"""Counting collectives in a text whose numbers are known by hand."""

from nlhf_jax.planning.hlo import all_collectives, decode_collectives

# A loop over tokens that runs one all-reduce over 4 chips, and a ring of 3 steps of a permute;
# before it an all-gather over 2 chips that is started and done, and a loop that is not a rollout's.
TEXT = """\
HloModule step

%ring_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %cp = f32[8]{0:T(8)} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %cp)
}

%ring_condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0}) parameter(0)
  %n = s32[] constant(3)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%inner (p: bf16[16]) -> bf16[16] {
  %p = bf16[16]{0} parameter(0)
  ROOT %ar = bf16[16]{0} all-reduce(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

%token_body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %f = bf16[16]{0} fusion(%y), kind=kLoop, calls=%inner
  %r = (s32[], f32[8]{0}) while(%p), condition=%ring_condition, body=%ring_body
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %z)
}

%token_condition (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0}) parameter(0)
  %n = s32[] constant(64)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %ags = (f32[8]{0}, f32[16]{0}) all-gather-start(%a), replica_groups=[4,2]<=[8], dimensions={0}
  %agd = f32[16]{0} all-gather-done(%ags)
  %other = (s32[], f32[8]{0}) while(%s), condition=%ring_condition, body=%ring_body, metadata={op_name="jit(step)/score/while"}
  ROOT %loop = (s32[], f32[8]{0}) while(%s), condition=%token_condition, body=%token_body, metadata={op_name="jit(step)/rollout/while" stack_frame_id=2}
}
"""  # noqa: E501
A_TOKEN = (1 + 3, 2 * 32 * 3 / 4 + 3 * 32)


def test_collectives_of_a_token_are_those_of_the_loops_body():
    found = decode_collectives(TEXT)
    assert (found.count, found.sent) == A_TOKEN


def test_a_loop_runs_as_often_as_the_constant_that_ends_it_says():
    found = all_collectives(TEXT)
    assert found.count == 1 + 3 + 64 * A_TOKEN[0]
    assert found.sent == 64 / 2 + 3 * 32 + 64 * A_TOKEN[1]


def test_a_program_without_a_rollout_has_no_decode_loop():
    assert decode_collectives(TEXT.replace("rollout", "encode")) is None
