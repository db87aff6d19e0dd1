"""What a run exports: judges the same, elsewhere and here."""

import json
import shutil

import jax
import numpy as np
import pytest

from tests.models import small_models
from tests.pipeline.run_test import make_run
from tract_jax import types
from tract_jax.data import manifest, synthetic
from tract_jax.judge import Judge
from tract_jax.models import quantization
from tract_jax.pipeline import base_weights, tasks

TOKENS = np.arange(24).reshape(2, 12) % 7 + 20
MESH = {'data': 8, 'fsdp': 1, 'tensor': 1}
ONE_DEVICE = {'mesh.fsdp': 1, 'mesh.data': -1}


def trained(folder, methods=('cot_raft',), model=None, **more):
  """A run whose updates are large enough to be seen."""
  train = {'batch_size': 8, 'num_epochs': 1, 'lr': 0.05, 'warmup_fraction': 0.0}
  more = {'methods': methods, 'train': train, 'evaluation': {}, **more}
  if model:
    more['model'] = model
  return make_run(folder, **more)


def logits_of_transformers(model):
  torch = pytest.importorskip('torch')
  with torch.no_grad():
    return model(torch.tensor(TOKENS)).logits.numpy()


def loaded_by_transformers(folder):
  transformers = pytest.importorskip('transformers')
  pytest.importorskip('torch')
  return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope='module')
def scratch(tmp_path_factory):
  """A model from scratch, predicted, reported and exported."""
  folder = tmp_path_factory.mktemp('scratch')
  run = trained(folder, num_cots=2)
  tasks.execute(run, 'run')
  tasks.execute(run, 'export')
  return folder


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A Llama with the synthetic world's tokenizer."""
  folder = tmp_path_factory.mktemp('base') / 'llama'
  tokenizer = synthetic.make_tokenizer()
  small_models.save_llama(
    folder, len(tokenizer), intermediate_size=64, pad_token_id=0
  )
  tokenizer.save_pretrained(folder)
  (folder / 'LICENSE').write_text('A licence of tests\n')
  return folder


def lora_on(base, **more):
  return {'path': str(base), 'lora_rank': 2, 'lora_alpha': 8.0, **more}


def test_exported_judge_has_the_logits_of_transformers(scratch):
  folder = scratch / 'export' / 'cot_raft'
  expected = logits_of_transformers(loaded_by_transformers(folder))
  found = Judge.load(folder, settings=ONE_DEVICE).logits(TOKENS)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_export_has_the_dtype_that_is_asked_for(tmp_path):
  tasks.execute(trained(tmp_path, export={'dtype': 'bfloat16'}), 'export')
  path = tmp_path / 'export' / 'cot_raft' / 'model.safetensors'
  content = path.read_bytes()
  header = content[8 : 8 + int.from_bytes(content[:8], 'little')]
  assert b'"BF16"' in header and b'"F32"' not in header


def test_exported_judge_predicts_as_the_run_did(scratch):
  lines = (scratch / 'predictions' / 'cot_raft' / 'synthetic.jsonl').read_text()
  expected = [json.loads(line) for line in lines.splitlines()]
  judge = Judge.load(scratch / 'export' / 'cot_raft', settings=ONE_DEVICE)
  found = judge.score(synthetic.make_rows(6, 0, 'test'), num_cots=2, seed=0)
  assert [p.cots for p in found] == [row['cots'] for row in expected]
  np.testing.assert_allclose(
    [p.prediction for p in found],
    [row['prediction'] for row in expected],
    rtol=1e-5,
  )


def test_model_card_has_the_figures_of_the_report(scratch):
  card = (scratch / 'export' / 'cot_raft' / 'README.md').read_text()
  report = json.loads((scratch / 'report' / 'metrics.json').read_text())
  rmse = next(r['rmse'] for r in report['rows'] if r['predictor'] == 'rail')
  (constant,) = [r for r in report['references'] if r['method'] == 'constant']
  for value in (rmse, constant['rmse']):
    assert f'{value:.3f}'.removeprefix('0') in card
  # Too few rows to be calibrated on.
  assert f'none ({report["calibration"][0]["reason"]})' in card
  assert 'on 15 rows' in card or 'on 14 rows' in card


def test_export_again_does_nothing_and_a_new_report_renews_the_card(
  scratch, capsys
):
  folder = scratch / 'export' / 'cot_raft'
  before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
  tasks.execute(trained(scratch, num_cots=2), 'export')
  assert 'nothing to do' in capsys.readouterr().out
  assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
  (folder / 'README.md').write_text('another')
  tasks.execute(trained(scratch, num_cots=2), 'export')
  after = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}
  assert {n for n in after if after[n] != before[n]} == {'README.md'}


def test_other_settings_are_refused_by_name(scratch):
  run = trained(scratch, num_cots=2, export={'dtype': 'bfloat16'})
  with pytest.raises(types.InputError, match='export.dtype: recorded'):
    tasks.execute(run, 'export')


def test_folder_of_somebody_else_is_left_alone(scratch, tmp_path):
  run = trained(tmp_path)
  folder = tmp_path / 'export' / 'cot_raft'
  folder.mkdir(parents=True)
  (folder / 'notes.txt').write_text('mine')
  with pytest.raises(types.InputError, match='not empty'):
    tasks.execute(run, 'export')
  assert [p.name for p in folder.iterdir()] == ['notes.txt']


def test_unfinished_export_is_made_again(scratch, tmp_path):
  run = trained(tmp_path)
  tasks.execute(run, 'export')
  folder = tmp_path / 'export' / 'cot_raft'
  weights = (folder / 'model.safetensors').read_bytes()
  files = {path.name for path in folder.iterdir()}
  (folder / 'model.safetensors').write_bytes(b'cut')
  (folder / '.judge.json.0a1b2c3d.tmp').write_bytes(b'cut')
  (folder / '.model.safetensors.tmp').write_bytes(b'cut')
  content = manifest.read_manifest(folder)
  manifest.write_manifest(
    folder, content['kind'], content['fingerprint'], finished=False
  )
  tasks.execute(trained(tmp_path), 'export')
  assert (folder / 'model.safetensors').read_bytes() == weights
  assert manifest.is_finished(folder)
  assert {path.name for path in folder.iterdir()} == files


def test_export_that_was_killed_before_its_manifest_is_begun_again(
  scratch, tmp_path
):
  folder = tmp_path / 'export' / 'cot_raft'
  folder.mkdir(parents=True)
  (folder / f'.{manifest.MANIFEST}.0a1b2c3d.tmp').write_bytes(b'{"sch')
  tasks.execute(trained(tmp_path), 'export')
  assert manifest.is_finished(folder)
  assert not list(folder.glob('.*'))


@pytest.mark.parametrize(
  'name', ['model.safetensors', 'tokenizer.json', 'judge.json', 'config.json']
)
def test_a_cut_or_lost_file_of_an_export_is_named(scratch, name):
  path = scratch / 'export' / 'cot_raft' / name
  content = path.read_bytes()
  run = trained(scratch, num_cots=2)
  try:
    path.write_bytes(content[:-1])
    with pytest.raises(types.InputError) as error:
      tasks.execute(run, 'export')
    size = len(content)
    assert f'{path}: {size} bytes were written, {size - 1} ar' in str(
      error.value
    )
    path.unlink()
    with pytest.raises(types.InputError, match=f'{name}: {size} bytes were wr'):
      tasks.execute(run, 'export')
  finally:
    path.write_bytes(content)


def test_zero_shot_has_no_export(tmp_path):
  run = trained(tmp_path, methods=('zero_shot',))
  with pytest.raises(types.InputError, match="'zero_shot' trains nothing"):
    tasks.execute(run, 'export')


def test_what_is_trained_is_exported_beside_zero_shot(
  scratch, tmp_path, capsys
):
  folder = shutil.copytree(scratch, tmp_path / 'run')
  shutil.rmtree(folder / 'export')
  tasks.execute(trained(folder, methods=('zero_shot', 'cot_raft')), 'export')
  assert [path.name for path in (folder / 'export').iterdir()] == ['cot_raft']
  said = capsys.readouterr().out
  assert 'config.methods: zero_shot trains nothing, so has no export' in said


@pytest.mark.parametrize('kind', ['', 'int8', 'nf4'])
def test_adapters_are_merged_into_the_unquantised_base(base, tmp_path, kind):
  run = trained(tmp_path, model=lora_on(base, base_quantization=kind))
  tasks.execute(run, 'export')
  folder = tmp_path / 'export' / 'cot_raft'
  found = Judge.load(folder, settings=ONE_DEVICE).logits(TOKENS)
  np.testing.assert_allclose(
    found, logits_of_transformers(loaded_by_transformers(folder)), atol=1e-5
  )
  change = np.abs(found - logits_of_transformers(loaded_by_transformers(base)))
  assert change.max() > 0.01
  card = (folder / 'README.md').read_text()
  assert 'A licence of tests' in card
  assert (f'quantised to {kind}' in card) == bool(kind)


def test_exported_adapter_is_that_of_the_merged_judge(base, tmp_path):
  peft = pytest.importorskip('peft')
  model = lora_on(base, lora_targets=('q_proj', 'down_proj'))
  for form in ('merged', 'adapter'):
    run = trained(tmp_path / form, model=model, export={'format': form})
    tasks.execute(run, 'export')
  merged, adapter = (
    tmp_path / form / 'export' / 'cot_raft' for form in ('merged', 'adapter')
  )
  expected = Judge.load(merged, settings=ONE_DEVICE).logits(TOKENS)
  found = Judge.load(adapter, settings=ONE_DEVICE)
  np.testing.assert_allclose(found.logits(TOKENS), expected, atol=1e-5)
  assert found.method.with_cot
  theirs = peft.PeftModel.from_pretrained(loaded_by_transformers(base), adapter)
  np.testing.assert_allclose(
    logits_of_transformers(theirs), expected, atol=1e-5
  )


def test_an_adapter_on_an_adapter_is_not_exported(base, tmp_path):
  run = trained(
    tmp_path / 'first', model=lora_on(base), export={'format': 'adapter'}
  )
  tasks.execute(run, 'export')
  first = tmp_path / 'first' / 'export' / 'cot_raft'
  run = trained(
    tmp_path / 'second', model=lora_on(first), export={'format': 'adapter'}
  )
  with pytest.raises(types.InputError, match="use 'merged'"):
    tasks.execute(run, 'export')


def test_quantised_base_is_what_a_run_trains_on(base, tmp_path):
  run = trained(tmp_path, model=lora_on(base, base_quantization='int8'))
  _, frozen = base_weights.init_params(run.setup.model, seed=0)
  weight = frozen['layers']['mlp']['up_proj']['weight']
  assert quantization.is_quantized(weight)
  assert weight.qvalue.sharding.spec == jax.sharding.PartitionSpec(
    None, 'fsdp', 'tensor'
  )
  assert not quantization.is_quantized(frozen['embed_tokens']['weight'])
