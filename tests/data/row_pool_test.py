import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.text import small_tokenizers
from tract_jax import types
from tract_jax.data import encoding, row_pool
from tract_jax.text import prompts, score_tokens

ROOT = pathlib.Path(__file__).parents[2]


def where(context, chunk):
  """What one chunk gives: runs in a process of the pool."""
  ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
  return os.getpid(), context, chunk, ignored


def slowly(context, chunk):
  """As `where`, in its own time."""
  time.sleep(0.02)
  return os.getpid()


def end(context, chunk):
  os._exit(1)


def test_small_work_stays_in_this_process(monkeypatch):
  monkeypatch.setattr(row_pool, 'CHARS_PER_PROCESS', 100)
  monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(8)))
  cases = [(0, 99, 1), (0, 399, 3), (0, 10_000, 8), (2, 399, 2), (1, 399, 1)]
  for configured, num_chars, expected in cases:
    assert row_pool.num_processes(configured, num_chars) == expected
  assert not row_pool.is_large(99)
  assert row_pool.is_large(100)
  found = list(row_pool.map_chunks(where, 'all', [1, 2], 1))
  assert [f[:3] for f in found] == [
    (os.getpid(), 'all', 1),
    (os.getpid(), 'all', 2),
  ]


def test_results_keep_the_order_and_processes_end():
  work = row_pool.map_chunks(where, {'a': 1}, list(range(40)), 2)
  found = list(work)
  assert [f[2] for f in found] == list(range(40))
  assert {f[1]['a'] for f in found} == {1}
  processes = {f[0] for f in found}
  assert os.getpid() not in processes
  # Ctrl-C, which a terminal sends to all, is their parent's business.
  assert {f[3] for f in found} == {True}
  for process in processes:
    with pytest.raises(ProcessLookupError):
      os.kill(process, 0)


def test_caller_that_stops_early_leaves_no_process():
  work = row_pool.map_chunks(where, None, list(range(1000)), 2)
  process = next(work)[0]
  work.close()
  with pytest.raises(ProcessLookupError):
    os.kill(process, 0)


def test_killed_process_is_told_in_a_line():
  with pytest.raises(types.InputError, match='one of 2 processes was killed'):
    list(row_pool.map_chunks(end, None, [1, 2, 3], 2))


_RUN = """
import signal, sys
from tests.data import row_pool_test
from tract_jax.data import row_pool

print('imported', file=sys.stderr, flush=True)
if __name__ == '__main__':
  # Whoever starts the tests may have it ignored.
  signal.signal(signal.SIGINT, signal.default_int_handler)
  work = row_pool.map_chunks(row_pool_test.slowly, None, list(range(5000)), 2)
  for done in work:
    print(done, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_run(tmp_path, number):
  script = tmp_path / 'run.py'
  script.write_text(_RUN)
  run = subprocess.Popen(
    [sys.executable, str(script)],
    env=os.environ | {'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  assert run.stdout is not None
  process = int(run.stdout.readline())
  # A terminal sends Ctrl-C to all processes of the group.
  send = os.killpg if number == signal.SIGINT else os.kill
  send(run.pid, number)
  _, errors = run.communicate(timeout=60)
  # By the run alone: its processes need nothing of the main module.
  assert errors.count('imported') == 1
  # One trace, of the run itself, and none of its processes.
  assert errors.count('KeyboardInterrupt') == (number == signal.SIGINT)
  for _ in range(100):
    try:
      os.kill(process, 0)
    except ProcessLookupError:
      return
    if _state(process) == 'Z':  # Nobody collects it, but it has ended.
      return
    time.sleep(0.1)
  pytest.fail('a process is left')


def _state(process):
  text = pathlib.Path(f'/proc/{process}/stat').read_text()
  return text.rpartition(')')[2].split()[0]


EXAMPLES = [
  types.Example(
    f'e{i}', f'question {i} </s>' * (1 + i % 7), 1.0 + i % 5, 'Good.'
  )
  for i in range(60)
]


def encode(examples, num_processes, **kwargs):
  tokenizer = small_tokenizers.byte_level()
  grid = prompts.make_score_grid([1, 2, 3, 4, 5])
  return encoding.encode_all(
    examples,
    tokenizer,
    score_tokens.find_score_tokens(tokenizer, grid, prompts.MARKER),
    **{'max_length': 60, 'too_long': 'drop', **kwargs},
    num_processes=num_processes,
  )


def test_processes_encode_the_same(monkeypatch):
  monkeypatch.setattr(row_pool, 'CHUNK_ROWS', 7)
  told = []
  (one, report), (two, other) = (
    encode(EXAMPLES, n, on_rows=lambda *done: told.append(done)) for n in (1, 2)
  )
  assert report == other
  assert report.dropped_ids and report.num_kept
  for name, array in vars(one).items():
    np.testing.assert_array_equal(array, getattr(two, name))
  assert told[:9] == told[9:]
  assert [n for n, _ in told] == 2 * [*[7] * 8, 4]


def test_processes_give_the_same_errors(monkeypatch):
  monkeypatch.setattr(row_pool, 'CHUNK_ROWS', 7)
  rows = [*EXAMPLES[:20], types.Example('bad', '\ufdd0', 1.0), *EXAMPLES[20:]]
  texts = []
  for num_processes in (1, 2):
    with pytest.raises(types.InputError) as error:
      encode(rows, num_processes, too_long='error', max_length=60)
    texts.append(str(error.value))
  assert texts[0] == texts[1]
  assert 'example bad: text with the noncharacter' in texts[0]
  assert 'more than data.max_length 60' in texts[0]


def test_what_progress_raises_ends_the_work(monkeypatch):
  monkeypatch.setattr(row_pool, 'CHUNK_ROWS', 7)

  def stop(rows, tokens):
    raise RuntimeError('stopped')

  with pytest.raises(RuntimeError, match='stopped'):
    encode(EXAMPLES, 2, on_rows=stop)
