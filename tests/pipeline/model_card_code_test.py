"""The model card's code does what the judge does."""

import dataclasses
import runpy
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import small_models
from tests.pipeline import model_card_test
from tests.text import small_tokenizers
from tract_jax.models import hf_export, transformer
from tract_jax.pipeline import model_card

FACTS = model_card_test.FACTS
STRICT = 'Be "strict",\n\u3000it\'s {x} ``` \\n.'


@pytest.mark.parametrize(
  ('with_cot', 'predictor'),
  [(False, 'rail'), (True, 'rail'), (False, 'rail_normalized')],
)
def test_its_code_gives_the_expected_score(tmp_path, with_cot, predictor):
  torch = pytest.importorskip('torch')
  tokenizer = small_tokenizers.byte_level()
  config = dataclasses.replace(
    small_models.CONFIG,
    vocab_size=tokenizer.vocab_size,
    max_position_embeddings=256,
    initializer_range=0.3,
  )
  fns = transformer.make_model(config)
  params = jax.jit(fns.init)(jax.random.key(0))
  hf_export.write_weights(tmp_path, params, dtype=jnp.float32)
  end = hf_export.TokenIds(bos=1, eos=(tokenizer.eos_id,), pad=0)
  hf_export.write_config(tmp_path, config, dtype=jnp.float32, tokens=end)
  tokenizer.hf.save_pretrained(tmp_path)
  text = model_card_test.card_text(
    with_cot=with_cot,
    predictor=predictor,
    max_new_tokens=5,
    system_prompt='',
  )
  code = text[text.index('    import torch') : text.index('## Training')]
  code = textwrap.dedent(code).replace('path/of/this/folder', str(tmp_path))
  script = tmp_path / 'use.py'
  script.write_text(code)
  prompt = 'It is good.'
  torch.manual_seed(0)
  done = runpy.run_path(str(script), init_globals={'prompt': prompt})

  prompt_ids = tokenizer.prompt_ids(prompt)
  ids = done['ids'][0].numpy()
  np.testing.assert_array_equal(ids[: len(prompt_ids)], prompt_ids)
  assert (len(ids) > len(prompt_ids)) == with_cot
  inputs = jnp.asarray([*ids, *FACTS.prefix_ids])[None]
  positions = jnp.arange(inputs.shape[1])[None]
  hidden = fns.hidden(params, inputs, positions, jnp.ones_like(inputs))
  probs = jax.nn.softmax(fns.project(params, hidden[0, -1]))
  probs = probs[jnp.asarray(FACTS.score_ids)]
  if predictor == 'rail_normalized':
    probs /= probs.sum()
  expected = probs @ jnp.asarray(FACTS.scores)
  assert done['score'] == pytest.approx(float(expected), abs=1e-5)


def code_of(**changes):
  text = model_card.model_card(dataclasses.replace(FACTS, **changes))
  _, _, code = text.partition('    import torch, transformers\n')
  return textwrap.dedent(code.partition('\n\n#')[0])


def test_code_of_a_greedy_judge_does_not_sample():
  assert 'do_sample=True, temperature=1, top_k=0,' in code_of()
  greedy = code_of(temperature=0.0)
  assert 'do_sample=False, repetition_penalty=1.03' in greedy
  assert 'temperature' not in greedy and 'top_p' not in greedy


def test_code_gives_the_day_that_a_template_writes():
  assert "return_tensors='pt')" in code_of(has_chat_template=True)
  dated = code_of(has_chat_template=True, date='26 Jul 2024')
  assert "return_tensors='pt', date_string='26 Jul 2024')" in dated


@pytest.mark.parametrize(
  ('has_template', 'has_turn'), [(False, False), (True, False), (True, True)]
)
def test_code_says_the_system_prompt(tmp_path, has_template, has_turn):
  said = []

  class Tokenizer:
    def __call__(self, prompt, **unused):
      said.append(prompt)

    def apply_chat_template(self, turns, **unused):
      said.extend(turn['content'] for turn in turns)

  code = code_of(
    system_prompt=STRICT,
    has_chat_template=has_template,
    has_system_turn=has_turn,
  )
  begin = min(
    code.index(name) for name in ('prompt = ', 'turns = ') if name in code
  )
  path = tmp_path / 'code.py'
  path.write_text(code[begin : code.index('ids = ')])
  runpy.run_path(str(path), {'tokenizer': Tokenizer(), 'prompt': 'Judge.'})
  wanted = [STRICT, 'Judge.']
  assert said == (wanted if has_turn else ['\n\n'.join(wanted)])
