"""Samples the self-CoTs that stage 2 is trained on, chunk by chunk.

For every training x one s ~ p_s(. | x) (TRACT, arXiv:2503.04381, section 3.2):
the model's own score is thrown away, nothing is filtered, and the rater's score
stays. A finished chunk is never sampled again.
"""

from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from tract_jax import types
from tract_jax.data import self_cot
from tract_jax.pipeline import progress, sample
from tract_jax.training import loop

PURPOSE = 'self_cot'


def sample_self_cots(
  sampler: sample.Sampler,
  params: Callable[[], types.PyTree],
  examples: Sequence[types.Example],
  folder: epath.Path,
  provenance: dict[str, Any],
  seed: int,
  label: str,
  process_index: int = 0,
  process_count: int = 1,
) -> None:
  """Writes a host's part of the self-CoT dataset, where it is not there yet.

  Whoever finds all chunks there finishes the dataset.

  Args:
    sampler: of the run.
    params: gives the stage-1 model; called only if a chunk is missing.
    examples: rows to sample for, in the dataset's order.
    folder: of the dataset.
    provenance: what it is made from.
    seed: of the run.
    label: for progress.
    process_index, process_count: this host does chunks [index::count].

  Raises:
    types.InputError: the folder holds a dataset of other provenance.
    loop.Interrupted: stopped; the same call goes on.
  """
  setup = sampler.setup
  size = setup.config.sampling.chunk_size
  chunks = [examples[i : i + size] for i in range(0, len(examples), size)]
  with self_cot.SelfCotWriter(folder, provenance, len(chunks)) as writer:
    share = range(process_index, len(chunks), process_count)
    missing = sorted(set(share) & set(writer.missing_chunks()))
    if missing:
      progress.say(f'{label}: {len(missing)} of {len(chunks)} chunks to do')
      on_rows = progress.row_progress(
        label, sum(len(chunks[c]) for c in missing)
      )
      model = params()
    for chunk in missing:
      loop.stop_if(sampler.should_stop, f'before self-CoT chunk {chunk}')
      # What stage 2 could not train on for its length is cut off here.
      samples = sampler.cots(
        model,
        chunks[chunk],
        1,
        seed=seed,
        purpose=PURPOSE,
        max_length=setup.config.data.max_length,
      )
      rows = range(chunk * size, chunk * size + len(chunks[chunk]))
      writer.write(chunk, samples, rows)
      on_rows(len(samples), sample.num_tokens(samples))
    if (folder / self_cot.SUMMARY).exists() or writer.missing_chunks():
      return
    writer.finish(setup.tokenizer.decode)
  samples, _ = self_cot.read_self_cots(folder, provenance)
  progress.say(f'{label}: {len(samples)} self-CoTs, {sample.endings(samples)}')
