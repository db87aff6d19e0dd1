"""HLO text is read, and loops counted, as a person would."""

import pytest

from tests.parallel import hlo_programs
from tract_jax.parallel import hlo, hlo_loops


def trips(text):
  module = hlo.parse(text)
  main = module.computations[module.entry]
  return hlo_loops.trip_count(module, main, main['while.1'])


def test_instructions_have_shapes_operands_and_places():
  module = hlo.parse(hlo_programs.LOOP)
  assert module.entry == 'main'
  assert list(module.computations) == [
    'fused_layer',
    'fused_less',
    'condition',
    'body',
    'main',
  ]
  body = module.computations['body']
  layer = body['layer']
  assert layer.opcode == 'fusion'
  assert layer.operands == (
    'get-tuple-element.3',
    'get-tuple-element.4',
    'get-tuple-element.2',
  )
  assert layer.shapes == (hlo.Shape('bf16', (4, 16), space=1),)
  assert layer.inside == 'fused_layer'
  assert layer.source == 'jit(step)/layer/dot_general'
  assert [shape.num_bytes for shape in body['arg.2'].shapes] == [4, 64, 1536]
  assert body.root.name == 'tuple.2'
  assert [user.name for user in body.users['get-tuple-element.2']] == [
    'add.1',
    'layer',
  ]
  assert module.computations['fused_layer'].parameters[2].name == 'param_2'


@pytest.mark.parametrize(
  ('dtype', 'num_bytes'),
  [('pred', 8), ('s4', 4), ('bf16', 16), ('f32', 32), ('f8e4m3fn', 8)],
)
def test_bytes_of_a_shape(dtype, num_bytes):
  assert hlo.Shape(dtype, (2, 4)).num_bytes == num_bytes
  assert hlo.Shape('token', ()).num_bytes == 0


def test_text_without_an_entry_is_refused():
  with pytest.raises(ValueError, match='ENTRY'):
    hlo.parse('HloModule m\n')


def test_loop_is_counted_by_bound_first_value_and_step():
  assert trips(hlo_programs.LOOP) == 3
  change = hlo_programs.loop_with
  assert trips(change('s32[]{:T(128)} constant(6)', 's32[] constant(7)')) == 4
  assert trips(change('%constant.3 = s32[]{:T(128)} constant(0)',
                      '%constant.3 = s32[] constant(2)')) == 2  # fmt: skip
  assert trips(change('add(%get-tuple-element.2, %constant.2)',
                      'add(%get-tuple-element.2, %one)')
               .replace('%constant.2 =', '%one = s32[] constant(1)\n'
                        '  %constant.2 =')) == 6  # fmt: skip


def test_the_compilers_own_count_comes_first():
  text = hlo_programs.loop_with(
    'body=%body\n',
    'body=%body, backend_config={"known_trip_count":{"n":"32"}}\n',
  )
  assert trips(text) == 32


def test_bound_beside_another_condition_is_the_most_rounds():
  text = hlo_programs.loop_with('  ROOT %fusion.less = ', '  %less = ').replace(
    'calls=%fused_less\n',
    'calls=%fused_less\n'
    '  %any = pred[] custom-call(%arg.1), custom_call_target="any"\n'
    '  ROOT %both = pred[] and(%less, %any)\n',
  )
  assert trips(text) == 3


def test_bound_that_the_data_says_is_unknown():
  text = hlo_programs.loop_with(
    '%constant.1 = s32[]{:T(128)} constant(6)',
    '%constant.1 = s32[]{:T(128)} get-tuple-element(%arg.1), index=0',
  )
  assert trips(text) is None
  module = hlo.parse(text)
  times = {
    visit.instruction.name: visit.times
    for visit in hlo_loops.visits(module, dynamic_trips=5)
  }
  assert times['layer'] == 5
  assert times['copy.1'] == 1


def test_nested_loops_and_branches_multiply():
  times = {
    visit.instruction.name: visit.times
    for visit in hlo_loops.visits(hlo.parse(hlo_programs.NESTED))
  }
  assert times == {'outer': 1, 'branch': 3, 'inner': 3, 'work': 12, 'other': 3}
