"""Short programs as a TPU compiler writes them, with known costs."""
# ruff: noqa: E501 (a compiler writes long lines)

# A loop of 3 rounds; the text does not tell how many: i < 6, 2 a round, from 0.
# In it a product of a [4, 8] row block with layer i of stacked weights, and a
# gather of 4 x 8 bfloat16 from two chips. Numbers of bytes and operations are
# in the tests.
LOOP = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(bf16[4,8]{1,0}, bf16[6,8,16]{2,1,0})->bf16[4,16]{1,0}}

FileNames
1 "step.py"

%fused_layer (param_0: bf16[4,8], param_1: bf16[6,8,16], param_2: s32[]) -> bf16[4,16] {
  %param_0 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %param_1 = bf16[6,8,16]{2,1,0:T(8,128)(2,1)} parameter(1)
  %param_2 = s32[]{:T(128)} parameter(2)
  %constant.9 = s32[]{:T(128)} constant(0)
  %dynamic-slice.1 = bf16[1,8,16]{2,1,0:T(8,128)(2,1)} dynamic-slice(%param_1, %param_2, %constant.9, %constant.9), dynamic_slice_sizes={1,8,16}
  %bitcast.1 = bf16[8,16]{1,0:T(8,128)(2,1)} bitcast(%dynamic-slice.1)
  ROOT %convolution.1 = bf16[4,16]{1,0:T(8,128)(2,1)} convolution(%param_0, %bitcast.1), dim_labels=bf_io->bf
}

%fused_less (param_0.1: s32[], param_1.1: s32[]) -> pred[] {
  %param_0.1 = s32[]{:T(128)} parameter(0)
  %param_1.1 = s32[]{:T(128)} parameter(1)
  ROOT %compare.1 = pred[]{:T(512)} compare(%param_0.1, %param_1.1), direction=LT
}

%condition (arg.1: (s32[], bf16[4,8], /*index=2*/bf16[6,8,16])) -> pred[] {
  %arg.1 = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}, /*index=2*/bf16[6,8,16]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %get-tuple-element.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0
  %constant.1 = s32[]{:T(128)} constant(6)
  ROOT %fusion.less = pred[]{:T(512)} fusion(%get-tuple-element.1, %constant.1), kind=kLoop, calls=%fused_less
}

%body (arg.2: (s32[], bf16[4,8], bf16[6,8,16])) -> (s32[], bf16[4,8], bf16[6,8,16]) {
  %arg.2 = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}, bf16[6,8,16]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %get-tuple-element.2 = s32[]{:T(128)} get-tuple-element(%arg.2), index=0
  %get-tuple-element.3 = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%arg.2), index=1
  %get-tuple-element.4 = bf16[6,8,16]{2,1,0:T(8,128)(2,1)} get-tuple-element(%arg.2), index=2
  %constant.2 = s32[]{:T(128)} constant(2)
  %add.1 = s32[]{:T(128)} add(%get-tuple-element.2, %constant.2)
  %all-gather-start.1 = (bf16[2,8]{1,0:T(8,128)(2,1)}, bf16[4,8]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) all-gather-start(%half), channel_id=1, replica_groups={{0,1}}, dimensions={0}
  %all-gather-done.1 = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} all-gather-done(%all-gather-start.1)
  %layer = bf16[4,16]{1,0:T(8,128)(2,1)S(1)} fusion(%get-tuple-element.3, %get-tuple-element.4, %get-tuple-element.2), kind=kOutput, calls=%fused_layer, metadata={op_name="jit(step)/layer/dot_general"}, backend_config={"flag_configs":[],"window_config":{"estimated_cycles":"1500","iteration_bounds":["1"]}}
  %kernel = bf16[4,8]{1,0:T(8,128)(2,1)} custom-call(%get-tuple-element.3), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(step)/splash_mha_fwd"}, backend_config={"custom_call_config":{"body":"TUzvUg"}}
  ROOT %tuple.2 = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}, bf16[6,8,16]{2,1,0:T(8,128)(2,1)}) tuple(%add.1, %kernel, %get-tuple-element.4)
}

ENTRY %main (Arg_0.1: bf16[4,8], Arg_1.1: bf16[6,8,16]) -> bf16[4,8] {
  %Arg_0.1 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %Arg_1.1 = bf16[6,8,16]{2,1,0:T(8,128)(2,1)} parameter(1)
  %constant.3 = s32[]{:T(128)} constant(0)
  %copy.1 = bf16[4,8]{1,0:T(8,128)(2,1)} copy(%Arg_0.1)
  %tuple.1 = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}, bf16[6,8,16]{2,1,0:T(8,128)(2,1)}) tuple(%constant.3, %copy.1, %Arg_1.1)
  %while.1 = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)(2,1)}, bf16[6,8,16]{2,1,0:T(8,128)(2,1)}) while(%tuple.1), condition=%condition, body=%body
  ROOT %get-tuple-element.5 = bf16[4,8]{1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=1
}
"""


# A branch in a loop of 3 rounds; the left one has a loop of 4.
NESTED = """\
HloModule m

%inner_body (p: s32[]) -> s32[] {
  ROOT %work = s32[] custom-call(%p), custom_call_target="work"
}

%left (p: s32[]) -> s32[] {
  ROOT %inner = s32[] while(%p), condition=%c, body=%inner_body, backend_config={"known_trip_count":{"n":"4"}}
}

%right (p: s32[]) -> s32[] {
  ROOT %other = s32[] custom-call(%p), custom_call_target="work"
}

%outer_body (p: s32[]) -> s32[] {
  ROOT %branch = s32[] conditional(%p, %p, %p), branch_computations={%left, %right}
}

ENTRY %main (p: s32[]) -> s32[] {
  ROOT %outer = s32[] while(%p), condition=%c, body=%outer_body, backend_config={"known_trip_count":{"n":"3"}}
}
"""


def loop_with(old: str, new: str) -> str:
  """`LOOP` with one change, which must be one."""
  assert LOOP.count(old) == 1, old
  return LOOP.replace(old, new)


def entry(*lines: str) -> str:
  """A program of one computation."""
  body = '\n'.join(f'  {line}' for line in lines)
  return f'HloModule m\n\nENTRY %main () -> f32[] {{\n{body}\n}}\n'
