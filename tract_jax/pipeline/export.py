"""Exports a trained stage: a Hugging Face folder, or a PEFT adapter.

    stage's leaves + seed model's weights, unquantised
      -> safetensors, config, tokenizer, judge.json, model card

A merged folder is what transformers, vLLM and `Judge.load` read. The adapter
stands on the seed model. The manifest is written last: a folder without a
finished one is not whole, and the same command makes it again.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import tempfile
from typing import Any

from etils import epath

from tract_jax import types
from tract_jax.data import disk, manifest
from tract_jax.models import hf_export, json_file, lora, peft_adapter
from tract_jax.pipeline import (
  base_weights,
  build,
  card_results,
  evaluate,
  finetune,
  fingerprint,
  judge_file,
  model_card,
  progress,
)
from tract_jax.text import tokenizer as tokenizer_lib

CARD_FILE = 'README.md'
_KIND = 'export'


@dataclasses.dataclass(frozen=True)
class ExportRun:
  """One export.

  Attributes:
    folder: export/<method> under the workdir.
    method: a row of the table.
    seed: whose stage is exported.
    num_rows: training rows of each of the method's stages.
    prompt: one of them, for its ending.
    results: of report/metrics.json, of this method and seed.
    fields: the facts that make the weights what they are.
  """

  folder: epath.Path
  method: str
  seed: int
  num_rows: Sequence[int]
  prompt: str
  results: card_results.Results
  fields: dict[str, Any]

  @property
  def label(self) -> str:
    """For progress."""
    return f'{self.method} seed {self.seed}: export'


def make_run(
  setup: build.Setup,
  workdir: epath.Path,
  method: str,
  stages: Sequence[finetune.StageRun],
  examples: Sequence[types.Example],
) -> ExportRun:
  """What there is to export of a trained method.

  Args:
    setup: of the run.
    workdir: of the run.
    method: a row of the table.
    stages: its stages, finished, of one seed.
    examples: what it was trained on.

  Returns:
    The export.

  Raises:
    types.InputError: a method that trains nothing, or a damaged report.
  """
  if not stages:
    raise types.InputError(
      f'config.methods: {method!r} trains nothing, so it has no export'
    )
  results = [manifest.read_results(stage.folder) for stage in stages]
  seed = stages[-1].seed
  return ExportRun(
    folder=workdir / 'export' / method,
    method=method,
    seed=seed,
    num_rows=[result['num_rows'] for result in results],
    prompt=examples[0].prompt,
    results=evaluate.read_results(workdir, method, seed),
    fields=fingerprint.model_fields(setup)
    | fingerprint.export_fields(setup.config, method)
    | {'params': results[-1]['params_digest']},
  )


def is_done(run: ExportRun) -> bool:
  """Whether the export is finished, by its manifest.

  Raises:
    types.InputError: the folder holds another export, or something that is
      none; or a file is lost or cut.
  """
  if manifest.matches(run.folder, _KIND, run.fields):
    _check_files(run.folder)
    return True
  begun = manifest.read_manifest(run.folder) is not None
  if not begun and not manifest.is_untouched(run.folder):
    raise types.InputError(
      f'{run.folder}: is not empty, and no export; move it elsewhere'
    )
  return False


def export(setup: build.Setup, run: ExportRun, trained: types.PyTree) -> None:
  """Writes the weights and all that goes with them, but the model card.

  Args:
    setup: of the run.
    run: what to export.
    trained: the trained leaves of the stage.

  Raises:
    types.InputError: an adapter on a base that is itself base and adapter.
  """
  sources = setup.model.sources
  as_adapter = setup.config.export.format == 'adapter'
  if as_adapter and sources and sources.adapter:
    raise types.InputError(
      f"config.export.format: 'adapter' cannot stand on {sources.name}, which "
      "is itself an adapter on a base; use 'merged'"
    )
  manifest.write_manifest(run.folder, _KIND, run.fields, finished=False)
  with disk.writing(run.folder):
    # What an earlier attempt was stopped amid.
    for path in run.folder.glob('.*.tmp'):
      path.unlink()
    if as_adapter:
      _write_adapter(setup, run, trained)
    else:
      _write_merged(setup, run, trained)
    with tempfile.TemporaryDirectory() as scratch:
      local = pathlib.Path(scratch)
      setup.tokenizer.save(local)
      judge_file.write(local, judge_file.from_run(setup.config, run.method))
      for path in sorted(local.iterdir()):
        text = path.read_text(encoding='utf-8')
        manifest.write_text_atomic(run.folder / path.name, text)
  files = {
    path.name: path.stat().length
    for path in sorted(run.folder.iterdir())
    if path.name not in (manifest.MANIFEST, CARD_FILE)
  }
  manifest.write_manifest(run.folder, _KIND, run.fields, {'bytes': files})
  progress.say(f'{run.label}: {run.folder}')


def write_card(setup: build.Setup, run: ExportRun) -> bool:
  """Writes the model card, where it does not say what it should already.

  Args:
    setup: of the run.
    run: a finished export.

  Returns:
    Whether it was written.
  """
  path = run.folder / CARD_FILE
  text = model_card.model_card(_card_facts(setup, run))
  if path.exists() and path.read_bytes() == text.encode('utf-8'):
    return False
  manifest.write_text_atomic(path, text)
  return True


def _check_files(folder: epath.Path) -> None:
  """Refuses a finished export with a file that is lost or cut."""
  problems = []
  for name, wanted in manifest.read_results(folder).get('bytes', {}).items():
    path = folder / name
    found = path.stat().length if path.exists() else 'none'
    if found != wanted:
      problems.append(f'{path}: {wanted} bytes were written, {found} are there')
  if problems:
    problems.append(f'{folder}: delete it to export again')
    raise types.InputError('\n'.join(problems))


def lora_config(setup: build.Setup) -> lora.LoraConfig:
  """The adapters that a run trains."""
  model = setup.config.model
  return lora.LoraConfig(
    model.lora_rank, model.lora_alpha, tuple(model.lora_targets)
  )


def _write_adapter(setup, run, trained) -> None:
  name, revision = _base_reference(setup)
  peft_adapter.write_adapter(
    run.folder, trained, lora_config(setup), name, revision
  )


def _write_merged(setup, run, trained) -> None:
  """Weights, config.json and generation_config.json."""
  config, sources = setup.config, setup.model.sources
  dtype = config.export.dtype or config.model.dtype
  params = base_weights.trained_weights(
    setup.model, trained, lora_config(setup), dtype
  )
  hf_export.write_weights(
    run.folder,
    params,
    dtype=dtype,
    max_shard_bytes=config.export.max_shard_bytes,
  )
  hf = setup.tokenizer.hf
  ends = dict.fromkeys((setup.tokenizer.eos_id, hf.eos_token_id))
  hf_export.write_config(
    run.folder,
    setup.model.config,
    dtype=dtype,
    tokens=hf_export.TokenIds(
      bos=hf.bos_token_id,
      eos=tuple(token for token in ends if token is not None),
      pad=hf.pad_token_id,
    ),
    base_config=_base_json(sources, 'config.json'),
    base_generation=_base_json(sources, 'generation_config.json'),
  )


def _base_json(sources, name: str) -> dict[str, Any] | None:
  """A JSON file of the seed model's folder; None where it has none."""
  if sources is None or not (sources.folder / name).exists():
    return None
  return json_file.read(sources.folder / name)


def _base_reference(setup: build.Setup) -> tuple[str, str]:
  """The seed model's name and, of a hub model, its commit.

  A local folder is named by its whole path: an adapter is used from elsewhere.
  """
  sources = setup.model.sources
  if sources is None:
    return '', ''
  name, commit = sources.base.reference
  is_local = sources.base.weights == epath.Path(sources.base.folder)
  return (
    (name, commit)
    if commit or not is_local
    else (
      str(sources.base.folder.absolute()),
      '',
    )
  )


def _card_facts(setup: build.Setup, run: ExportRun) -> model_card.CardFacts:
  """What the model card says, gathered from the run."""
  config, method = setup.config, setup.methods[run.method]
  scores = setup.cot_scores if method.with_cot else setup.bare_scores
  base_model_name, base_revision = _base_reference(setup)
  sources = setup.model.sources
  licence = config.export.base_licence
  if sources and not licence:
    licence = model_card.base_licence(sources.folder)
  return model_card.CardFacts(
    title=f'{run.method} judge',
    method=run.method,
    predictor=method.predictor,
    with_cot=method.with_cot,
    base_model=base_model_name,
    base_revision=base_revision,
    base_licence=licence,
    data_licence=config.export.data_licence,
    as_adapter=config.export.format == 'adapter',
    lora_rank=config.model.lora_rank,
    quantization=setup.model.quantization,
    has_chat_template=bool(setup.tokenizer.hf.chat_template),
    date=tokenizer_lib.DATE_STRING if setup.tokenizer.names_date else '',
    system_prompt=setup.tokenizer.system_prompt,
    has_system_turn=setup.tokenizer.has_system_turn,
    prompt_ending=run.prompt.rpartition('\n')[2],
    marker=config.score.marker,
    scores=setup.grid.values,
    score_ids=scores.ids,
    prefix_ids=scores.prefix_ids,
    temperature=config.sampling.temperature,
    top_k=config.sampling.top_k,
    top_p=config.sampling.top_p,
    repetition_penalty=config.sampling.repetition_penalty,
    max_new_tokens=config.sampling.max_new_tokens,
    stages=tuple(
      model_card.StageFacts(
        objective=stage.objective,
        cot_source=stage.cot_source,
        start=stage.start,
        num_rows=num_rows,
        num_epochs=config.train.num_epochs,
        batch_size=config.train.batch_size,
        learning_rate=config.train.lr,
      )
      for stage, num_rows in zip(method.stages, run.num_rows, strict=True)
    ),
    seed=run.seed,
    results=run.results,
  )
