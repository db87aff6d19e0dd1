"""A run that is killed in each of its phases ends as if it never had been."""

import shutil
import signal

import pytest

from tests.faults import harness


@pytest.fixture
def copied(undisturbed, tmp_path):
  return shutil.copytree(undisturbed, tmp_path / 'run')


def kill_in(phase, workdir) -> None:
  """Starts the run and kills it once the phase is under way."""
  begun, over = (workdir / path for path in harness.PHASES[phase])
  process = harness.start(workdir)
  harness.wait_for(begun, process)
  process.send_signal(signal.SIGKILL)
  harness.finish(process, -signal.SIGKILL)
  assert not over.exists(), f'{phase} was over before the kill'


@pytest.mark.slow
def test_killed_in_each_phase_ends_bit_identical(undisturbed, tmp_path):
  before = {}
  for phase in harness.PHASES:
    kill_in(phase, tmp_path)
    harness.read_all(tmp_path)
    after = harness.pieces(tmp_path)
    assert not harness.redone(before, after)
    before = after
  output = harness.finish(harness.start(tmp_path))
  assert 'cot_raft stage 1 seed 0: done before' in output
  assert not harness.redone(before, harness.pieces(tmp_path))
  assert harness.results(tmp_path) == harness.results(undisturbed)


@pytest.mark.slow
def test_the_same_command_again_does_nothing(copied):
  def stamps():
    return {
      path: path.stat().st_mtime_ns
      for path in copied.rglob('*')
      if path.is_file() and path.name != '.lock'
    }

  before = stamps()
  assert 'nothing to do' in harness.finish(harness.start(copied))
  assert stamps() == before


@pytest.mark.slow
def test_finished_stage_is_not_passed_off_as_another(copied):
  settings = {**harness.TINY, 'train.lr': 0.5}
  output = harness.finish(harness.start(copied, settings=settings), 2)
  assert 'train.lr: recorded 0.003, expected 0.5' in output


@pytest.mark.slow
def test_sigterm_saves_and_says_how_to_go_on(undisturbed, tmp_path):
  process = harness.start(tmp_path)
  harness.wait_for(tmp_path / harness.PHASES['stage 1'][0], process)
  process.send_signal(signal.SIGTERM)
  assert 'the same command continues' in harness.finish(process, 75)
  process = harness.start(tmp_path, environment={'JAX_LOG_COMPILES': '1'})
  output = harness.finish(process)
  assert 'continues from step' in output
  assert harness.results(tmp_path) == harness.results(undisturbed)
  # A step for each of two stages; all CoTs by one engine.
  for function, number in (('step', 2), ('prefill', 1), ('decode', 1)):
    assert output.count(f'Compiling jit({function}) ') == number, function
