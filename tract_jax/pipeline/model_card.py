"""The model card of an exported judge, README.md of the Hugging Face hub.

In: facts about a judge. Out: Markdown with a YAML header, pure text. Names and
data may hold anything: in the header they stand as JSON strings, in the text
with all markup escaped, in code as JSON strings on lines of their own.
"""

from collections.abc import Iterator
import dataclasses
import json
import os
import pathlib
import re
import textwrap
from typing import Any

import huggingface_hub

from tract_jax.evaluation import tables
from tract_jax.pipeline import card_results

_PAPER = 'https://arxiv.org/abs/2503.04381'
# Identifiers that the hub knows; any other licence is "other" with a name.
_HUB_LICENCES = frozenset((
  'afl-3.0', 'agpl-3.0', 'apache-2.0', 'bigcode-openrail-m',
  'bigscience-bloom-rail-1.0', 'bigscience-openrail-m', 'bsd-2-clause',
  'bsd-3-clause', 'cc-by-2.0', 'cc-by-3.0', 'cc-by-4.0', 'cc-by-nc-2.0',
  'cc-by-nc-3.0', 'cc-by-nc-4.0', 'cc-by-nc-nd-4.0', 'cc-by-nc-sa-4.0',
  'cc-by-nd-4.0', 'cc-by-sa-3.0', 'cc-by-sa-4.0', 'cc0-1.0',
  'creativeml-openrail-m', 'gemma', 'gpl-2.0', 'gpl-3.0', 'lgpl-2.1',
  'lgpl-3.0', 'llama2', 'llama3', 'llama3.1', 'llama3.2', 'llama3.3', 'llama4',
  'mit', 'mpl-2.0', 'openrail', 'unlicense',
))  # fmt: skip
_LICENCE_FILES = ('LICENSE', 'LICENSE.txt', 'LICENSE.md', 'LICENCE')
_MAX_CARD_BYTES = 2**20
_MAX_LICENCE_CHARS = 100

_OBJECTIVES = {
  'ce': 'cross-entropy',
  'raft': 'squared error of the expected score (RAFT)',
  'cot_raft': (
    'cross-entropy and squared error of the expected score (CoT-RAFT)'
  ),
}
_COT_SOURCES = {
  'none': 'no chain of thought',
  'annotator': "the annotator's chains of thought",
  'self': 'chains of thought that the stage-1 model sampled',
  'mixed': "the annotator's chains of thought and sampled ones",
}
_STARTS = {'seed': 'the base model', 'previous': 'the stage before'}
_USE_WITH_JUDGE = """With tract_jax, which samples, and reads the scores:

    from tract_jax.judge import Judge

    judge = Judge.load('path/of/this/folder')
    (row,) = judge.score([{'prompt': prompt}])
    row.prediction, row.cots"""


@dataclasses.dataclass(frozen=True)
class StageFacts:
  """How one stage was trained.

  Attributes:
    objective, cot_source, start: of methods.Stage.
    num_rows: training rows.
    num_epochs: passes over them.
    batch_size: rows of an update.
    learning_rate: the highest.
  """

  objective: str
  cot_source: str
  start: str
  num_rows: int
  num_epochs: float
  batch_size: int
  learning_rate: float


@dataclasses.dataclass(frozen=True)
class CardFacts:
  """What a card says.

  Attributes:
    title: name of the judge.
    method: of methods.METHODS.
    predictor: its own.
    with_cot: whether it judges after a chain of thought.
    base_model: hub id, folder or name; "" for a model from scratch.
    base_revision: commit of a hub model; "" where there is none.
    base_licence, data_licence: "" where unknown.
    as_adapter: whether the folder holds a PEFT adapter, not whole weights.
    lora_rank: of the trained adapters; 0 for full fine-tuning.
    quantization: of the frozen weights in training: "", "int8" or "nf4".
    has_chat_template: whether prompts are turns of one.
    date: that the template writes; "" where it writes none.
    system_prompt: before each prompt; "" for none.
    has_system_turn: whether it stands in a turn of its own.
    prompt_ending: the last line of a prompt.
    marker: the fixed words before the score.
    scores: [Y] the grid's numbers.
    score_ids: [Y] the token of each score; () where one has several.
    prefix_ids: tokens between the marker words (or the prompt) and the score.
    temperature, top_k, top_p, repetition_penalty, max_new_tokens: of sampled
      chains of thought.
    stages: in order; none for a model that was not trained.
    seed: of the run.
    results: of report/metrics.json.
  """

  title: str
  method: str
  predictor: str
  with_cot: bool
  base_model: str
  base_revision: str
  base_licence: str
  data_licence: str
  as_adapter: bool
  lora_rank: int
  quantization: str
  has_chat_template: bool
  date: str
  system_prompt: str
  has_system_turn: bool
  prompt_ending: str
  marker: str
  scores: tuple[float, ...]
  score_ids: tuple[int, ...]
  prefix_ids: tuple[int, ...]
  temperature: float
  top_k: int
  top_p: float
  repetition_penalty: float
  max_new_tokens: int
  stages: tuple[StageFacts, ...]
  seed: int
  results: card_results.Results


def model_card(card: CardFacts) -> str:
  """The text of README.md.

  Args:
    card: the facts.

  Returns:
    YAML header and Markdown; the same for the same facts.
  """
  base = _known(card.base_licence) if card.base_model else 'none'
  sections = [
    _front_matter(card),
    f'# {tables.escaped(card.title)}',
    _what_it_is(card),
    '## Use',
    _USE_WITH_JUDGE,
    _use_with_transformers(card),
    '## Training',
    '\n'.join(f'- {line}' for line in _training(card)),
    '## Results',
    card_results.markdown(card.results),
    '## Licences',
    f'- Base model: {base}\n- Training data: {_known(card.data_licence)}',
    '## Limits',
    '- It knows no score off its grid, and prompts worded otherwise than its '
    'training rows are out of its domain.\n'
    '- A chain of thought reads well whether or not the score is right, and '
    'another sample may end in another score: average several where it '
    'matters.\n'
    '- It is trained to agree with the raters of its data, in their errors, '
    'too.\n'
    '- Between two judges, a gap in correlation below .03 is no finding.',
  ]
  return '\n\n'.join(sections) + '\n'


def base_licence(folder: str | os.PathLike[str]) -> str:
  """The licence that a model's folder states.

  Args:
    folder: local.

  Returns:
    `license` (or where that is "other" `license_name`) in the header of
    README.md; else the first line of a LICENSE file; else "".
  """
  folder = pathlib.Path(folder)
  stated = _header_licence(folder / 'README.md')
  for name in _LICENCE_FILES:
    path = folder / name
    if not stated and path.is_file():
      with path.open('rb') as file:
        text = file.read(_MAX_CARD_BYTES).decode('utf-8', 'replace')
      stated = next((x.strip() for x in text.splitlines() if x.strip()), '')
  return tables.plain(stated)[:_MAX_LICENCE_CHARS]


def _header_licence(path: pathlib.Path) -> str:
  if not path.is_file() or path.stat().st_size > _MAX_CARD_BYTES:
    return ''
  try:
    header = huggingface_hub.metadata_load(path) or {}
    stated = header.get('license')
  except Exception:  # Damaged YAML raises whatever its reader does.
    return ''
  if stated == 'other':
    stated = header.get('license_name') or stated
  if isinstance(stated, list):
    stated = ', '.join(x for x in stated if isinstance(x, str))
  return stated if isinstance(stated, str) else ''


def _front_matter(card: CardFacts) -> str:
  """The header; every scalar is a JSON string, which YAML reads as it is."""
  fields: dict[str, Any] = {
    'library_name': 'peft' if card.as_adapter else 'transformers',
    'pipeline_tag': 'text-generation',
  }
  # A folder may be named like a model of the hub; only that has a commit.
  if card.base_revision:
    fields['base_model'] = card.base_model
    relation = 'adapter' if card.as_adapter else 'finetune'
    fields['base_model_relation'] = relation
  if card.base_licence in _HUB_LICENCES:
    fields['license'] = card.base_licence
  elif card.base_licence:
    fields['license'] = 'other'
    slug = re.sub(r'[^a-z0-9.]+', '-', card.base_licence.lower()).strip('-')
    fields['license_name'] = slug or 'other'
  fields['tags'] = ['tract_jax', 'llm-as-a-judge', 'regression', card.method]
  lines = [f'{name}: {_json(value)}' for name, value in fields.items()]
  return '\n'.join(['---', *lines, '---'])


def _what_it_is(card: CardFacts) -> str:
  if card.with_cot:
    how = (
      'It writes a chain of thought, ends it with fixed words, and the next '
      "token's distribution over the score grid gives the prediction."
    )
  else:
    how = (
      "The first token's distribution over the score grid gives the prediction."
    )
  paragraphs = [
    'A judge of texts: it reads an instruction, a response to it and a rubric, '
    f'and gives a score. {"An adapter for" if card.as_adapter else "Made from"}'
    f' {_base(card)}, by the method {tables.escaped(card.method)} of tract_jax '
    f'([TRACT]({_PAPER})). {how} The predictor is '
    f'{tables.escaped(card.predictor)}.',
    f'Scores: {", ".join(f"{score:g}" for score in card.scores)}.',
    'A prompt ends in (as JSON)',
    f'    {_json(card.prompt_ending)}',
  ]
  if card.with_cot:
    paragraphs += ['and the score stands after', f'    {_json(card.marker)}']
  return '\n\n'.join(paragraphs)


def _use_with_transformers(card: CardFacts) -> str:
  """Code that gives the expected score."""
  if not card.score_ids:
    return (
      'A score takes several tokens here: with transformers alone, its '
      'probability is the product over them and the end token after them.'
    )
  if card.with_cot:
    drawn = (
      f'do_sample=True, temperature={card.temperature:g}, top_k={card.top_k},\n'
      f'  top_p={card.top_p:g}'
      if card.temperature
      else 'do_sample=False'
    )
    tokens = (
      'ids = model.generate(\n'
      f'  **inputs, {drawn}, repetition_penalty={card.repetition_penalty:g},'
      f' max_new_tokens={card.max_new_tokens},\n'
      f'  tokenizer=tokenizer, stop_strings=[{card.marker!r}])\n'
    )
  else:
    tokens = "ids = inputs['input_ids']\n"
  is_on_grid = card.predictor == 'rail_normalized'
  on_grid = 'probs = probs / probs.sum()\n' if is_on_grid else ''
  code = (
    'import torch, transformers\n\n'
    "folder = 'path/of/this/folder'\n"
    'tokenizer = transformers.AutoTokenizer.from_pretrained(folder)\n'
    'model = transformers.AutoModelForCausalLM.from_pretrained(folder)\n'
    f'{_inputs(card)}{tokens}'
    f'prefix = torch.tensor([{list(card.prefix_ids)}], dtype=torch.long)\n'
    'with torch.no_grad():\n'
    '  logits = model(torch.cat([ids, prefix], dim=1)).logits[0, -1]\n'
    f'probs = logits.float().softmax(-1)[{list(card.score_ids)}]\n'
    f'{on_grid}'
    f'score = float(probs @ torch.tensor({list(map(float, card.scores))}))'
  )
  needs = ' and peft' if card.as_adapter else ''
  after = ' after one chain of thought that comes to its end'
  head = (
    f'With transformers{needs}, the expected score'
    f'{after if card.with_cot else ""}:'
  )
  return f'{head}\n\n{textwrap.indent(code, "    ")}'


def _inputs(card: CardFacts) -> str:
  """Code that makes tokens of a prompt."""
  system = repr(card.system_prompt)
  lead, turns = '', "[{'role': 'user', 'content': prompt}]"
  if card.system_prompt and card.has_system_turn:
    turns = f"[{{'role': 'system', 'content': {system}}},\n         {turns[1:]}"
  elif card.system_prompt:
    lead = f"prompt = {system} + '\\n\\n' + prompt\n"
  if not card.has_chat_template:
    return f"{lead}inputs = tokenizer(prompt, return_tensors='pt')\n"
  date = f', date_string={card.date!r}' if card.date else ''
  return (
    f'{lead}turns = {turns}\n'
    'inputs = tokenizer.apply_chat_template(\n'
    '  turns, add_generation_prompt=True, return_dict=True,'
    f" return_tensors='pt'{date})\n"
  )


def _training(card: CardFacts) -> Iterator[str]:
  """The lines of the section."""
  if not card.stages:
    yield 'None: the base model as it is.'
  for number, stage in enumerate(card.stages, 1):
    yield (
      f'Stage {number}: {_OBJECTIVES[stage.objective]} on {stage.num_rows} '
      f'rows with {_COT_SOURCES[stage.cot_source]}, from '
      f'{_STARTS[stage.start]}; {stage.num_epochs:g} epochs, batches of '
      f'{stage.batch_size}, learning rate {stage.learning_rate:g}.'
    )
  if card.stages and card.lora_rank:
    held = tables.escaped(card.quantization)
    base = f'quantised to {held}' if held else 'not quantised'
    yield f'Adapters (LoRA) of rank {card.lora_rank} on weights {base}.'
  elif card.stages:
    yield 'All weights were trained.'
  yield f'Seed {card.seed}.'


def _base(card: CardFacts) -> str:
  if not card.base_model:
    return 'random weights'
  at = f' at {card.base_revision}' if card.base_revision else ''
  return tables.escaped(f'{card.base_model}{at}')


def _known(licence: str) -> str:
  return tables.escaped(licence) or card_results.NOT_STATED


def _json(value: Any) -> str:
  """JSON of a text or a list of them, on one line of printable text."""
  return tables.plain(json.dumps(value, ensure_ascii=False))
