"""The model card: true to the facts, and not to be broken by any of them."""

import dataclasses

import huggingface_hub
import pytest

from tract_jax.pipeline import card_results, model_card

STAGES = (
  model_card.StageFacts('cot_raft', 'annotator', 'seed', 950, 2, 8, 1e-5),
  model_card.StageFacts('cot_raft', 'self', 'previous', 940, 2, 8, 2e-5),
)
ROW = {
  'method': 'tract',
  'predictor': 'rail',
  'num_cots': 1,
  'benchmark': 'mt_bench',
  'seed': 3,
  'num_examples': 320,
  'num_invalid': 4,
  'pearson': 0.5551,
  'pearson_ci': [0.48, 0.62],
  'spearman': 0.54,
  'spearman_ci': [0.47, 0.61],
  'kendall': None,
  'kendall_ci': None,
  'rmse': 0.875,
  'rmse_ci': None,
  'reason': 'kendall: constant scores',
}
CONSTANT = ROW | {
  'method': 'constant',
  'predictor': 'training_mean',
  'seed': 0,
  'pearson': None,
  'rmse': 1.25,
  'rmse_ci': [1.125, 1.375],
  'reason': 'pearson: constant predictions',
}
CALIBRATION = {
  'method': 'tract',
  'num_cots': 1,
  'benchmark': 'mt_bench',
  'seed': 3,
  'num_rows': 316,
  'crps': 0.4375,
  'calibration_error': 0.125,
  'conformal_level': 0.9,
  'conformal_half_width': 1.75,
  'conformal_coverage': 0.905,
  'reason': None,
}


def results_of(*rows):
  return card_results.Results(rows)


FACTS = model_card.CardFacts(
  title='judge',
  method='tract',
  predictor='rail',
  with_cot=True,
  base_model='org/Base-7B',
  base_revision='0123abc',
  base_licence='apache-2.0',
  data_licence='',
  as_adapter=False,
  lora_rank=8,
  quantization='',
  has_chat_template=True,
  date='',
  system_prompt='Be fair.',
  has_system_turn=True,
  prompt_ending='###Feedback: ',
  marker='So the overall score is',
  scores=(1.0, 2.5, 4.0),
  score_ids=(7, 8, 9),
  prefix_ids=(5,),
  temperature=1.0,
  top_k=0,
  top_p=0.9,
  repetition_penalty=1.03,
  max_new_tokens=1024,
  stages=STAGES,
  seed=3,
  results=results_of(ROW),
)
# Ends strings, headers, cells, code and comments, and is markup itself.
HOSTILE = (
  '"\n---\nlicense: mit\n\n# x | y ```\n    z</code><script>alert(1)</script>'
  "![i](http://a/b) \\ ' {{m}} \x00\x7f\u2028\u0085 #"
)


def card_text(**changes):
  return model_card.model_card(dataclasses.replace(FACTS, **changes))


def header_of(text):
  return huggingface_hub.ModelCard(text).data.to_dict()


def test_header():
  assert header_of(card_text()) == {
    'library_name': 'transformers',
    'pipeline_tag': 'text-generation',
    'base_model': 'org/Base-7B',
    'base_model_relation': 'finetune',
    'license': 'apache-2.0',
    'tags': ['tract_jax', 'llm-as-a-judge', 'regression', 'tract'],
  }
  header = header_of(
    card_text(
      as_adapter=True,
      # A folder, although a model of the hub may have that name.
      base_model='data/base',
      base_revision='',
      base_licence='Our Licence 2.0',
    )
  )
  assert header['library_name'] == 'peft'
  assert header['license'] == 'other'
  assert header['license_name'] == 'our-licence-2.0'
  assert 'base_model' not in header


def test_says_how_it_was_trained():
  text = card_text()
  for words in (
    'Made from org/Base-7B at 0123abc, by the method tract',
    'Scores: 1, 2.5, 4.',
    '    "###Feedback: "',
    '    "So the overall score is"',
    '- Stage 1: cross-entropy and squared error of the expected score'
    " (CoT-RAFT) on 950 rows with the annotator's chains of thought, from the"
    ' base model; 2 epochs, batches of 8, learning rate 1e-05.',
    '- Stage 2: ',
    'on 940 rows with chains of thought that the stage-1 model sampled, from'
    ' the stage before',
    '- Adapters (LoRA) of rank 8 on weights not quantised.',
    '- Seed 3.',
    '- Base model: apache-2.0',
    '- Training data: not stated',
  ):
    assert words in text, words
  assert 'on weights quantised to nf4.' in card_text(quantization='nf4')
  assert 'All weights were trained.' in card_text(lora_rank=0)
  untrained = card_text(stages=())
  assert '- None: the base model as it is.' in untrained
  assert 'LoRA' not in untrained
  text = card_text(base_model='', base_licence='')
  assert 'from random weights, by' in text.lower()
  assert '- Base model: none\n' in text
  without_cot = card_text(with_cot=False)
  assert 'So the overall score is' not in without_cot
  assert 'generate' not in without_cot


def table_of(text):
  lines = [x for x in text.splitlines() if x.startswith('| ')]
  return [[c.strip() for c in x.strip('|').split(' | ')] for x in lines]


def test_results_are_the_rows_of_the_report():
  header, _, line = table_of(card_text())
  assert dict(zip(header, line, strict=True)) == {
    'method': 'tract',
    'predictor': 'rail',
    'CoTs': '1',
    'benchmark': r'mt\_bench',
    'seed': '3',
    'rows': '320',
    'invalid': '4',
    "Pearson's r": '.555 (.480, .620)',
    'Spearman': '.540 (.470, .610)',
    'Kendall': 'none (constant scores)',
    'RMSE': '.875',
  }


def test_references_and_calibration_of_the_report():
  other = {'benchmark': 'other'}
  report = {
    'rows': [ROW, ROW | {'method': 'ce'}, ROW | {'seed': 0}],
    'references': [CONSTANT, CONSTANT | other],
    'calibration': [CALIBRATION, CALIBRATION | {'method': 'ce'}],
  }
  found = card_results.of_report(report, 'tract', 3)
  assert found == card_results.Results([ROW], [CONSTANT], [CALIBRATION], [])
  text = card_text(results=found)
  _, _, _, header, _, line, calibration_header, _, calibration_line = table_of(
    text
  )
  assert header == [
    *('reference', 'benchmark', 'rows', "Pearson's r", 'Spearman', 'Kendall'),
    'RMSE',
  ]
  assert line[:4] == [
    *('constant', r'mt\_bench', '320', 'none (constant predictions)'),
  ]
  assert line[-1] == '1.250 (1.125, 1.375)'
  assert dict(zip(calibration_header, calibration_line, strict=True)) == {
    'CoTs': '1',
    'benchmark': r'mt\_bench',
    'rows': '316',
    'CRPS': '.438',
    'calibration error': '.125',
    'conformal': '1.750',
    'holds': '.905',
  }
  assert "to hold the rater's score in 90 % of them" in text
  few = CALIBRATION | {'crps': None, 'reason': '2 rows, below 3'}
  text = card_text(results=card_results.Results([ROW], [], [few]))
  assert table_of(text)[-1][3] == 'none (2 rows, below 3)'


def test_missing_figures_say_why():
  empty = dict.fromkeys(('pearson', 'pearson_ci', 'spearman', 'kendall'))
  reason = 'pearson, spearman: constant predictions; kendall: no rows'
  *_, line = table_of(
    card_text(results=results_of(ROW | empty | {'reason': reason}))
  )
  assert line[7:10] == [
    'none (constant predictions)',
    'none (constant predictions)',
    'none (no rows)',
  ]
  *_, line = table_of(
    card_text(results=results_of(ROW | empty | {'reason': None}))
  )
  assert line[7] == 'none (reason not stated)'
  text = card_text(results=results_of())
  assert 'Nothing was measured.' in text and not table_of(text)


TEXT_FIELDS = [
  field.name for field in dataclasses.fields(FACTS) if field.type is str
]


@pytest.mark.parametrize('name', TEXT_FIELDS)
def test_no_text_breaks_header_table_or_code(name):
  changes = {name: HOSTILE}
  if name == 'base_model':
    changes['base_revision'] = HOSTILE
  text = card_text(**changes, results=results_of(ROW | {'benchmark': HOSTILE}))
  header = header_of(text)
  expected = header_of(card_text())
  if name == 'method':
    assert len(header['tags']) == 4
  elif name == 'base_licence':
    assert header['license'] == 'other'
    assert set(header['license_name']) <= set('abcdefghijklmnopqrstuvwxyz-1.')
  elif name != 'base_model':
    assert header == expected
  assert text.count('\n---\n') == 1
  assert {len(line) for line in table_of(text)} == {11}
  body = text.split('\n---\n')[1]
  for line in body.splitlines():
    assert line.isprintable()
    if line.startswith('    '):  # Code, in which nothing is markup.
      continue
    assert '<script' not in line.replace('\\<', '')
    assert '![i]' not in line and '```' not in line


def test_every_field_is_read():
  base = card_text()
  changes = {
    'with_cot': False,
    'as_adapter': True,
    'has_chat_template': False,
    'has_system_turn': False,
    'lora_rank': 4,
    'scores': (1.0, 2.0, 3.0),
    'score_ids': (1, 2, 3),
    'prefix_ids': (),
    'temperature': 0.5,
    'top_k': 5,
    'top_p': 0.5,
    'repetition_penalty': 1.5,
    'max_new_tokens': 7,
    'stages': STAGES[:1],
    'seed': 9,
    'results': results_of(),
    **dict.fromkeys(TEXT_FIELDS, 'other'),
  }
  assert changes.keys() == {f.name for f in dataclasses.fields(FACTS)}
  for name, value in changes.items():
    assert card_text(**{name: value}) != base, name
  stage = {'objective': 'ce', 'cot_source': 'mixed', 'start': 'previous'}
  for field in dataclasses.fields(model_card.StageFacts):
    value = stage.get(field.name, 77)
    changed = dataclasses.replace(STAGES[0], **{field.name: value})
    assert card_text(stages=(changed,)) != card_text(stages=STAGES[:1])


@pytest.mark.parametrize(
  ('files', 'licence'),
  [
    ({}, ''),
    ({'README.md': '---\nlicense: apache-2.0\n---\n# x\n'}, 'apache-2.0'),
    ({'README.md': '---\nlicense:\n- mit\n- bsd\n---\n'}, 'mit, bsd'),
    (
      {'README.md': '---\nlicense: other\nlicense_name: our-own\n---\n'},
      'our-own',
    ),
    ({'README.md': '---\nlicense: other\n---\n'}, 'other'),
    ({'README.md': '# no header\nlicense: mit\n'}, ''),
    ({'README.md': '---\nlicense: {a: 1}\n---\n'}, ''),
    ({'README.md': '---\nlicense: [\n---\n', 'LICENSE': 'MIT\n'}, 'MIT'),
    ({'README.md': '---\n- a\n---\n', 'LICENSE': 'MIT\n'}, 'MIT'),
    ({'README.md': '---\nlicense: !!python/name:os.x\n---\n'}, ''),
    ({'LICENSE': '\n\n  Apache License \nVersion 2.0\n'}, 'Apache License'),
    ({'LICENSE.txt': 'A\x1b[31mB\n'}, 'A\ufffd[31mB'),
    ({'LICENSE': ''}, ''),
    ({'LICENSE': 'x' * 1000}, 'x' * 100),
  ],
)
def test_licence_of_a_folder(tmp_path, files, licence):
  for name, text in files.items():
    (tmp_path / name).write_text(text)
  assert model_card.base_licence(tmp_path) == licence
