"""`target_modules` means here what it means to PEFT."""

import time

import pytest

from tract_jax import types
from tract_jax.models import lora, peft_targets

# What fine-tuning tools write for "all layers of the text model".
LONG_PATTERN = (
  r'(?:.*?(?:language|text).*?(?:self_attn|attn|mlp|ffn).*?(?:k_proj|v_proj)'
  r'.*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:(?:k_proj|v_proj'
  r'|up_proj)))'
)


@pytest.mark.parametrize(
  ('target_modules', 'names'),
  [
    ('all-linear', lora.TARGETS),
    (['v_proj', 'q_proj'], ('q_proj', 'v_proj')),
    (['mlp.up_proj', 'c_attn'], ('up_proj',)),
    (['model.layers.0.self_attn.k_proj'], ('k_proj',)),
    (r'.*\.(q|down)_proj', ('q_proj', 'down_proj')),
    (r'model\.layers\.\d+\.self_attn\..*', lora.TARGETS[:4]),
    (LONG_PATTERN, ('k_proj', 'v_proj', 'up_proj')),
  ],
)
def test_resolves_as_peft_does(target_modules, names):
  assert peft_targets.resolve(target_modules) == names
  tuners_utils = pytest.importorskip('peft.tuners.tuners_utils')
  if target_modules == 'all-linear':
    return
  peft = pytest.importorskip('peft')
  config = peft.LoraConfig(target_modules=target_modules)
  for name in lora.TARGETS:
    full = peft_targets._full_name(name)
    found = tuners_utils.check_target_module_exists(config, full)
    assert bool(found) == (name in names), name


@pytest.mark.parametrize(
  ('target_modules', 'words'),
  [
    (None, 'target_modules=None: must be a list of names'),
    ([3], 'must be a list of names'),
    ([], "none of a block's linear layers"),
    (['proj'], "none of a block's linear layers"),
    # A text is an expression for the whole name, not an end of it.
    ('q_proj', "none of a block's linear layers"),
    (r'model.*self_attn', "none of a block's linear layers"),
    (['q_proj', 'lm_head'], 'adapters on lm_head are not supported'),
    (['embed_tokens'], 'adapters on model.embed_tokens are not supported'),
    (r'.*(_proj|lm_head)', 'adapters on lm_head are not supported'),
    ('(q_proj', 'cannot be matched'),
    ('x' * 1001, 'is not matched; list the names'),
    ('(?:a{9}){9}', 'is not matched; list the names'),
    ('(' * 13 + ')' * 13, 'is not matched; list the names'),
  ],
)
def test_refuses(target_modules, words):
  with pytest.raises(types.InputError) as caught:
    peft_targets.resolve(target_modules)
  (line,) = str(caught.value).splitlines()
  assert words in line


@pytest.mark.parametrize(
  'pattern',
  [
    '(?:a|a|a|a|.)+(?:.|.)+(?:.|.)+(.|.)+(.|.)+(.|.)+(?<!j)',
    '(?:' * 12 + 'a|b' + '){1,}' * 12,
    '(?:' * 12 + '.|.' + ')+' * 12 + '(?<!j)',
  ],
)
def test_hostile_expressions_take_neither_time_nor_memory(pattern):
  begin = time.perf_counter()
  with pytest.raises(types.InputError):
    peft_targets.resolve(pattern)
  assert time.perf_counter() - begin < 10
