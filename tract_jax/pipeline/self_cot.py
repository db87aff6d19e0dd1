"""Samples the self-CoTs that stage 2 is trained on, in one stream.

For every training x some s ~ p_s(. | x) (TRACT, arXiv:2503.04381, section 3.2,
has one): the model's own score is thrown away, nothing is filtered, and the
rater's score stays. A finished chunk is never sampled again.

A chunk has examples of similar prompt length, which are decoded faster
together. Its examples depend on the data alone, so hosts may take any chunks,
in any order, and wait for nobody.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath
import ml_collections
import numpy as np

from tract_jax import types
from tract_jax.data import encoding, llama_factory, self_cot
from tract_jax.evaluation import self_cots
from tract_jax.pipeline import (
  build,
  fit_prompts,
  hosts,
  interruption,
  progress,
  sample,
  shown_text,
)
from tract_jax.pipeline import methods as methods_lib

PURPOSE = 'self_cot'
# Beside the chunks; for PyTorch users.
LLAMA_FACTORY = 'llama_factory'


def sample_self_cots(
  sampler: sample.Sampler,
  params: Callable[[], types.PyTree],
  splits: Mapping[str, Sequence[types.Example]],
  folder: epath.Path,
  provenance: dict[str, Any],
  seed: int,
  label: str,
  process_index: int = 0,
  process_count: int = 1,
  together: Callable[[str, Callable[[], None]], None] = hosts.at_once,
) -> None:
  """Writes a host's part of the self-CoT dataset, where it is not there yet.

  The dataset is finished where all chunks are found there.

  Args:
    sampler: of the run.
    params: gives the stage-1 model; called only if a chunk is missing.
    splits: {"train" and "validation": examples}; in the dataset they stand one
      behind the other.
    folder: of the dataset.
    provenance: what it is made from.
    seed: of the run.
    label: for progress.
    process_index, process_count: this host does each process_count-th chunk,
      from process_index on.
    together: (label, finish) calls `finish` when this host's part is done, at
      once or when those of others are, too.

  Raises:
    types.InputError: the folder holds a dataset of other provenance.
    loop.Interrupted: stopped; the same call goes on.
  """
  setup = sampler.setup
  examples = [example for rows in splits.values() for example in rows]
  num_chunks = -(-len(examples) // setup.config.sampling.chunk_size)
  with self_cot.SelfCotWriter(folder, provenance, num_chunks) as writer:
    missing = writer.missing_chunks()
    own = [c for c in missing if c % process_count == process_index]
    if own:
      progress.say(f'{label}: {len(own)} of {num_chunks} chunks to do')
      lines = _sample(sampler, params(), examples, writer, own, seed, label)
      if process_index == 0:
        lines.write(folder, num_chunks - len(writer.missing_chunks()))

    def finish() -> None:
      if not self_cot.read_summary(folder) and not writer.missing_chunks():
        writer.finish(
          setup.tokenizer.decode,
          lambda samples: _finish(setup, splits, samples, folder, label),
        )

    together(label, finish)


def plan_chunks(lengths: Sequence[int], size: int) -> list[list[int]]:
  """Divides examples into chunks of similar prompt length.

  Args:
    lengths: tokens of each example's prompt.
    size: examples of a chunk; the last one may have fewer.

  Returns:
    Indices of each chunk's examples, by length; ties by index.
  """
  order = np.argsort(np.asarray(lengths), kind='stable').tolist()
  return [order[i : i + size] for i in range(0, len(order), size)]


def read_counts(
  config: ml_collections.ConfigDict,
  folder_of: Callable[[str, int], epath.Path],
) -> list[self_cots.SelfCotCounts]:
  """Counts of the run's finished self-CoT datasets, for the report.

  Args:
    config: of the run.
    folder_of: (method whose dataset it is, seed) -> its folder.

  Returns:
    One for each dataset, by method and seed.
  """
  owners = {
    methods_lib.self_cot_owner(name)
    for name in config.methods
    if methods_lib.uses_self_cots(name)
  }
  found = []
  for owner in sorted(owners):
    for seed in sorted(config.seeds):
      summary = self_cot.read_summary(folder_of(owner, seed))
      if summary is not None:
        found.append(
          self_cots.SelfCotCounts(
            method=owner,
            seed=seed,
            num_examples=summary['num_examples'],
            num_samples=summary['num_samples'],
            finish_reasons=summary['finish_reasons'],
            num_retries=summary['num_retries'],
            num_unusable=summary['num_unusable'],
            num_without_usable=len(summary['without_usable']),
          )
        )
  return found


def _sample(sampler, params, examples, writer, own, seed, label):
  """Writes the chunks `own`, each as soon as it is whole."""
  config = sampler.setup.config
  prompt_ids = sampler.setup.tokenizer.prompt_ids
  chunks = plan_chunks(
    [len(prompt_ids(e.prompt)) for e in examples], config.sampling.chunk_size
  )
  lines = progress.SampleProgress(label)
  interruption.stop_if(sampler.should_stop, f'before self-CoT chunk {own[0]}')
  stream = sampler.chunks(
    params,
    [[examples[row] for row in chunks[c]] for c in own],
    config.sampling.num_self_cots,
    seed=seed,
    purpose=PURPOSE,
    on_progress=lines.on_progress,
    # What stage 2 could not train on for its length is cut off here.
    max_length=config.data.max_length,
    num_examples=len(examples),
  )
  for number, of_rows in stream:
    chunk = own[number]
    rows = np.repeat(chunks[chunk], config.sampling.num_self_cots).tolist()
    writer.write(chunk, [s for row in of_rows for s in row], rows)
    lines.on_rows(len(chunks[chunk]))
  return lines


def _finish(setup: build.Setup, splits, samples, folder, label) -> None:
  """Writes the copy for LLaMA-Factory, and a line of the dataset's counts."""
  by_id: dict[str, list[types.CotSample]] = {}
  for s in samples:
    by_id.setdefault(s.example_id, []).append(s)
  copies = {
    f'self_cots_{name}': [
      _to_llama_factory(setup, example, s)
      for example in examples
      for s in by_id[example.example_id]
      if s.is_usable
    ]
    for name, examples in splits.items()
  }
  llama_factory.write(folder / LLAMA_FACTORY, copies)
  counts = self_cot.counts(samples)
  without = counts['without_usable']
  progress.say(
    shown_text.wrapped(
      f'{label}: {counts["num_samples"]} self-CoTs of '
      f'{counts["num_examples"]} rows, ended by '
      f'{progress.endings(counts["finish_reasons"])}; {counts["num_retries"]} '
      f'tried again, {counts["num_unusable"]} unusable; {len(without)} rows '
      f'without a usable one{fit_prompts.shown(without)}'
    )
  )


def _to_llama_factory(
  setup: build.Setup, example: types.Example, cot: types.CotSample
) -> llama_factory.Row:
  """The texts of the tokens that stage 2 is trained on."""
  score = encoding.score_ids(example, setup.cot_scores)
  system, instruction = setup.tokenizer.turns(example.prompt)
  output = setup.tokenizer.decode([*cot.tokens.tolist(), *score])
  return llama_factory.Row(instruction, output, system)
