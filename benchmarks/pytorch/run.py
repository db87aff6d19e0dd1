"""A whole run with PyTorch: what `tract_jax.main` does, on the other side.

  python -m benchmarks.pytorch.run --config=configs/demo.py \
    --workdir=runs/demo_pytorch [--config.KEY=VALUE ...] [--platform=cuda]

reads the same configuration, rows, tokenizer, seed model, adapters and order of
batches as --task=run, and trains, samples and predicts with transformers, PEFT
and torch: config.methods of METHODS, config.seeds, every benchmark. Under the
workdir:

  <method>/stage1/seed0   a Hugging Face folder, or a PEFT adapter
  predictions/<method>/<benchmark>.jsonl

the latter for --config.evaluation.others of our run (docs/benchmarks.md). A
method whose predictions are there is skipped; what was killed begins anew.
Exit codes: 0 done, 2 bad arguments, config or data.
"""

import argparse
from collections.abc import Iterator, Sequence
import contextlib
import functools
import pathlib
import sys
import time
from typing import Any

from etils import epath
import jax
import ml_collections
import torch

from benchmarks import job as job_lib
from benchmarks import options, pairs, side_torch
from benchmarks.pytorch import prediction, training
from tract_jax import main as main_lib
from tract_jax import types
from tract_jax.data import manifest
from tract_jax.models import remote_files
from tract_jax.pipeline import (
  build,
  fingerprint,
  predict,
  prediction_files,
  progress,
  read_data,
)
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import methods as methods_lib
from tract_jax.pipeline import workdir as workdir_lib

METHODS = ('ce', 'ce_cot', 'raft', 'cot_raft', 'tract')
_KIND = 'pytorch predictions'
# Keys with one value that both sides have.
_ONLY: dict[str, Any] = {
  'model.dtype': 'float32',
  'model.base_quantization': '',
  'model.adapter': '',
  'data.packing': False,
  'train.lambda_candidates': (),
  'train.score_loss': 'squared_error',
  'train.expectation': 'full',
  'train.off_grid_penalty': 0.0,
  'sampling.max_retries': 0,
  'sampling.unfinished': 'complete',
  'sampling.weights': '',
  'sampling.kv_cache': '',
}


@pairs.refusing_bad_input
def main(argv: Sequence[str] | None = None) -> int:
  """Does the run.

  Args:
    argv: arguments without the program's name; those of the process if None.

  Returns:
    The exit code.
  """
  args, config = _parse(argv)
  options.stay_on_cpu()
  side_torch.prepare(
    job_lib.Job(kind='run', model='', num_threads=args.threads)
  )
  folder = epath.Path(args.workdir)
  with workdir_lib.use(folder):
    progress.say(f'workdir: {folder}')
    # One device, as on the other side.
    setup = build.build(config, devices=jax.devices()[:1])
    _check_setup(setup)
    run = Run(setup, read_data.read_data(setup), pathlib.Path(folder), args)
    missing = [method for method in config.methods if not run.is_done(method)]
    for method in missing:
      run.predict(method)
  return 0


class Run:
  """The parts of a run, each made on demand and at most once."""

  def __init__(
    self,
    setup: build.Setup,
    data: read_data.RunData,
    workdir: pathlib.Path,
    args: argparse.Namespace,
  ):
    """Begins with nothing made.

    Args:
      setup: of the run, on one device.
      data: the examples.
      workdir: where artefacts lie.
      args: of the command line: platform and threads.
    """
    self._setup = setup
    self._data = data
    self._workdir = workdir
    self._args = args
    self._start = functools.cache(
      functools.partial(training.write_start, setup, data.pretrain, workdir)
    )
    self._stages: dict[tuple[str, int, int], pathlib.Path] = {}

  def is_done(self, method: str) -> bool:
    """Whether the method's predictions are there.

    Raises:
      types.InputError: those of other settings are, or of another program.
    """
    folder = self._folder(method)
    if manifest.matches(folder, _KIND, self._fields(method)):
      progress.say(f'{method}: done before')
      return True
    if manifest.read_manifest(folder) is None:
      for name in self._data.benchmarks:
        if (path := self._path(method, name)).exists():
          raise types.InputError(
            f'{path}: is there, and not of this program; choose another'
            ' --workdir, or delete it yourself'
          )
    return False

  def predict(self, method: str) -> None:
    """Trains all seeds of a method, and writes its predictions."""
    lines: dict[str, list[str]] = {name: [] for name in self._data.benchmarks}
    how = methods_lib.METHODS[method]
    for seed in self._setup.config.seeds:
      reader = self._reader(self._stage(method, len(how.stages) - 1, seed))
      for name, examples in self._data.benchmarks.items():
        with _timed(f'{method} on {name} seed {seed}'):
          samples = self._samples(reader, how, examples, seed)
        for example, of_example in zip(examples, samples, strict=True):
          row = predict.prediction_of(
            self._setup, how, seed, example, of_example
          )
          lines[name].append(prediction_files.to_line(row))
    folder, fields = self._folder(method), self._fields(method)
    manifest.write_manifest(folder, _KIND, fields, finished=False)
    for name, rows in lines.items():
      manifest.write_text_atomic(self._path(method, name), ''.join(rows))
      progress.say(f'{self._path(method, name)}: {len(rows)} rows')
    manifest.write_manifest(folder, _KIND, fields)

  def _stage(self, method: str, index: int, seed: int) -> pathlib.Path:
    """The folder of a stage, trained with all that it needs."""
    owner = methods_lib.stage_owner(method, index)
    key = (owner, index, seed)
    if key in self._stages:
      return self._stages[key]
    stage = methods_lib.METHODS[owner].stages[index]
    label = f'{owner} stage {index + 1} seed {seed}'
    folder = self._workdir / owner / f'stage{index + 1}' / f'seed{seed}'
    cots: list[types.CotSample] = []
    if stage.cot_source == 'self':
      cots = self._self_cots(self._stage(owner, 0, seed), owner, seed)
    rows = read_data.encode_for_stage(
      self._setup, self._data.train, stage.cot_source, cots, label
    )
    if manifest.read_manifest(epath.Path(folder)) is not None:
      raise types.InputError(
        f'{folder}: is of a run of tract_jax; choose another --workdir'
      )
    start = self._start(seed)
    with _timed(label):
      training.train(
        self._setup,
        stage,
        rows,
        start,
        folder,
        label=label,
        seed=seed,
        device=self._args.platform,
      )
    self._stages[key] = folder
    return folder

  def _self_cots(
    self, stage: pathlib.Path, owner: str, seed: int
  ) -> list[types.CotSample]:
    """CoTs of the first stage for all training rows."""
    config = self._setup.config
    with _timed(f'{owner} self-CoTs seed {seed}'):
      samples = self._reader(stage).cots(
        self._data.train,
        config.sampling.num_self_cots,
        seed=seed,
        # What stage 2 could not train on for its length is cut off here.
        max_length=config.data.max_length,
      )
    return [s for of_row in samples for s in of_row]

  def _samples(
    self,
    reader: prediction.Reader,
    how: methods_lib.Method,
    examples: Sequence[types.Example],
    seed: int,
  ) -> list[list[types.CotSample]]:
    if not how.with_cot:
      return reader.bare(examples)
    config = self._setup.config
    return reader.cots(
      examples,
      config.num_cots,
      seed=seed,
      max_length=min(
        config.data.max_length + config.sampling.max_new_tokens,
        self._setup.model.config.longest_row,
      ),
    )

  def _reader(self, folder: pathlib.Path) -> prediction.Reader:
    return prediction.Reader(
      self._setup,
      folder,
      platform=self._args.platform,
      num_threads=self._args.threads,
    )

  def _fields(self, method: str) -> dict[str, Any]:
    """The facts that make a method's predictions what they are."""
    config, how = self._setup.config, methods_lib.METHODS[method]
    fields = fingerprint.model_fields(self._setup)
    fields |= read_data.digests(self._data)
    fields |= {'method': method, 'seeds': list(config.seeds)}
    fields |= {f'pretrain.{k}': v for k, v in config.pretrain.items()}
    for stage in how.stages:
      fields |= fingerprint.train_fields(self._setup, stage.objective)
    if how.with_cot:
      fields |= fingerprint.self_cot_fields(self._setup)
      fields['num_cots'] = config.num_cots
    return fields

  def _folder(self, method: str) -> epath.Path:
    return epath.Path(self._workdir) / 'predictions' / method

  def _path(self, method: str, benchmark: str) -> epath.Path:
    return prediction_files.path_of(
      epath.Path(self._workdir), method, benchmark
    )


def _parse(
  argv: Sequence[str] | None,
) -> tuple[argparse.Namespace, ml_collections.ConfigDict]:
  """Options of this program, and the configuration, checked."""
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.pytorch.run',
    description='Does a run of tract_jax.main with PyTorch.',
    usage='%(prog)s --config=FILE [--config.KEY=VALUE ...] [options]',
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('--workdir', default='', help='default runs/NAME_pytorch')
  add('--platform', choices=('cpu', 'cuda'), default='cpu')
  add('--threads', type=int, default=2)
  args, rest = parser.parse_known_args(argv)
  if args.workdir:
    rest = [f'--workdir={args.workdir}', *rest]
  task, workdir, config = main_lib.parse(rest)
  args.workdir = args.workdir or f'{workdir}_pytorch'
  problems = list(_problems(config))
  if task != 'run':
    problems.append(f'--task: {task!r}: there is only "run" here')
  if args.threads < 1:
    problems.append(f'--threads: {args.threads} is below 1')
  if args.platform == 'cuda' and not torch.cuda.is_available():
    problems.append('--platform: cuda, but PyTorch finds no GPU')
  if remote_files.is_remote(args.workdir):
    problems.append(f'--workdir: {args.workdir} is not a local folder')
  if problems:
    raise types.InputError('\n'.join(problems))
  # One device works, whatever the run's own mesh.
  config.mesh.update({'data': 1, 'fsdp': -1, 'tensor': 1})
  return args, config


def _problems(config: ml_collections.ConfigDict) -> Iterator[str]:
  """What the other side does not do, a line each."""
  for method in config.methods:
    if method not in METHODS:
      yield (
        f'config.methods: {method!r} is none of the baseline,'
        f' {", ".join(METHODS)}'
      )
  for key, only in _ONLY.items():
    if (value := config_lib.get(config, key)) != only:
      yield f'config.{key}: {value!r}, but the baseline has only {only!r}'
  most = max(config.num_cots, config.sampling.num_self_cots)
  if most > 1 and not config.sampling.temperature:
    yield f'config.sampling.temperature: 0, and {most} CoTs would be the same'


def _check_setup(setup: build.Setup) -> None:
  """Refuses what is known only with tokenizer and model.

  Raises:
    types.InputError: scores of several tokens, or weights elsewhere.
  """
  if not (setup.cot_scores.ids and setup.bare_scores.ids):
    raise types.InputError('scores of several tokens are not read here')
  if sources := setup.model.sources:
    if sources.adapter or remote_files.is_remote(sources.base.weights):
      raise types.InputError(
        f'config.model.path: {sources.name}: not a local folder of a whole'
        ' model'
      )


@contextlib.contextmanager
def _timed(label: str) -> Iterator[None]:
  """Says how long the block took."""
  begin = time.perf_counter()
  yield
  progress.say(f'{label}: {time.perf_counter() - begin:.1f} s')


if __name__ == '__main__':
  sys.exit(main())
