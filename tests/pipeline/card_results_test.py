"""The figures of a model card: preference pairs, which have no scores."""

from tract_jax.pipeline import card_results

ROW = {
  'method': 'tract',
  'predictor': 'rail',
  'num_cots': 1,
  'benchmark': 'reward_bench',
  'seed': 3,
}
UNSCORED = ROW | {'rmse': None, 'reason': 'rmse: no scores'}
ALL_PAIRS = ROW | {
  'kind': 'overall',
  'subset': None,
  'num_pairs': 2985,
  'num_ties': 7,
  'num_invalid': 2,
  'accuracy': 0.7484,
  'accuracy_ci': [0.73, 0.765],
  'reason': None,
}
SECTION = ALL_PAIRS | {
  'kind': 'section',
  'subset': 'Chat Hard',
  'num_pairs': 2,
  'accuracy': None,
  'reason': '2 pairs, below 3',
}
REPORT = {
  'rows': [UNSCORED],
  'calibration': [ROW],
  'pairwise': [
    ALL_PAIRS,
    SECTION,
    ALL_PAIRS | {'kind': 'subset', 'subset': 'hep-go'},
    ALL_PAIRS | {'method': 'ce'},
    ALL_PAIRS | {'seed': 0},
  ],
}


def test_pairs_take_the_place_of_rows_without_scores():
  found = card_results.of_report(REPORT, 'tract', 3)
  assert found == card_results.Results([], [], [], [ALL_PAIRS, SECTION])


def test_a_benchmark_of_pairs_with_scores_has_both():
  scored = ROW | {'rmse': 0.5}
  found = card_results.of_report(REPORT | {'rows': [scored]}, 'tract', 3)
  assert found == card_results.Results([scored], [], [ROW], found.pairs)
  assert found.pairs == [ALL_PAIRS, SECTION]


def test_accuracies_stand_in_a_table():
  text = card_results.markdown(card_results.of_report(REPORT, 'tract', 3))
  assert 'Nothing was measured' not in text
  *_, all_pairs, section = text.splitlines()
  assert [cell.strip() for cell in all_pairs.split('|')[1:-1]] == [
    *('rail', '1', r'reward\_bench', 'all pairs', '2985', '7', '2'),
    '.748 (.730, .765)',
  ]
  assert [cell.strip() for cell in section.split('|')[4:-1]] == [
    *('Chat Hard', '2', '7', '2', 'none (2 pairs, below 3)'),
  ]
