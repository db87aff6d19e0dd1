"""Adapters written here work in PEFT, and PEFT's adapters work here."""

import json
import pickle

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest
import safetensors.numpy

from tests.models import hf_export_test, hf_weights_errors_test, hf_weights_test
from tract_jax import types
from tract_jax.models import (
  hf_config,
  hf_export,
  hf_weights,
  lora,
  peft_adapter,
  transformer,
)

SIZES = hf_weights_test.SIZES
CONFIG = lora.LoraConfig(rank=4, alpha=6.0)
TOKENS = np.random.default_rng(1).integers(0, SIZES['vocab_size'], (2, 12))


def make_model(config=CONFIG):
  return transformer.make_model(
    hf_config.config_from_hf({'model_type': 'llama', **SIZES}),
    lora_rank=config.rank,
    lora_alpha=config.alpha,
    lora_targets=config.targets,
  )


def random_adapters(config=CONFIG):
  """Adapters of which both matrices do something; None elsewhere."""
  rng = np.random.default_rng(2)
  wanted, _ = lora.split_trainable(
    transformer.abstract_params(make_model(config)), train_base=False
  )
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0.0, 0.3, x.shape), x.dtype), wanted
  )


def our_logits(fns, params):
  inputs = jnp.asarray(TOKENS)
  positions = jnp.broadcast_to(jnp.arange(inputs.shape[1])[None], inputs.shape)
  hidden = fns.hidden(params, inputs, positions, jnp.ones_like(inputs))
  return np.asarray(fns.project(params, hidden))


def their_logits(model):
  torch = pytest.importorskip('torch')
  with torch.no_grad():
    return model.eval()(torch.tensor(TOKENS)).logits.numpy()


def base_of(folder):
  """A float32 base that transformers saved, and its params here."""
  model = hf_export_test.hf_folder(folder, dtype='float32')
  model.name_or_path = str(folder)
  params = hf_weights.load_params(
    folder, transformer.abstract_params(make_model(lora.LoraConfig()))
  )
  return model, params


def peft_adapter_of(base, folder, **changes):
  """An adapter that PEFT made and saved, its matrices all random."""
  peft = pytest.importorskip('peft')
  torch = pytest.importorskip('torch')
  arguments = {'r': 4, 'lora_alpha': 6, 'task_type': 'CAUSAL_LM', **changes}
  model = peft.get_peft_model(base, peft.LoraConfig(**arguments))
  torch.manual_seed(3)
  for name, weight in model.named_parameters():
    if 'lora_' in name:
      torch.nn.init.normal_(weight, std=0.3)
  model.save_pretrained(folder)
  return model


def edit_config(folder, **changes):
  path = folder / peft_adapter.CONFIG_FILE
  fields = json.loads(path.read_text()) | changes
  path.write_text(json.dumps(fields))


@pytest.fixture
def written(tmp_path):
  """A folder with an adapter written here."""
  peft_adapter.write_adapter(tmp_path, random_adapters(), CONFIG, 'org/base')
  return tmp_path


@pytest.mark.parametrize(
  'config', [CONFIG, lora.LoraConfig(3, 4.5, ('q_proj', 'down_proj'))]
)
def test_peft_computes_what_we_do_with_our_adapter(tmp_path, config):
  peft = pytest.importorskip('peft')
  base, params = base_of(tmp_path / 'base')
  before = their_logits(base)
  params = lora.merge(random_adapters(config), params)
  peft_adapter.write_adapter(
    tmp_path / 'adapter', params, config, str(tmp_path / 'base')
  )
  ours = our_logits(make_model(config), params)

  theirs = peft.PeftModel.from_pretrained(base, tmp_path / 'adapter')
  np.testing.assert_allclose(ours, their_logits(theirs), atol=1e-5)
  assert np.abs(ours - before).max() > 0.1
  merged = theirs.merge_and_unload().state_dict()
  hf_export.write_weights(
    tmp_path / 'merged',
    lora.merge_adapters(params, config.scaling),
    dtype=jnp.float32,
  )
  tensors = hf_export_test.tensors_of(tmp_path / 'merged')
  assert tensors.keys() == merged.keys()
  for name, tensor in tensors.items():
    np.testing.assert_allclose(tensor, merged[name].numpy(), atol=1e-5)


@pytest.mark.parametrize(
  ('changes', 'targets', 'scaling'),
  [
    ({'target_modules': 'all-linear'}, lora.TARGETS, 1.5),
    ({'target_modules': ['v_proj', 'q_proj']}, ('q_proj', 'v_proj'), 1.5),
    ({'target_modules': ['self_attn.o_proj'], 'r': 9}, ('o_proj',), 2 / 3),
    (
      {'target_modules': r'.*\.mlp\.(up|down)_proj', 'use_rslora': True},
      ('up_proj', 'down_proj'),
      3.0,
    ),
    (
      {
        'target_modules': ['v_proj'],
        'lora_dropout': 0.5,
        'init_lora_weights': 'gaussian',
      },
      ('v_proj',),
      1.5,
    ),
  ],
)
def test_we_compute_what_peft_does_with_its_adapter(
  tmp_path, changes, targets, scaling
):
  base, params = base_of(tmp_path / 'base')
  theirs = peft_adapter_of(base, tmp_path / 'adapter', **changes)
  config = peft_adapter.read_config(tmp_path / 'adapter')
  assert config.targets == targets
  assert config.scaling == pytest.approx(scaling)
  assert config.base_model == str(tmp_path / 'base')

  fns = make_model(config.lora)
  adapters = peft_adapter.load_adapter(
    tmp_path / 'adapter', transformer.abstract_params(fns)
  )
  ours = our_logits(fns, lora.merge(adapters, params))
  np.testing.assert_allclose(ours, their_logits(theirs), atol=1e-5)
  unadapted = our_logits(make_model(lora.LoraConfig()), params)
  assert np.abs(ours - unadapted).max() > 0.1


def test_comes_back_bit_for_bit_and_with_the_sharding_asked_for(tmp_path):
  adapters = random_adapters()
  names = peft_adapter.write_adapter(
    tmp_path, adapters, CONFIG, 'org/base', revision='abc'
  )
  assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
  assert peft_adapter.is_adapter(tmp_path)
  config = peft_adapter.read_config(tmp_path)
  assert config == peft_adapter.AdapterConfig(
    4, 6.0, lora.TARGETS, 'org/base', 'abc'
  )
  assert config.lora == CONFIG

  mesh = jax.make_mesh((8,), ('x',))
  sharding = NamedSharding(mesh, PartitionSpec(None, 'x', None))
  whole = NamedSharding(mesh, PartitionSpec())
  abstract = jax.tree_util.tree_map_with_path(
    lambda path, x: jax.ShapeDtypeStruct(
      x.shape,
      x.dtype,
      sharding=sharding if path[-1].key == 'lora_a' else whole,
    ),
    transformer.abstract_params(make_model()),
  )
  read = peft_adapter.load_adapter(tmp_path, abstract)
  jax.tree.map(np.testing.assert_array_equal, read, adapters)
  up_proj = read['layers']['mlp']['up_proj']
  assert up_proj['lora_a'].sharding == sharding
  assert up_proj['weight'] is None


def test_sharded_adapters_are_written_as_whole_ones(tmp_path):
  adapters = random_adapters()
  sharding = NamedSharding(
    jax.make_mesh((2,), ('x',)), PartitionSpec(None, 'x', None)
  )
  placed = jax.device_put(adapters, sharding)
  peft_adapter.write_adapter(tmp_path / 'a', adapters, CONFIG, '')
  peft_adapter.write_adapter(tmp_path / 'b', placed, CONFIG, '')
  hf_export_test.assert_same_bits(
    hf_export_test.tensors_of(tmp_path / 'b'),
    hf_export_test.tensors_of(tmp_path / 'a'),
  )


def test_wrong_config_for_the_leaves_is_refused(tmp_path):
  for config in (lora.LoraConfig(3), lora.LoraConfig(4, targets=('q_proj',))):
    with pytest.raises(ValueError, match='but config says'):
      peft_adapter.write_adapter(tmp_path, random_adapters(), config, '')
  assert not list(tmp_path.iterdir())


def test_stopped_amid_the_weights_is_no_adapter(written, monkeypatch):
  def full_disk(path, tensors):
    raise OSError('No space left on device')

  monkeypatch.setattr(hf_export, 'write_tensors', full_disk)
  with pytest.raises(OSError, match='No space'):
    peft_adapter.write_adapter(written, random_adapters(), CONFIG, '')
  assert not peft_adapter.is_adapter(written)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'peft_type': 'LOHA'}, "peft_type='LOHA' is not supported"),
    ({'peft_type': None}, 'peft_type=None is not supported'),
    ({'task_type': 'SEQ_CLS'}, "task_type='SEQ_CLS' is not supported"),
    ({'use_dora': True}, 'use_dora=True is not supported'),
    ({'modules_to_save': ['norm']}, "modules_to_save=['norm'] is not"),
    ({'rank_pattern': {'q_proj': 2}}, "rank_pattern={'q_proj': 2} is not"),
    ({'alpha_pattern': {'q_proj': 2}}, "alpha_pattern={'q_proj': 2} is not"),
    ({'layers_to_transform': [0]}, 'layers_to_transform=[0] is not'),
    ({'bias': 'lora_only'}, "bias='lora_only' is not supported"),
    ({'lora_bias': True}, 'lora_bias=True is not supported'),
    ({'fan_in_fan_out': True}, 'fan_in_fan_out=True is not supported'),
    ({'target_parameters': ['w']}, "target_parameters=['w'] is not"),
    ({'trainable_token_indices': [3]}, 'trainable_token_indices=[3] is not'),
    ({'exclude_modules': ['q_proj']}, "exclude_modules=['q_proj'] is not"),
    ({'init_lora_weights': 'pissa'}, "init_lora_weights='pissa' is not"),
    ({'layer_replication': [[0, 1]]}, 'layer_replication=[[0, 1]] is not'),
    ({'of_tomorrow': 'yes'}, "of_tomorrow='yes' is not supported"),
    ({'r': 0}, 'r=0: must be a whole number from 1'),
    ({'r': True}, 'r=True: must be a whole number from 1'),
    ({'r': 10**9}, f'r={10**9}: must be a whole number'),
    ({'r': 10**30}, 'a number of 31 digits'),
    ({'lora_alpha': 1e30}, 'lora_alpha=1e+30: must be a number'),
    ({'lora_alpha': float('nan')}, 'NaN is not a finite number'),
    ({'lora_alpha': '6'}, "lora_alpha='6': must be a number"),
    ({'use_rslora': 'no'}, "use_rslora='no': must be true or false"),
    ({'revision': 3}, 'revision=3: must be text'),
    ({'target_modules': ['lm_head']}, 'adapters on lm_head are not'),
  ],
)
def test_unsupported_fields_are_refused(written, changes, words):
  edit_config(written, **changes)
  with pytest.raises(types.InputError) as caught:
    peft_adapter.read_config(written)
  (line,) = str(caught.value).splitlines()
  assert line.startswith(f'{written}/adapter_config.json: ') and words in line


def test_every_problem_has_a_line_and_neutral_fields_have_none(written):
  edit_config(written, of_tomorrow=None, rank_pattern={}, megatron_core='m')
  assert peft_adapter.read_config(written).rank == 4
  edit_config(written, use_dora=True, bias='all', target_modules=[])
  with pytest.raises(types.InputError) as caught:
    peft_adapter.read_config(written)
  assert len(str(caught.value).splitlines()) == 3


def test_fields_that_a_new_peft_writes_are_neutral(tmp_path):
  base, _ = base_of(tmp_path / 'base')
  peft_adapter_of(base, tmp_path / 'adapter', target_modules=['q_proj'])
  path = tmp_path / 'adapter' / peft_adapter.CONFIG_FILE
  assert len(json.loads(path.read_text())) > 30
  assert peft_adapter.read_config(tmp_path / 'adapter').targets == ('q_proj',)


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    ('{', 'not JSON'),
    ('[' * 100_000, 'not JSON'),
    ('[]', 'holds a list where an object is expected'),
    (None, 'cannot be read'),
  ],
)
def test_configuration_that_is_none(written, content, words):
  path = written / peft_adapter.CONFIG_FILE
  path.unlink() if content is None else path.write_text(content)
  with pytest.raises(types.InputError, match=words) as caught:
    peft_adapter.read_config(written)
  assert str(caught.value).startswith(f'{path}: ')


def load(folder):
  return peft_adapter.load_adapter(
    folder, transformer.abstract_params(make_model())
  )


def test_missing_extra_and_misshaped_tensors_are_named_together(written):
  path = written / peft_adapter.WEIGHTS_FILE
  tensors = safetensors.numpy.load_file(path)
  block = 'base_model.model.model.layers.1'
  del tensors[f'{block}.mlp.up_proj.lora_A.weight']
  tensors[f'{block}.self_attn.q_proj.lora_B.weight'] = np.zeros((3, 4), 'f4')
  tensors['base_model.model.lm_head.lora_A.weight'] = np.zeros((4, 32), 'f4')
  safetensors.numpy.save_file(tensors, path)
  with pytest.raises(types.InputError) as caught:
    load(written)
  assert sorted(str(caught.value).splitlines()) == sorted(
    [
      f'{written}: {block}.mlp.up_proj.lora_A.weight: missing, expected'
      ' [4, 32]',
      f'{path}: {block}.self_attn.q_proj.lora_B.weight: shape [3, 4], but the'
      ' config gives [32, 4]',
      f'{path}: base_model.model.lm_head.lora_A.weight: the model has no such'
      ' parameter',
    ]
  )


@pytest.mark.parametrize(
  'name', ['adapter_model.bin', 'adapter_model.safetensors']
)
def test_pickles_are_refused_and_their_code_does_not_run(written, name):
  (written / peft_adapter.WEIGHTS_FILE).unlink()
  marker = written / 'ran'
  code = pickle.dumps(hf_weights_errors_test._WritesAFile(marker))
  (written / name).write_bytes(code)
  with pytest.raises(types.InputError, match='pickle'):
    load(written)
  assert not marker.exists()


def test_weights_that_are_gone(written):
  (written / peft_adapter.WEIGHTS_FILE).unlink()
  with pytest.raises(types.InputError, match='adapter_model.safetensors: no'):
    load(written)
