"""A run's parts: stages, self-CoTs, gaps, predictions, exports.

Each part looks at its manifest first: finished parts are skipped, interrupted
ones continue, and weights are read only when a part needs them. `tasks` says in
which order a run has them.

Joined processes train together, on the mesh of all; each samples its share on
its own devices; they meet before and after. The first writes what all read.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

from etils import epath

from tract_jax import types
from tract_jax.data import encoded_examples, manifest
from tract_jax.data import self_cot as self_cot_data
from tract_jax.evaluation import metrics
from tract_jax.parallel import agreement, distributed
from tract_jax.pipeline import (
  build,
  cot_gap,
  export,
  finetune,
  fingerprint,
  hosts,
  interruption,
  lambda_choice,
  objective,
  predict,
  prediction_files,
  pretrain,
  progress,
  read_data,
  sample,
  self_cot,
  weights,
)
from tract_jax.pipeline import methods as methods_lib


class Run:
  """A run's parts, each made on demand and at most once.

  Attributes:
    setup: model, tokenizer, mesh.
    data: the examples.
    workdir: where artefacts lie.
    host: which of the hosts that share the work this is. Those that are not
      joined sample and predict, each its own chunks, and train nothing.
    num_worked: parts that were not finished before.
    meet: waits for the joined processes; see `hosts.meet`.
  """

  def __init__(
    self,
    setup: build.Setup,
    data: read_data.RunData,
    workdir: epath.Path,
    stop: agreement.Agreement,
    host: distributed.Host = distributed.ONLY_HOST,
  ):
    """Begins with nothing made.

    Args:
      setup: to train with.
      data: the examples.
      workdir: where artefacts lie.
      stop: what this process and those joined with it agree on.
      host: which of several this is.

    Raises:
      types.InputError: the mesh to sample on does not fit.
    """
    self.setup = setup
    self.data = data
    self.workdir = workdir
    self.host = host
    self.num_worked = 0
    self._stop = stop
    self._sampling = build.for_sampling(setup)
    self._sampler = sample.Sampler(self._sampling, stop.asked)
    self._weights = weights.Weights(
      setup, self._sampling, self._seed_model, self._sampler.forget
    )
    self.meet = functools.partial(hosts.meet, stop)
    self._together = functools.partial(hosts.together, host, stop)
    self._make_trainer = functools.cache(
      functools.partial(build.make_trainer, setup)
    )
    self._stages: dict[tuple, finetune.StageRun] = {}

  def inputs(self) -> dict[str, Any]:
    """What joined hosts must have alike: the seed model, and all rows."""
    return self._model_fields | self._digests

  @functools.cached_property
  def _digests(self) -> dict[str, str]:
    return read_data.digests(self.data)

  @functools.cached_property
  def _model_fields(self) -> dict[str, Any]:
    return fingerprint.model_fields(self.setup)

  def stage(self, method: str, index: int, seed: int) -> finetune.StageRun:
    """Trains a stage and all that it needs, where that is not done.

    Args:
      method: a row of the table.
      index: of the stage, from 0.
      seed: of the run.

    Returns:
      The finished stage.

    Raises:
      types.InputError: it is not trained yet, and this is one of several hosts.
    """
    config = self.setup.config
    owner = methods_lib.stage_owner(method, index)
    key = (owner, index, seed)
    if key in self._stages:
      return self._stages[key]
    stage = methods_lib.METHODS[owner].stages[index]
    label = f'{owner} stage {index + 1} seed {seed}'
    previous = self.stage(owner, index - 1, seed) if index else None
    cots, fields = [], self._stage_fields(stage, seed)
    if stage.cot_source in ('self', 'mixed'):
      sampled = self.self_cot_folder(owner, seed) / self_cot_data.SUMMARY
      hosts.check_trained(self.host, label, sampled.exists(), owner)
      cots, fields['self_cots'] = self.self_cots(owner, seed)
    if previous and stage.start == 'previous':
      fields['start'] = manifest.read_results(previous.folder)['params_digest']
    run = finetune.StageRun(
      label=label,
      folder=self.stage_folder(owner, index, seed),
      seed=seed,
      objective=objective.make_objective(config, stage.objective),
      with_cot=stage.cot_source != 'none',
      fields=fields,
    )
    run = lambda_choice.trained(
      config,
      stage.objective,
      run,
      lambda candidate: self._train(candidate, owner, stage, cots, previous),
    )
    self._stages[key] = run
    return run

  def self_cots(self, method: str, seed: int):
    """Self-CoTs of the method's first stage for all training rows.

    Args:
      method: one with a stage on self-CoTs.
      seed: of the run.

    Returns:
      (samples, digest of the dataset); None while other hosts' are missing.
    """
    owner = methods_lib.self_cot_owner(method)
    stage = self.stage(owner, 0, seed)
    provenance = (
      self._model_fields
      | fingerprint.self_cot_fields(self.setup)
      | {
        'sampler': manifest.read_results(stage.folder)['params_digest'],
        'train': self._digests['train'],
        'validation': self._digests['validation'],
        'seed': seed,
      }
    )
    folder = self.self_cot_folder(owner, seed)
    label = hosts.labelled(self.host, f'{owner} self-CoTs seed {seed}')
    self_cot.sample_self_cots(
      self._sampler,
      self._counted(lambda: self._weights.to_sample(stage, seed)),
      {'train': self.data.train, 'validation': self.data.validation},
      folder,
      provenance,
      seed,
      label,
      process_index=self.host.index,
      process_count=self.host.count,
      together=self._together,
    )
    if self.host.count > 1 and not (folder / self_cot_data.SUMMARY).exists():
      progress.say(f'{label}: done, but other hosts are not')
      return None
    return self_cot_data.read_self_cots(folder, provenance)

  def cot_gap(self, method: str, index: int, seed: int) -> metrics.CotGap:
    """The gap of a stage between annotator's and its own CoTs."""
    stage = self.stage(method, index, seed)
    owner = methods_lib.stage_owner(method, index)
    examples = self.data.train[: self.setup.config.evaluation.gap_examples]
    fields = self._sampling_fields(stage, seed) | {
      'train': self._digests['train']
    }
    folder = self.stage_folder(owner, index, seed) / cot_gap.FOLDER
    if self.host.writes and not cot_gap.is_done(folder, fields, len(examples)):
      self.num_worked += 1
      where = f'before the CoT gap of {stage.label}'
      interruption.stop_if(self._stop.asked, where)
      params = self._weights.to_sample(stage, seed)
      results = cot_gap.measure(self._sampler, params, examples, seed)
      cot_gap.write(folder, fields, results, stage.label)
    self.meet(f'after the CoT gap of {stage.label}')
    return cot_gap.read(folder, owner, index + 1, seed)

  def encoded(
    self, cot_source: str, cots: Sequence[types.CotSample], label: str
  ) -> list[encoded_examples.EncodedExamples]:
    """Training and validation rows, see `read_data.encode_for_stage`."""
    kinds = {
      'training rows': self.data.train,
      'validation rows': self.data.validation,
    }
    return [
      read_data.encode_for_stage(
        *(self.setup, examples, cot_source, cots),
        label=label + kind,
        should_stop=self._stop.asked,
      )
      for kind, examples in kinds.items()
    ]

  def predict(self, method: str, seed: int) -> None:
    """Predicts every benchmark, where that is not done."""
    stages = methods_lib.METHODS[method].stages
    stage = self.stage(method, len(stages) - 1, seed) if stages else None
    self._predict(method, stage, seed)

  def judge(self, method: str, seed: int) -> None:
    """Predicts every benchmark with the model as it is."""
    self._predict(method, None, seed)

  def _predict(
    self, method: str, stage: finetune.StageRun | None, seed: int
  ) -> None:
    how = self.setup.methods[method]
    # The method's name says which predictor is its own, but for this.
    is_other = stage is not None and how != methods_lib.METHODS[method]
    for name, examples in self.data.benchmarks.items():
      run = predict.PredictionRun(
        label=hosts.labelled(self.host, f'{method} on {name} seed {seed}'),
        folder=self._chunks(method, name, seed),
        method=how,
        seed=seed,
        num_cots=self.setup.config.num_cots if how.with_cot else 1,
        examples=examples,
        fields=self._sampling_fields(stage, seed, how.with_cot)
        | {'benchmark': self._digests[f'benchmark {name}']}
        | ({'num_cots': self.setup.config.num_cots} if how.with_cot else {})
        | ({'predictor': how.predictor} if is_other else {}),
      )
      if predict.is_done(run):
        progress.say(f'{run.label}: done before')
        continue
      predict.predict(
        self._sampler,
        self._counted(lambda: self._weights.to_sample(stage, seed)),
        run,
        process_index=self.host.index,
        process_count=self.host.count,
        together=self._together,
      )

  def join_predictions(self, method: str) -> None:
    """Joins the chunks of all seeds into one file for each benchmark.

    Of hosts that are not joined the one that comes last does, or each of the
    last ones.
    """
    if not self.host.writes:
      return
    for name, examples in self.data.benchmarks.items():
      chunks = [self._chunks(method, name, s) for s in self.setup.config.seeds]
      if self.host.count > 1 and not all(map(manifest.is_finished, chunks)):
        label = hosts.labelled(self.host, f'{method} on {name}')
        progress.say(f'{label}: done, but other hosts are not')
        continue
      path = prediction_files.path_of(self.workdir, method, name)
      prediction_files.join_chunks(chunks, len(examples), path)

  def export(self, method: str) -> None:
    """Exports the last stage of the first seed, where that is not done."""
    seed = self.setup.config.seeds[0]
    stages = [
      self.stage(method, index, seed)
      for index, _ in enumerate(methods_lib.METHODS[method].stages)
    ]
    if not self.host.writes:
      return
    run = export.make_run(
      self._sampling, self.workdir, method, stages, self.data.train
    )
    if export.is_done(run):
      progress.say(f'{run.label}: done before')
    else:
      self.num_worked += 1
      interruption.stop_if(self._stop.asked, f'before the {run.label}')
      trained = finetune.load_trained(stages[-1], self._sampling)
      export.export(self._sampling, run, trained)
    self.num_worked += export.write_card(self._sampling, run)

  def _train(self, run, owner, stage, cots, previous) -> None:
    """Trains a stage, where that is not done."""
    if finetune.is_done(run):
      progress.say(f'{run.label}: done before')
      return
    hosts.check_trained(self.host, run.label, False, owner)
    self.num_worked += 1
    rows = finetune.StageRows(
      *self.encoded(stage.cot_source, cots, f'{run.label}: ')
    )
    self.meet(f'before {run.label}')
    start = self._weights.to_train(
      run.seed, previous if stage.start == 'previous' else None
    )
    trained = finetune.finetune(
      self.setup, run, rows, start, self._make_trainer, self._stop.stop_here
    )
    self._weights.keep(run, trained, start[1])
    self.meet(f'after {run.label}')

  def _seed_model(self, seed: int) -> finetune.StageRun | None:
    """The stage that makes a model from scratch a seed model, if there is."""
    key = (pretrain.FOLDER, 0, seed)
    if self.data.pretrain and key not in self._stages:
      folder = self.workdir / pretrain.FOLDER / f'seed{seed}'
      is_done = manifest.is_finished(folder)
      hosts.check_trained(self.host, f'seed model seed {seed}', is_done)
      self._stages[key], is_new = pretrain.trained(
        self.setup,
        self.data.pretrain,
        self.workdir,
        seed,
        self._model_fields,
        self._stop,
      )
      self.num_worked += is_new
    return self._stages.get(key)

  def _seed_fields(self, seed: int) -> dict[str, Any]:
    """The seed model, and what made it that."""
    seed_model = self._seed_model(seed)
    if not seed_model:
      return self._model_fields
    digest = manifest.read_results(seed_model.folder)['params_digest']
    return self._model_fields | {'pretrained': digest}

  def _counted(self, make: Callable[[], types.PyTree]):
    def counted():
      self.num_worked += 1
      return make()

    return counted

  def _stage_fields(self, stage, seed: int) -> dict[str, Any]:
    return (
      self._seed_fields(seed)
      | fingerprint.train_fields(self.setup, stage.objective)
      | {
        'objective': stage.objective,
        'cot_source': stage.cot_source,
        'start': stage.start,
        'train': self._digests['train'],
        'validation': self._digests['validation'],
        'seed': seed,
      }
    )

  def _sampling_fields(self, stage, seed: int, with_cot: bool = True):
    """Of what is sampled, or only scored, with the model after a stage."""
    trained = 'seed model'
    if stage:
      trained = manifest.read_results(stage.folder)['params_digest']
    fields = self._seed_fields(seed) | {'params': trained, 'seed': seed}
    return fields | fingerprint.sampling_fields(self.setup, with_cot)

  def stage_folder(self, owner: str, index: int, seed: int) -> epath.Path:
    """Where the artefacts of a stage lie."""
    return self.workdir / owner / f'stage{index + 1}' / f'seed{seed}'

  def self_cot_folder(self, owner: str, seed: int) -> epath.Path:
    """Where the self-CoTs of a method lie."""
    return self.workdir / owner / 'self_cot' / f'seed{seed}'

  def _chunks(self, method: str, benchmark: str, seed: int) -> epath.Path:
    return prediction_files.chunk_folder(self.workdir, method, benchmark, seed)
