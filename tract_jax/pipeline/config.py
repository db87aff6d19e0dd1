"""The configuration: every key, with its default and its meaning.

A file in configs/ sets what differs from the defaults here, and the command
line may override each key. Unknown keys are reported all at once, a line each,
before anything is allocated; `config_check` does the same for bad values.
"""

from collections.abc import Mapping
import importlib.util
import pathlib
from typing import Any

import ml_collections

from tract_jax import types
from tract_jax.models import lora
from tract_jax.pipeline import config_values

_RUN: dict[str, Any] = {
  # Names the default workdir, runs/<name>; empty: the file's name.
  'name': '',
  # What a run covers: rows of the results table, and their predictors.
  'methods': ('tract',),
  'predictors': ('decode', 'rail', 'rail_normalized'),
  # CoTs per benchmark row; predictions average over them.
  'num_cots': 1,
  # One whole run each: initial values, order of data, sampling.
  'seeds': (0,),
  # How pure functions are mapped over devices: "jit" over the mesh, or "pmap",
  # which copies the parameters to each device (fsdp and tensor must be 1).
  'mapping': 'jit',
}
_MODEL: dict[str, Any] = {
  # A Hugging Face folder (local or gs://), a hub id with the commit in
  # `revision`, a PEFT adapter's folder, or the name of a prepared seed model.
  # Empty: a model from scratch, of the numbers below.
  'path': '',
  'revision': '',
  # A PEFT adapter to merge into the weights as they are read.
  'adapter': '',
  'dtype': 'float32',  # To compute in; what is trained is float32.
  # Rank of the trained adapters; 0: full fine-tuning.
  'lora_rank': 8,
  'lora_alpha': 16.0,
  # The linear layers that have them.
  'lora_targets': lora.TARGETS,
  # How the linear layers' frozen weights are held: "" (as they are), "int8"
  # or "nf4". Needs lora_rank.
  'base_quantization': '',
  # What backward recomputes: "none" (nothing), "dots" (all but results of
  # projections and attention), "heads" (all but what attention takes and
  # gives, and MLPs' inputs), "inputs" (all but attention's results and MLPs'
  # inputs), "attention" (all but attention's results), "full" (every layer).
  'remat': 'heads',
  # How training and prompts attend: "splash" (the kernel for TPUs), "plain",
  # or "auto" (the kernel where the devices are TPUs).
  'attention': 'auto',
  # The model from scratch.
  'hidden_size': 64,
  'intermediate_size': 128,
  'num_layers': 2,
  'num_heads': 4,
  'num_kv_heads': 2,
  'rope_theta': 10_000.0,
  'initializer_range': 0.02,
}
_SCORE: dict[str, Any] = {
  # Any ascending numbers: 0 to 10, halves, -4 to 4.
  'grid': (1.0, 2.0, 3.0, 4.0, 5.0),
  # Text of a score, a format of Python.
  'format': '{:g}',
  # The fixed words between a CoT and its score.
  'marker': 'So the overall score is',
}
_DATA: dict[str, Any] = {
  # "files", or "synthetic" for the made-up judging world.
  'source': 'files',
  # A file, or one of a prepared data set, as "sentiment/train.jsonl"; so, too,
  # the paths of benchmarks.
  'train_path': '',
  # "name=path,name=path"; empty: rows held out of train_path.
  'benchmarks': '',
  'held_out_fraction': 0.2,
  # Never trained on, in no stage; their loss is reported.
  'validation_fraction': 0.05,
  'split_seed': 0,
  # "ours=column,ours=column": names of ours (data/row_kinds.FIELDS) for columns
  # of the files, such as score=human_score; of training rows and benchmarks.
  'fields': '',
  # A text file with {instruction} {response} {reference_answer} {rubric} {best}
  # {scores}, rendered in place of formatted prompts; `template` is its text,
  # which an exported judge carries. Empty: text/prompt_template.DEFAULT for
  # rows without a formatted prompt.
  'template_path': '',
  'template': '',
  # Whether reference answers stand in prompts.
  'use_reference': True,
  # The system turn of every prompt; put before the user's text where the model
  # has no such turn.
  'system_prompt': '',
  # Negative control: rows swap their scores, in training and in each benchmark,
  # so that no method can predict them.
  'shuffle_scores': False,
  # 0: all rows.
  'max_train_examples': 0,
  'max_eval_examples': 0,
  # Tokens of prompt and target together, and what is done with a row
  # that has more: "error", "drop", or "truncate": the middle of its prompt is
  # cut, so that there is room for its own CoT and for one of max_new_tokens.
  'max_length': 3072,
  'too_long': 'error',
  # Processes that encode many rows, at most; 0: as many as cores. What they
  # made is kept for the next run under ~/.cache/tract_jax.
  'encode_processes': 0,
  'encode_cache': True,
  # Rows are padded to a multiple of it; 128 suits TPUs.
  'length_multiple': 128,
  # Fills each row of max_length tokens (rounded up to length_multiple) with
  # several examples, by a plan over all of them. The batch sizes below then
  # count rows, not examples: an update sees more examples, and an epoch has
  # fewer updates.
  'packing': False,
  # Rows of the synthetic world, and the seed that draws them.
  'synthetic_train': 4000,
  'synthetic_test': 400,
  'synthetic_seed': 0,
}
_PRETRAIN: dict[str, Any] = {
  # Rows of the synthetic world, apart from all others, from which a model from
  # scratch is first made the seed model of every method, by cross-entropy on
  # the score without CoT; 0: the seed model is as it was drawn.
  'num_rows': 0,
  'lr': 3e-3,
  'num_epochs': 3,
}
_TRAIN: dict[str, Any] = {
  'lr': 1e-5,
  'warmup_fraction': 0.1,
  'b1': 0.9,
  'b2': 0.999,
  'eps': 1e-8,
  'weight_decay': 0.0,
  'clip_norm': 1.0,
  'num_epochs': 2,
  # Rows of an update, and of one pass through the model. 0: all at once.
  'batch_size': 8,
  'micro_batch_size': 0,
  # lambda: weight of CoT-RAFT's score loss beside the cross-entropy. With
  # candidates, each CoT-RAFT stage is trained with every one of them and the
  # one with the smallest validation RMSE goes on.
  'lambda_value': 1.0,
  'lambda_candidates': (),
  # What lambda multiplies: "mean" (the mean score loss per example), or
  # "release" (what the authors' code makes of it, lambda * accumulation /
  # device batch, with the release's numbers of rows and micro-batches below).
  'score_scale': 'mean',
  'release_device_batch': 8,
  'release_accumulation': 1,
  # RAFT's and CoT-RAFT's score loss: "squared_error" of the expected score
  # (the paper), "crps", "wasserstein" or "distribution_ce".
  'score_loss': 'squared_error',
  # The distribution it is taken under: "full" (softmax over the vocabulary,
  # the paper) or "grid" (renormalised on the score grid).
  'expectation': 'full',
  # Weight of -log(mass on the grid) per score; 0 as in the paper.
  'off_grid_penalty': 0.0,
  # What a row with several ratings is trained towards: "score" (the rating
  # that its CoT was written for), "mean", or "ratings" (their distribution).
  'score_target': 'score',
  # Whether CoT-RAFT's cross-entropy has the score token in it (paper's
  # formula) or not (the authors' release). CE always has it.
  'ce_includes_score': False,
  # Target positions per row whose logits exist at a time.
  'logit_chunk': 256,
  # In updates.
  'log_every': 20,
  'checkpoint_every': 100,
  'max_checkpoints': 2,
}
_SAMPLING: dict[str, Any] = {
  'temperature': 1.0,
  'top_k': 0,
  'top_p': 0.9,
  'repetition_penalty': 1.03,
  'max_new_tokens': 1024,
  # How often a CoT that came to no end (the length limit, an end token without
  # marker words, logits that are not finite) is sampled again with another key.
  'max_retries': 0,
  # What becomes of it then: "complete" appends the marker words, as the
  # release does; "drop" gives it up, counted and listed.
  'unfinished': 'complete',
  # CoTs for each row of the self-CoT dataset; each is a training row.
  'num_self_cots': 1,
  # How the linear layers' weights, and cached keys and values, are held while
  # CoTs are written and their scores read: "" (as they are) or "int8".
  'weights': '',
  'kv_cache': '',
  # CoTs decoded together, each with its share of the cache, in tiles of 16; 0:
  # as many as fit on the chips, 16 on a CPU. And examples of one chunk on disk.
  'slots': 0,
  'chunk_size': 64,
  # Tokens per slot between two looks at the text.
  'steps_per_call': 8,
  # Prompts are read in batches of about so many tokens.
  'prefill_tokens': 1024,
  # As `mesh`, of one host's devices, since each host samples by itself; 0: the
  # size that `mesh` says. Decoding is fastest where no weights are gathered:
  # with "tensor" for large models.
  'mesh': {'data': 0, 'fsdp': 0, 'tensor': 0},
}
_EVALUATION: dict[str, Any] = {
  'num_resamples': 2000,
  # Of the predictor "tempered"; 1 makes it "rail_normalized".
  'tempered_temperature': 1.0,
  # How often the reported interval is to hold the rater's score.
  'conformal_level': 0.9,
  # Of preference pairs: what a tie counts, "half", "wrong" (nothing, as with
  # RewardBench) or "skip" (it is passed over), and the largest difference in
  # points of the score that is one.
  'ties': 'half',
  'tie_margin': 0.0,
  # Training inputs on which the gap between annotator's and own CoTs is
  # measured, for each stage; 0: not at all.
  'gap_examples': 256,
  # CoTs of each method and benchmark, drawn at random, whose words are held
  # against their rubrics'; 0: none.
  'overlap_cots': 2000,
  # Which systems' differences the report has: "SYSTEM - SYSTEM, ...", each a
  # METHOD, METHOD/PREDICTOR or METHOD/PREDICTOR/COTS, or "all" for every two.
  # Empty: the first of tract, cot_raft and raft minus every other method.
  'differences': '',
  # Other systems' predictions, to stand beside ours: "SYSTEM/BENCHMARK=path,
  # SYSTEM/BENCHMARK=path", each the release's logits.json or rows as ours.
  'others': '',
}
_EXPORT: dict[str, Any] = {
  # "merged": a Hugging Face folder; "adapter": a PEFT adapter.
  'format': 'merged',
  # Of the merged weights; empty: model.dtype.
  'dtype': '',
  # The most bytes of one safetensors file.
  'max_shard_bytes': 5_000_000_000,
  # Said in the model card where they are known; the base model's is read from
  # its folder where that says it.
  'base_licence': '',
  'data_licence': '',
}
_WANDB: dict[str, Any] = {
  # The project of Weights & Biases that every stage is a run of; empty: it is
  # not used. Needs the extra: pip install -e '.[wandb]'.
  'project': '',
  # The user or team that it belongs to; empty: who is logged in.
  'entity': '',
  # "online", "offline" (kept beside the metrics, for `wandb sync`), or as
  # WANDB_MODE says.
  'mode': '',
}
_MESH: dict[str, Any] = {
  # Devices of all hosts along each axis, to train; -1: what is left. "data"
  # copies parameters (also across slices), "fsdp" and "tensor" split them.
  'data': 1,
  'fsdp': -1,
  'tensor': 1,
}
_HOSTS: dict[str, Any] = {
  # Joined hosts: how long one waits for the others to start, after how long it
  # says so, and after how long without a sign a host is given up, and the run.
  'timeout_secs': 300,
  'notice_secs': 30,
  'heartbeat_secs': 100,
}
_PLAN: dict[str, Any] = {
  # Of --task=plan: the TPU slice to compile for, such as v5e:4x4, v5p:2x2x4 or
  # v6e:4x4.
  'topology': '',
  # Rows of a pass through the model for each chip; 0: train.micro_batch_size,
  # or train.batch_size, over the chips.
  'rows_per_chip': 0,
  # What a row is assumed to have: tokens of the prompt and of a sampled CoT.
  'prompt_tokens': 1200,
  'cot_tokens': 256,
}


# What a key was called before.
_RENAMED = {'sampling.rows': 'sampling.slots'}


def default_config() -> ml_collections.ConfigDict:
  """All keys with their defaults; the numbers are the paper's recipe.

  Returns:
    A locked ConfigDict.
  """
  sections = {
    'model': _MODEL,
    'score': _SCORE,
    'data': _DATA,
    'pretrain': _PRETRAIN,
    'train': _TRAIN,
    'sampling': _SAMPLING,
    'evaluation': _EVALUATION,
    'export': _EXPORT,
    'wandb': _WANDB,
    'mesh': _MESH,
    'hosts': _HOSTS,
    'plan': _PLAN,
  }
  return ml_collections.ConfigDict({**_RUN, **sections}).lock()


def merge(overrides: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """The defaults with the values of a config file.

  Args:
    overrides: what the file's get_config() gave.

  Returns:
    A locked ConfigDict with every key.

  Raises:
    types.InputError: no mapping; a key that does not exist, with the nearest
      one, or a value of another type; all of them, a line each.
  """
  if not isinstance(overrides, config_values.MAPPING):
    raise types.InputError(
      f'config: is {type(overrides).__name__}, not a dictionary of keys'
    )
  config = default_config()
  problems = []
  try:
    for key, value in config_values.leaves(overrides):
      try:
        problems += config_values.set_value(config, key, value)
      except KeyError:
        problems.append(unknown_key(key))
  except RecursionError as error:
    raise types.InputError('config: is nested too deeply') from error
  if problems:
    raise types.InputError('\n'.join(problems))
  return config


def read_config(name: str) -> ml_collections.ConfigDict:
  """Reads a config file.

  Args:
    name: path of a Python file with get_config(); "path:argument" calls
      get_config(argument).

  Returns:
    Its values over the defaults; `name` is the file's stem if it gives none.

  Raises:
    types.InputError: no such file, no get_config, or unknown keys.
  """
  file, colon, argument = name.partition(':')
  path = pathlib.Path(file)
  if not path.is_file():
    raise types.InputError(f'--config={name}: no such file')
  spec = importlib.util.spec_from_file_location('experiment', path)
  if spec is None or spec.loader is None:
    raise types.InputError(f'--config={name}: not a Python file')
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    made = module.get_config(*([argument] if colon else []))
  except Exception as error:  # The file is the user's program.
    reason = f'{type(error).__name__}: {error}'
    raise types.InputError(f'--config={name}: {reason}') from error
  config = merge(made)
  config.name = config.name or path.stem
  return config


def keys(config: Mapping[str, Any]) -> set[str]:
  """Dotted names of all values."""
  return {name for name, _ in config_values.leaves(config)}


def get(config: Mapping[str, Any], key: str) -> Any:
  """The value of a dotted key that exists."""
  return config_values.get(config, key)


def unknown_key(key: str) -> str:
  """The line for a key that does not exist, with the nearest that does.

  Args:
    key: dotted, without the leading "config.".

  Returns:
    One line of text.
  """
  if new := _RENAMED.get(key):
    return f'config.{key}: is called config.{new} now'
  near = config_values.nearest(key, keys(default_config()))
  shown = config_values.shown_key(key)
  return f'config.{shown}: no such key; the nearest is config.{near}'
