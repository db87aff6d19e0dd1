"""Costs of short programs, computed by hand."""
# ruff: noqa: E501 (a compiler writes long lines)

import dataclasses

import pytest

from tests.parallel import hlo_programs
from tract_jax.parallel import chips, hlo, hlo_cost, hlo_flops

# Round numbers.
CHIP = chips.Chip(
  peak_flops=1e6,
  hbm_bytes_per_sec=1e3,
  ici_bytes_per_sec=1e2,
  clock_hz=1e3,
  memory_bytes=1,
)


def costs(text, dynamic_trips=1):
  return hlo_cost.measure(hlo.parse(text), dynamic_trips)


def test_costs_of_a_loop_are_those_of_its_rounds():
  found = costs(hlo_programs.LOOP)
  # [4, 8] x [8, 16], three rounds.
  assert found.flops == 3 * 2 * 4 * 8 * 16
  # Copied: [4, 8] bfloat16, read and written.
  assert found.copied_bytes == 2 * 64
  # A round reads the row block, a layer's [8, 16] and its number, and keeps the
  # product on the chip; the gather reads [2, 8]; the kernel reads and writes
  # [4, 8]; the counter is read with its step, and written.
  layer = 64 + 256 + 4
  assert found.hbm_bytes == 128 + 3 * (layer + 32 + 128 + 3 * 4)
  assert found.collective_bytes['all-gather'] == 3 * 64
  assert sum(found.collective_bytes.values()) == 3 * 64
  (kernel,) = found.kernels
  assert (kernel.source, kernel.times) == ('jit(step)/splash_mha_fwd', 3)


def test_seconds_by_cycles_and_by_the_roofline():
  found = costs(hlo_programs.LOOP)
  layer = [s for s in found.steps if s.name == 'layer']
  # The gather goes on beside the other steps.
  apart = 'layer', 'kernel', 'all-gather-start.1'
  rest = [s for s in found.steps if s.name not in apart]
  assert len(layer) == 1
  others = sum(s.hbm_bytes * s.times for s in rest) / 1e3
  assert hlo_cost.compiler_secs(found, CHIP) == pytest.approx(3 * 1.5 + others)
  # The product is bound by its bytes, or by its operations on a slow chip.
  assert hlo_cost.roofline_secs(found, CHIP) == pytest.approx(
    3 * 0.324 + others
  )
  slow = dataclasses.replace(CHIP, peak_flops=1024.0)
  assert hlo_cost.roofline_secs(found, slow) == pytest.approx(3 * 1.0 + others)
  traffic = {'all-gather': 200.0, 'all-reduce': 100.0}
  assert hlo_cost.traffic_secs(traffic, CHIP) == pytest.approx(2 + 2 * 1)
  assert hlo_cost.kernel_secs(6e5, CHIP) == pytest.approx(1.0)


def test_zero_cycles_are_no_estimate():
  text = hlo_programs.loop_with(
    '"estimated_cycles":"1500"', '"estimated_cycles":"0"'
  )
  (layer,) = [s for s in costs(text).steps if s.name == 'layer']
  assert layer.cycles is None


@pytest.mark.parametrize(
  ('kind', 'line', 'num_bytes'),
  [
    ('all-gather', 'bf16[8]{0} all-gather(%x), channel_id=1', 16),
    ('all-reduce', 'f32[8]{0} all-reduce(%x), channel_id=1', 32),
    ('all-reduce', 'f32[8]{0} all-reduce-start(%x), channel_id=1', 32),
    ('reduce-scatter', 'f32[4]{0} reduce-scatter(%x), channel_id=1', 16),
    (
      'collective-permute',
      '(f32[8], f32[8], u32[], u32[]) collective-permute-start(%x)',
      32,
    ),
    ('all-to-all', '(f32[8], f32[8]) all-to-all(%x, %x), channel_id=1', 64),
  ],
)
def test_bytes_of_collectives(kind, line, num_bytes):
  text = hlo_programs.entry('%x = bf16[8] parameter(0)', f'%y = {line}')
  all_bytes = costs(text)
  found = {k: v for k, v in all_bytes.collective_bytes.items() if v}
  assert found == {kind: num_bytes}
  blocking = sum(all_bytes.blocking_bytes.values())
  assert blocking == (0 if '-start' in line else num_bytes)


def test_reduce_scatter_that_is_a_fusion_counts_what_it_takes():
  text = """\
HloModule m

%all-reduce-scatter.1 (p: f32[8]) -> f32[4] {
  %p = f32[8] parameter(0)
  %all-reduce.1 = f32[8] all-reduce(%p), channel_id=7, to_apply=%add
  ROOT %dynamic-slice.1 = f32[4] dynamic-slice(%all-reduce.1, %i)
}

ENTRY %main (x: f32[8]) -> f32[4] {
  %x = f32[8] parameter(0)
  ROOT %fusion.1 = f32[4] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
  found = {k: v for k, v in costs(text).collective_bytes.items() if v}
  assert found == {'reduce-scatter': 32}


def test_collective_whose_start_and_end_are_fused_apart_counts_once():
  text = """\
HloModule m

%start (p: f32[8]) -> f32[16] {
  %p = f32[8] parameter(0)
  ROOT %all-gather.1 = f32[16] all-gather(%p), channel_id=7
}

%end (p: f32[8]) -> f32[16] {
  %p = f32[8] parameter(0)
  ROOT %all-gather.2 = f32[16] all-gather(%p), channel_id=7
}

ENTRY %main (x: f32[8]) -> f32[4] {
  %x = f32[8] parameter(0)
  %fusion.1 = f32[16] fusion(%x), kind=kCustom, calls=%start
  ROOT %fusion.2 = f32[16] fusion(%x), kind=kCustom, calls=%end
}
"""
  found = costs(text)
  assert found.collective_bytes['all-gather'] == 64
  # Without work beside it, it holds up the rest; with work, it does not.
  assert found.blocking_bytes['all-gather'] == 64
  beside = costs(text.replace('%start', '%async_collective_fusion.1'))
  assert beside.collective_bytes['all-gather'] == 64
  assert beside.blocking_bytes['all-gather'] == 0


def test_update_in_place_moves_what_is_put_in():
  text = """\
HloModule m

%put (p0: f32[100,8], p1: f32[1,8], p2: s32[]) -> f32[100,8] {
  %p0 = f32[100,8] parameter(0)
  %p1 = f32[1,8] parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %update = f32[100,8] dynamic-update-slice(%p0, %p1, %p2, %p2)
}

ENTRY %main (x: f32[100,8], y: f32[1,8], i: s32[]) -> f32[100,8] {
  %x = f32[100,8] parameter(0)
  %y = f32[1,8] parameter(1)
  %i = s32[] parameter(2)
  %fusion.1 = f32[100,8] fusion(%x, %y, %i), kind=kLoop, calls=%put
  ROOT %scatter.1 = f32[100,8] scatter(%fusion.1, %i, %y), to_apply=%add
}
"""
  # Each reads [1, 8] and the place, and writes [1, 8].
  assert costs(text).hbm_bytes == 2 * (32 + 4 + 32)


def test_gather_beside_a_product_moves_nothing_of_its_own():
  text = """\
HloModule m

%end (p0: f32[4], p1: f32[16]) -> f32[16] {
  %p0 = f32[4] parameter(0)
  %p1 = f32[16] parameter(1)
  %all-gather.2 = f32[16] all-gather(%p0), channel_id=7
  ROOT %done = f32[16] custom-call(%p0, %p1, %all-gather.2), custom_call_target="AsyncCollectiveDone"
}

%beside (p0: f32[8,4], p1: f32[4,2], p2: f32[4], p3: f32[16]) -> (f32[8,2], f32[16]) {
  %p0 = f32[8,4] parameter(0)
  %p1 = f32[4,2] parameter(1)
  %p2 = f32[4] parameter(2)
  %p3 = f32[16] parameter(3)
  %all-gather.1 = f32[16] all-gather(%p2), channel_id=7
  %product = f32[8,2] convolution(%p0, %p1), dim_labels=bf_io->bf
  ROOT %t = (f32[8,2], f32[16]) tuple(%product, %all-gather.1)
}

ENTRY %main (x: f32[8,4], w: f32[4,2], part: f32[4], whole: f32[16]) -> f32[16] {
  %x = f32[8,4] parameter(0)
  %w = f32[4,2] parameter(1)
  %part = f32[4] parameter(2)
  %whole = f32[16] parameter(3)
  %fusion.1 = (f32[8,2], f32[16]) fusion(%x, %w, %part, %whole), kind=kOutput, output_to_operand_aliasing={{1}: (3, {})}, calls=%beside
  %gte = f32[16] get-tuple-element(%fusion.1), index=1
  ROOT %fusion.2 = f32[16] fusion(%part, %gte), kind=kCustom, calls=%end
}
"""
  found = costs(text)
  # [8, 4] x [4, 2], and the part of the gather that is its own.
  assert found.hbm_bytes == 4 * (32 + 8 + 16 + 4)
  assert found.collective_bytes['all-gather'] == 64
  assert hlo_cost.roofline_secs(found, CHIP) == pytest.approx(4 * 60 / 1e3)


def test_a_slice_of_what_is_only_seen_in_other_tiles_is_what_is_read():
  text = """\
HloModule m

%tiles (p0: s8[100,8]) -> s8[100,8] {
  %p0 = s8[100,8] parameter(0)
  ROOT %copy.1 = s8[100,8] copy(%p0)
}

%layer (p0: s8[100,8], p1: s32[]) -> f32[1,8] {
  %p0 = s8[100,8] parameter(0)
  %p1 = s32[] parameter(1)
  %fusion.2 = s8[100,8] fusion(%p0), kind=kLoop, output_to_operand_aliasing={{}: (0, {})}, calls=%tiles
  %slice = s8[1,8] dynamic-slice(%fusion.2, %p1, %p1), dynamic_slice_sizes={1,8}
  ROOT %float = f32[1,8] convert(%slice)
}

ENTRY %main (x: s8[100,8], i: s32[]) -> f32[1,8] {
  %x = s8[100,8] parameter(0)
  %i = s32[] parameter(1)
  ROOT %fusion.1 = f32[1,8] fusion(%x, %i), kind=kLoop, calls=%layer
}
"""
  # Reads [1, 8] of 8 bits and the place, and writes [1, 8].
  assert costs(text).hbm_bytes == 8 + 4 + 32


def test_what_names_a_buffer_moves_nothing():
  text = hlo_programs.entry(
    '%x = f32[8] parameter(0)',
    '%y = f32[1000] custom-call(), custom_call_target="AllocateBuffer"',
    '%z = f32[2,4] bitcast(%x)',
    '%t = (f32[8], f32[2,4]) tuple(%x, %z)',
  )
  assert costs(text).hbm_bytes == 0


def flops(*lines):
  module = hlo.parse(hlo_programs.entry(*lines))
  main = module.computations['main']
  return hlo_flops.matmul_flops(module, main, main.root)


def test_flops_of_products():
  row = '%x = bf16[2,64,32] parameter(0)'
  # Rows and places are batch and space; the weight is [32, 16].
  assert (
    flops(
      row,
      '%w = bf16[1,32,16] parameter(1)',
      'ROOT %y = bf16[2,64,16] convolution(%x, %w), window={size=1}, '
      'dim_labels=b0f_0io->b0f',
    )
    == 2 * 2 * 64 * 32 * 16
  )
  # A weight's gradient: places are summed over.
  assert (
    flops(
      '%x = bf16[64,32] parameter(0)',
      '%g = bf16[64,16] parameter(1)',
      'ROOT %y = bf16[32,16] convolution(%x, %g), dim_labels=fb_io->bf',
    )
    == 2 * 64 * 32 * 16
  )
  assert (
    flops(
      '%x = f32[5,7] parameter(0)',
      '%w = f32[7,3] parameter(1)',
      'ROOT %y = f32[5,3] dot(%x, %w), lhs_contracting_dims={1}, '
      'rhs_contracting_dims={0}',
    )
    == 2 * 5 * 7 * 3
  )


def test_flops_of_a_batched_product_are_not_those_of_its_window():
  # 8 products [64, 32] x [32, 16], as the compiler writes them.
  assert (
    flops(
      '%x = bf16[8,64,32] parameter(0)',
      '%w = bf16[8,32,16] parameter(1)',
      'ROOT %y = bf16[8,64,16] convolution(%x, %w), '
      'window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf',
    )
    == 8 * 2 * 64 * 32 * 16
  )
