"""Where the sides of a benchmark work, by stand-ins: no accelerator is here."""

import subprocess
import types

import jax
import pytest

from benchmarks import (
  bench,
  curves,
  job,
  options,
  pairs,
  results,
  sampling,
  side_jax,
)
from tests.models import small_models
from tract_jax import types as tract_types

torch = pytest.importorskip('torch')
side_torch = pytest.importorskip('benchmarks.side_torch')

FIGURES = {'tokens_per_sec': lambda m: m.tokens_per_sec}


DETAILS = (
  'first_loss num_trained compile_secs start_up_secs load_secs export_secs'
  ' save_state_secs restore_state_secs'
).split()


def measurement(module):
  details = {**dict.fromkeys(DETAILS, 1.0), 'last_loss': 0.5}
  versions = {'machine': 'chip, host', module: '1'}
  cots = [job.Cot(0, [], 0, 'marker', [0.5, 0.5])]
  return job.Measurement(2.0, 10, 1.0, 100, versions, cots, details)


@pytest.fixture
def started(monkeypatch):
  """(module, job) of every process that would have been started."""
  calls = []

  def start(module, asked, folder):
    calls.append((module, asked))
    name = f'{len(calls):02d}_{module}_{asked.kind}.measured.json'
    (folder / name).touch()
    return measurement(module)

  monkeypatch.setattr(job, 'start', start)
  return calls


@pytest.mark.parametrize(
  ('platform', 'modules', 'theirs'),
  [
    ('cpu', ['files_torch', 'files_jax'], 5.0),
    ('cuda', ['files_torch', 'files_jax'], 5.0),
    ('tpu', ['files_jax'], None),
  ],
)
def test_on_a_tpu_ours_is_alone(started, tmp_path, platform, modules, theirs):
  runner = pairs.Pairs(tmp_path / 'files.json', tmp_path / 'jobs')
  asked = job.Job(kind='files', model='', platform=platform)
  found = runner.run('files', asked, 2, FIGURES)
  # The second pair begins with the other side.
  assert [module for module, _ in started] == [*modules, *modules[::-1]]
  last = f'{len(modules) + 1:02d}_files_jax_files'
  assert runner.last_answer().endswith(f'/{last}.measured.json')
  assert [made.seed for _, made in started] == sorted([0, 1] * len(modules))
  assert all(made.platform == platform for _, made in started)
  assert [other is None for _, other in found] == [theirs is None] * 2
  (row,) = results.read_results(tmp_path / 'files.json')
  assert (row.ours, row.theirs, row.runs) == (5.0, theirs, 2)
  assert row.ratio_median == (theirs and 1.0)
  assert row.machine == 'chip, host'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return small_models.save_judge(tmp_path_factory.mktemp('judge'))


@pytest.fixture
def prompts(tmp_path):
  data = tmp_path / 'rows.json'
  data.write_text('[{"prompt": "It is good."}]')
  return [f'--data={data}', '--num-prompts=1', '--min-tokens=1']


def check_started(started, platform, sides):
  assert {made.platform for _, made in started} == {platform}
  assert {module.rpartition('_')[2] for module, _ in started} == sides


@pytest.mark.parametrize('platform', job.PLATFORMS)
def test_make_bench_asks_for_the_platform(
  started, tmp_path, folder, prompts, platform
):
  code = bench.main(
    [
      *prompts,
      f'--model={folder}',
      '--pairs=1',
      '--their-rows=2',
      f'--platform={platform}',
      f'--results={tmp_path / "results"}',
    ]
  )
  assert code == 0
  sides = {'jax'} if platform == 'tpu' else {'jax', 'torch'}
  check_started(started, platform, sides)
  for part in bench.PARTS:
    rows = results.read_results(tmp_path / 'results' / f'{part}.json')
    compared = {r.name for r in rows if r.theirs is not None}
    assert bool(compared) == (platform != 'tpu')
    differences = {r.name for r in rows if 'difference' in r.name}
    assert bool(differences) == (platform != 'tpu' and part != 'files')


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
def test_so_do_sampling_and_curves(
  started, tmp_path, folder, prompts, platform
):
  common = [f'--model={folder}', f'--platform={platform}']
  path = tmp_path / 'sampling.json'
  arguments = [*prompts, *common, '--runs=1', '--parts=one_cot,decode']
  arguments += [] if platform == 'tpu' else ['--their-batch=2']
  assert sampling.main([*arguments, f'--results={path}']) == 0
  sides = {'jax'} if platform == 'tpu' else {'jax', 'torch'}
  check_started(started, platform, sides)
  rows = results.read_results(path)
  assert {row.theirs is None for row in rows} == {platform == 'tpu'}

  started.clear()
  sizes = ['--lengths=8', '--batches=1', '--slots=1', '--data-rows=4']
  path = tmp_path / 'curves.json'
  assert curves.main([*common, *sizes, f'--results={path}']) == 0
  check_started(started, platform, {'jax'})
  assert len(started) == 4


@pytest.mark.parametrize('platform', job.PLATFORMS)
def test_a_process_gets_its_platform(monkeypatch, tmp_path, platform):
  def run(command, env, **_):
    assert env['JAX_PLATFORMS'] == platform
    precision = env.get('JAX_DEFAULT_MATMUL_PRECISION')
    assert precision == (None if platform == 'cpu' else 'highest')
    asked = job.pathlib.Path(command[-1])
    made = job.dataclasses.asdict(measurement('jax'))
    job.answer_path(asked).write_text(job.json.dumps(made))

  monkeypatch.delenv('JAX_DEFAULT_MATMUL_PRECISION', raising=False)
  monkeypatch.setattr(subprocess, 'run', run)
  asked = job.Job(kind='files', model='', platform=platform)
  found = job.start('files_jax', asked, tmp_path)
  assert found == job.dataclasses.replace(
    measurement('jax'), other_cpus=found.other_cpus
  )
  assert side_torch.device(asked) == ('cuda' if platform == 'cuda' else 'cpu')


def test_an_accelerator_is_named_and_its_memory_counts(monkeypatch):
  host = job.machine()
  found = side_jax.measured(1.0, 2, 3.0)
  assert found.versions['machine'] == host
  assert 2**26 < found.peak_memory_bytes == job.peak_memory_bytes()

  chip = types.SimpleNamespace(
    platform='tpu',
    device_kind='TPU v5 lite',
    memory_stats=lambda: {'peak_bytes_in_use': 77, 'bytes_in_use': 5},
  )
  monkeypatch.setattr(jax, 'devices', lambda: [chip])
  found = side_jax.measured(1.0, 2, 3.0)
  assert found.versions['machine'] == f'TPU v5 lite, {host}'
  assert found.peak_memory_bytes == 77


def test_a_gpu_of_pytorch_is_named_and_its_memory_counts(monkeypatch):
  assert side_torch.measured(1.0, 2, 3.0).versions['machine'] == job.machine()
  monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
  monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'H100')
  monkeypatch.setattr(torch.cuda, 'max_memory_allocated', lambda: 78)
  found = side_torch.measured(1.0, 2, 3.0, {'peft': '1'})
  assert found.versions['machine'] == f'H100, {job.machine()}'
  assert found.versions['peft'] == '1'
  assert found.versions['torch'] == torch.__version__
  assert found.peak_memory_bytes == 78


def test_options_have_the_platform():
  args = options.parse_curves(['--platform=cuda'], ('length',))
  assert args.platform == 'cuda'
  with pytest.raises(SystemExit):
    options.parse_curves(['--platform=gpu'], ('length',))


def test_what_starts_the_sides_takes_no_accelerator_from_them(
  monkeypatch, tmp_path
):
  asked = []
  monkeypatch.setattr(jax.config, 'update', lambda *pair: asked.append(pair))
  monkeypatch.setattr(options, 'model_folder', lambda args: str(tmp_path))
  # Before the tokenizer is looked for, which is not there.
  arguments = ['--data=no.json', f'--results={tmp_path}']
  args = options.parse_bench(arguments, ('training',))
  with pytest.raises(tract_types.InputError):
    options.training_jobs(args)
  assert asked == [('jax_platforms', 'cpu')]
