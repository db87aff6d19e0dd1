"""A judge in Python: logits of transformers, and predictions for rows alone."""

import copy
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import small_models
from tests.text import small_tokenizers
from tract_jax import judge as judge_lib
from tract_jax import types
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import judge_file, methods

GRID = (1.0, 2.0, 3.0, 4.0, 5.0)
ROWS = [
  {'prompt': 'It is good.'},
  {'prompt': 'The response is not complete.', 'score': 2},
  {'instruction': 'the user asks the assistant: "quoted"  \n', 'output': 'It'},
  {'prompt': 'It is clear.', 'score': None, 'id_of_another_kind': 3},
]
# Short CoTs, and scores that are not all but certain.
FAST = {
  'sampling.max_new_tokens': 6,
  'sampling.slots': 4,
  'sampling.steps_per_call': 8,
  'data.max_length': 96,
  'data.length_multiple': 96,
}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return small_models.save_judge(tmp_path_factory.mktemp('judge'))


@pytest.fixture(scope='module')
def judge(folder):
  return judge_lib.Judge.load(folder, settings=FAST)


@pytest.fixture(scope='module')
def predictions(judge):
  return judge.score(ROWS, num_cots=2)


def problem_of(call, *args, **kwargs) -> str:
  with pytest.raises(types.InputError) as error:
    call(*args, **kwargs)
  return str(error.value)


def assert_same(found, expected):
  """The same CoTs; the same numbers but for the rounding of other shapes."""
  assert found.cots == expected.cots
  assert found.finish_reasons == expected.finish_reasons
  np.testing.assert_allclose(
    found.distributions, expected.distributions, atol=1e-6
  )
  assert found.prediction == pytest.approx(expected.prediction, abs=1e-5)


def test_logits_are_those_of_transformers_without_a_tokenizer(tmp_path, capsys):
  torch = pytest.importorskip('torch')
  model = small_models.save_llama(tmp_path, 64)
  ids = np.random.default_rng(0).integers(0, 64, (3, 17))
  with torch.no_grad():
    expected = model(torch.tensor(ids)).logits.numpy()
  judge = judge_lib.Judge.load(str(tmp_path))
  logits = judge.logits(ids)
  assert (logits.shape, logits.dtype) == ((3, 17, 64), np.float32)
  np.testing.assert_allclose(logits, expected, atol=1e-5)
  np.testing.assert_array_equal(judge.logits(ids.tolist()), logits)
  assert judge.model_config.num_layers == 2
  assert 'there is no tokenizer' in capsys.readouterr().out
  line = problem_of(judge.score, ROWS)
  assert 'has logits only' in line
  assert 'there is no tokenizer' in line


@pytest.mark.parametrize(
  ('token_ids', 'message'),
  [
    ([[1, -1]], '-1 is not in 0..'),
    ([[1, 10_000]], '10000 is not in 0..'),
    ([[1, 2], [3]], 'token_ids'),
    ([], r'shape (0,) is not [B, L]'),
    ([[]], r'shape (1, 0) is not [B, L]'),
    ([1, 2], r'shape (2,) is not [B, L]'),
    ([[1.0, 2.0]], 'float64 are no integers'),
    ([[True, False]], 'bool are no integers'),
    ([['a']], 'are no integers'),
    ([[10**400]], 'are no integers'),
    ([[1] * 129], '129 tokens'),
  ],
)
def test_bad_token_ids(judge, token_ids, message):
  assert message in problem_of(judge.logits, token_ids)


def test_predictions_are_expected_scores_of_distributions(judge, predictions):
  assert judge.grid.values == GRID
  assert [p.score for p in predictions] == [None, 2.0, None, None]
  assert [p.example_id for p in predictions] == ['1', '2', '3', '4']
  for one in predictions:
    probs = np.array(one.distributions)
    assert probs.shape == (2, 5)
    assert (probs > 0).all()
    assert (probs.sum(axis=1) <= 1).all()
    assert one.prediction == pytest.approx((probs @ GRID).mean(), abs=1e-5)
    assert len(one.cots) == len(one.finish_reasons) == len(one.decoded) == 2
    assert one.cots[0] != one.cots[1]
    assert one.invalid_reason is None


def test_other_predictors_read_the_same_distributions(judge, predictions):
  (one,) = judge.score(ROWS[:1], num_cots=2, predictor='rail_normalized')
  probs = np.array(predictions[0].distributions)
  expected = (probs @ GRID / probs.sum(axis=1)).mean()
  assert one.prediction == pytest.approx(expected, abs=1e-4)
  assert expected != pytest.approx(predictions[0].prediction, abs=1e-2)


def test_a_judge_predicts_by_its_own_predictor(judge):
  method = dataclasses.replace(judge.method, predictor='median')
  other = copy.copy(judge)
  other.method = method
  (own,) = other.score(ROWS[:1], num_cots=2)
  (asked,) = judge.score(ROWS[:1], num_cots=2, predictor='median')
  (rail,) = judge.score(ROWS[:1], num_cots=2)
  assert own == asked
  assert rail.prediction != own.prediction


def test_a_row_has_the_same_cots_whatever_is_beside_it(judge, predictions):
  moved = judge.score([ROWS[3], ROWS[0], ROWS[3]], num_cots=2)
  assert_same(moved[0], predictions[3])
  assert_same(moved[1], predictions[0])
  assert_same(moved[2], predictions[3])
  (alone,) = judge.score([ROWS[2]])
  assert alone.cots == predictions[2].cots[:1]
  # A rating changes nothing in how a row is judged.
  (rated,) = judge.score([{**ROWS[0], 'score': 4}], num_cots=2)
  assert_same(rated, predictions[0])
  assert rated.score == 4.0


def test_ids_and_seeds_draw_other_cots(judge, predictions):
  again, other = (judge.score(ROWS[:1], seed=s)[0] for s in (0, 1))
  assert again.cots == predictions[0].cots[:1]
  assert other.cots != again.cots
  one, two = judge.score([{**ROWS[0], 'id': i} for i in 'ab'])
  assert (one.example_id, two.example_id) == ('a', 'b')
  assert one.cots != two.cots


def test_rows_of_a_file_are_those_of_a_list(judge, predictions, tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text('\n'.join(map(json.dumps, ROWS)))
  for found, expected in zip(judge.score(path, 2), predictions, strict=True):
    assert_same(found, expected)


def test_without_cot_the_score_follows_the_prompt(folder, judge, tmp_path):
  copy = shutil.copytree(folder, tmp_path / 'bare')
  content = judge_file.JudgeFile(
    method='raft',
    predictor='rail',
    with_cot=False,
    grid=(1.0, 5.0),
    score_format='{:g}',
    marker='So it is',
    temperature=1.0,
    top_k=0,
    top_p=0.9,
    repetition_penalty=1.0,
    max_new_tokens=16,
    max_length=64,
  )
  judge_file.write(copy, content)
  bare = judge_lib.Judge.load(copy)
  assert bare.grid.texts == ('1', '5')
  (one,) = bare.score(ROWS[:1])
  assert one.cots == ['']
  tokenizer = small_tokenizers.byte_level()
  ids = [
    *tokenizer.prompt_ids(ROWS[0]['prompt']),
    *(tokenizer.encode('1')[0][:-1]),
  ]
  logits = judge.logits([ids])[0, -1].astype(np.float64)
  probs = np.exp(logits) / np.exp(logits).sum()
  expected = [probs[tokenizer.encode(t)[0][-1]] for t in '15']
  np.testing.assert_allclose(one.distributions[0], expected, rtol=1e-4)
  assert 'this judge has no CoT' in problem_of(bare.score, ROWS, num_cots=2)


def test_adapter_folder_is_a_judge_by_its_own_file(folder, tmp_path):
  torch = pytest.importorskip('torch')
  peft = pytest.importorskip('peft')
  transformers = pytest.importorskip('transformers')
  model = peft.get_peft_model(
    transformers.AutoModelForCausalLM.from_pretrained(folder),
    peft.LoraConfig(
      r=4, target_modules=['q_proj', 'down_proj'], init_lora_weights=False
    ),
  ).eval()
  model.save_pretrained(tmp_path)
  own = config_lib.merge({'score.grid': (1.0, 5.0)})
  judge_file.write(tmp_path, judge_file.from_run(own, 'tract'))
  ids = [[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]]
  with torch.no_grad():
    expected = model(torch.tensor(ids)).logits.numpy()
  judge = judge_lib.Judge.load(tmp_path, settings=FAST)
  np.testing.assert_allclose(judge.logits(ids), expected, atol=1e-5)
  assert judge.grid.values == (1.0, 5.0)
  assert judge.method == methods.METHODS['tract']
  (row,) = judge.score(ROWS[:1])
  assert len(row.distributions[0]) == 2


def test_prompt_that_is_too_long_is_invalid_and_the_others_are_not(judge):
  long = {'prompt': 'good ' * 200}
  rows = judge.score([long, ROWS[0]])
  assert (rows[0].prediction, rows[0].invalid_reason) == (None, 'too_long')
  assert rows[0].distributions == [None]
  assert rows[1].prediction is not None


def test_prompt_that_is_too_long_is_cut_where_that_is_asked_for(folder, judge):
  long = {'prompt': ' '.join(['good'] * 60 + ['not'] * 60)}
  settings = {**FAST, 'data.too_long': 'truncate'}
  cutting = judge_lib.Judge.load(folder, settings=settings)
  assert judge.score([long])[0].invalid_reason == 'too_long'
  rows = cutting.score([long, ROWS[0]])
  assert [row.invalid_reason for row in rows] == [None, None]
  assert rows[1].cots == judge.score(ROWS[:1])[0].cots


@pytest.mark.parametrize(
  ('rows', 'message'),
  [
    ([], 'is empty'),
    (ROWS[0], 'is dict; give a list of rows'),
    (3, 'is int; give a list of rows'),
    ('none.jsonl', 'none.jsonl: no such file'),
    ([ROWS[0], {'text': 'a'}], 'rows: row 2 (id 2): its columns are text;'),
    ([{'prompt': 'p', 'score': 7}], 'score 7 is outside the grid 1..5'),
    ([{'prompt': ''}], 'its prompt is empty'),
    ([{'prompt': 'a \ufdd0'}], 'example 1: text with the noncharacter'),
    (['p'], 'is str, not an object'),
  ],
)
def test_bad_rows(judge, rows, message):
  assert message in problem_of(judge.score, rows)


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ({'num_cots': 0}, 'num_cots: 0 is not'),
    ({'num_cots': True}, 'num_cots: True is not'),
    ({'predictor': 'mean'}, "predictor: 'mean' is not one of decode"),
    ({'seed': -1}, 'seed: -1 is not'),
  ],
)
def test_bad_arguments(judge, argument, message):
  assert message in problem_of(judge.score, ROWS, **argument)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'sampling.max_tokens': 2}, 'nearest is config.sampling.max_new_tokens'),
    ({'sampling.top_p': 2.0}, 'config.sampling.top_p: 2.0 is not in (0, 1]'),
    ({'score.marker': 3}, 'config.score.marker: 3 is of type int'),
    ({'model.dtype': 'float32'}, "is the argument 'dtype' of Judge.load"),
    ({'seeds': (1,)}, "config.seeds: is the argument 'seed' of Judge.score"),
    ({'score.grid': ()}, 'score.grid: is empty'),
    (
      {'methods': ('zero_shot', 'released')},
      'config.methods: zero_shot, released: a Judge has one',
    ),
    ('score.grid', 'settings: is str; give a dictionary'),
  ],
)
def test_bad_settings(folder, settings, message):
  load = judge_lib.Judge.load
  assert message in problem_of(load, folder, settings=settings)


def test_dtype_is_a_name_or_a_dtype(folder, judge):
  exact = judge.logits([[1, 2, 3]])
  for dtype in (jnp.bfloat16, np.float32, 'bfloat16'):
    loaded = judge_lib.Judge.load(folder, None, dtype)
    kept = {leaf.dtype for leaf in jax.tree.leaves(loaded._params)}
    assert kept == {jnp.dtype(dtype)}
    found = loaded.logits([[1, 2, 3]])
    is_exact = np.array_equal(found, exact)
    assert found.dtype == np.float32
    assert is_exact == (dtype is np.float32)
    np.testing.assert_allclose(found, exact, atol=0.2)
  assert 'dtype: ' in problem_of(judge_lib.Judge.load, folder, None, object())


def test_load_names_what_is_missing(tmp_path):
  load = judge_lib.Judge.load
  assert 'path' in problem_of(load, '')
  assert 'none' in problem_of(load, tmp_path / 'none')
  assert 'float16' in problem_of(load, tmp_path, dtype='float16')


def test_scores_of_several_tokens(folder):
  settings = {'score.grid': (1.0, 10.0), 'sampling.max_new_tokens': 4}
  judge = judge_lib.Judge.load(folder, settings=settings)
  rows = [{'example_id': 'a', 'prompt': 'Rate it.', 'score': 10}]
  (row,) = judge.score(rows)
  (probs,) = row.distributions
  assert len(probs) == 2
  assert 0 < sum(probs) < 1
  assert row.prediction == pytest.approx(probs[0] + 10 * probs[1], rel=1e-5)


def test_prediction_is_plain_data(predictions):
  line = json.dumps(dataclasses.asdict(predictions[0]), allow_nan=False)
  assert types.Prediction(**json.loads(line)) == predictions[0]
