"""launch/until_done.sh against a stand-in of gcloud: order and restarts."""

import shutil
import subprocess
import time

import pytest

from tests.launch import stand_ins

ARGUMENTS = ('--config=configs/mistral.py', '--workdir=gs://bucket/run')
COMMIT = '0123456789' * 4
BEGIN = ['describe', 'create', 'describe']
REQUEST = ['queued-resources', 'create']
SETUP = ['scp', 'setup']
CHECK = ['describe', 'describe slice']


@pytest.fixture
def gcloud(tmp_path):
  made = stand_ins.StandIns(tmp_path, 'gcloud', 'git', 'mkdir')
  made.env |= {'TPU_NAME': 'judge', 'ZONE': 'z', 'PROJECT': 'p', 'SPOT': '1'}
  return made


def described(states, usual):
  """What describe answers: '' is no answer, and then the usual state."""
  special = {'': stand_ins.SILENT, 'ABSENT': stand_ins.ABSENT}
  return [special.get(s, (0, f'{s}\n')) for s in (*states, usual)]


def answer(gcloud, *codes, requests=(), slices=(), **others):
  """Exit codes of the runs, and states that are answered before the usual."""
  gcloud.answer(
    {
      'git rev-parse': [(0, f'{COMMIT}\n')],
      'worker.sh run': [(code, '') for code in codes],
      'queued-resources describe': described(('ABSENT', *requests), 'ACTIVE'),
      'tpu-vm describe': described(slices, 'READY'),
      **others,
    }
  )


def steps(gcloud):
  """What gcloud was called for, in order."""
  found = []
  for call in gcloud.calls():
    if call[0] != 'gcloud':
      continue
    kind, verb, name = call[3:6]
    if verb == 'ssh':
      (command,) = [a for a in call if a.startswith('--command=')]
      found.append('run' if 'worker.sh run' in command else 'setup')
    else:
      found.append(
        f'{verb} slice' if (kind, verb) == ('tpu-vm', 'describe') else verb
      )
    assert name == 'judge' or verb == 'scp'
  return found


def until_done(gcloud, *arguments):
  return gcloud.run('until_done.sh', *(arguments or ARGUMENTS))


def test_a_run_from_nothing_to_its_end(gcloud):
  answer(gcloud, 0, **{'git diff': [(1, '')]})
  done = until_done(gcloud)
  assert (done.returncode, done.stderr.count('stays here')) == (0, 1)
  assert steps(gcloud) == [*BEGIN, *SETUP, 'run', 'delete']
  (asked,) = [c for c in gcloud.calls() if c[3:5] == REQUEST]
  assert '--spot' in asked


def test_dry_run_prints_the_calls_that_are_made(gcloud):
  answer(gcloud, 0)
  printed = gcloud.dry_run('until_done.sh', *ARGUMENTS)
  assert until_done(gcloud).returncode == 0
  # All but what git would answer.
  assert printed == [
    ['HEAD' if word == COMMIT else word for word in call]
    for call in gcloud.calls()
  ]


@pytest.mark.parametrize('code', [75, 137, 255])
def test_what_was_interrupted_runs_again_on_the_same_slice(gcloud, code):
  answer(gcloud, code, code, 0)
  done = until_done(gcloud)
  assert done.returncode == 0, done.stderr
  assert steps(gcloud) == [
    *BEGIN,
    *[*SETUP, 'run', *CHECK] * 2,
    *[*SETUP, 'run', 'delete'],
  ]
  runs = [c for c in gcloud.calls() if any('worker.sh run' in a for a in c)]
  assert runs[0] == runs[1] == runs[2]
  again = {255: 'connection lost'}.get(code, f'exit code {code}: running it')
  assert done.stderr.count(again) == 2


@pytest.mark.parametrize(
  ('code', 'request_state', 'slice_state'),
  [
    (75, 'ACTIVE', 'PREEMPTED'),
    (255, 'SUSPENDING', 'READY'),
    # gcloud's own exit code where the slice cannot be reached.
    (1, 'SUSPENDED', 'TERMINATED'),
  ],
)
def test_a_slice_that_was_taken_away_is_made_anew(
  gcloud, code, request_state, slice_state
):
  answer(
    gcloud,
    code,
    0,
    # Before, while it is waited for, after; then there is none again.
    requests=('ACTIVE', request_state, 'ABSENT'),
    slices=(slice_state,),
  )
  done = until_done(gcloud)
  assert done.returncode == 0, done.stderr
  assert 'judge: was taken away' in done.stderr
  assert steps(gcloud) == [
    *[*BEGIN, *SETUP, 'run', *CHECK, 'delete'],
    *[*BEGIN, *SETUP, 'run', 'delete'],
  ]


@pytest.mark.parametrize('code', [2, 130])
def test_what_failed_for_good_is_not_run_again(gcloud, code):
  answer(gcloud, code)
  done = until_done(gcloud)
  assert done.returncode == code
  assert f'error: exit code {code}' in done.stderr
  assert steps(gcloud) == [*BEGIN, *SETUP, 'run', 'delete']


def test_another_failure_ends_when_it_comes_three_times(gcloud):
  answer(gcloud, 1)
  done = until_done(gcloud)
  assert done.returncode == 1
  assert 'error: exit code 1' in done.stderr
  assert steps(gcloud) == [*BEGIN, *[*SETUP, 'run', *CHECK] * 3, 'delete']


def test_a_failure_of_gcloud_itself_ends_no_run(gcloud):
  answer(gcloud, 1, 1, 75, 1, 1, 0)
  done = until_done(gcloud)
  assert done.returncode == 0, done.stderr
  assert steps(gcloud).count('run') == 6


def test_restarts_have_a_limit(gcloud):
  gcloud.env['MAX_RESTARTS'] = '2'
  answer(gcloud, 137)
  assert until_done(gcloud).returncode == 137
  assert steps(gcloud).count('run') == 3
  assert steps(gcloud)[-1] == 'delete'


def test_a_lost_connection_is_no_restart(gcloud):
  gcloud.env['MAX_RESTARTS'] = '1'
  answer(gcloud, 255, 255, 255, 75, 0)
  done = until_done(gcloud)
  assert done.returncode == 0, done.stderr
  assert steps(gcloud).count('run') == 5


@pytest.mark.parametrize('code', [255, 1])
def test_without_a_network_nothing_is_given_up(gcloud, code):
  # The connection is lost, or gcloud has none; then neither scp nor describe
  # gets through, more often than failures are allowed.
  answer(
    gcloud,
    *(code, 0),
    requests=('ACTIVE', *[''] * 7),
    slices=[''] * 7,
    **{'tpu-vm scp': [(0, ''), *[(1, '')] * 6, (0, '')]},
  )
  done = until_done(gcloud)
  assert done.returncode == 0, done.stderr
  assert steps(gcloud) == [
    *[*BEGIN, *SETUP, 'run', *CHECK],
    *['scp', *CHECK] * 6,
    *[*SETUP, 'run', 'delete'],
  ]
  # Said once, though it was asked seven times.
  assert done.stderr.count('gcloud does not answer for it') == 1


def test_a_run_that_may_go_on_is_not_given_up_for_a_setup(gcloud):
  scps = [(0, ''), *[(1, '')] * 5, (0, '')]
  answer(gcloud, 255, 0, **{'tpu-vm scp': scps})
  done = until_done(gcloud)
  assert done.returncode == 0, done.stderr
  assert steps(gcloud).count('run') == 2


def test_a_setup_that_fails_is_tried_again(gcloud):
  answer(gcloud, 0, **{'tpu-vm scp': [(1, ''), (0, '')]})
  done = until_done(gcloud)
  assert done.returncode == 0, done.stderr
  assert steps(gcloud) == [*BEGIN, 'scp', *CHECK, *SETUP, 'run', 'delete']


def test_a_setup_that_keeps_failing_costs_no_slice(gcloud):
  # Its codes are not the run's: 255 is no run that may go on.
  answer(gcloud, 0, **{'tpu-vm scp': [(255, '')]})
  assert until_done(gcloud).returncode == 1
  assert steps(gcloud) == [*BEGIN, *['scp', *CHECK] * 3, 'delete']


def test_hosts_that_were_never_reached_are_given_up(gcloud):
  answer(gcloud, 0, **{'worker.sh setup': [(255, '')]})
  assert until_done(gcloud).returncode == 1
  assert steps(gcloud) == [*BEGIN, *[*SETUP, *CHECK] * 3, 'delete']


def test_hosts_of_a_new_slice_that_are_never_reached_are_given_up(gcloud):
  # Those of the one before were, and their run might have gone on unseen.
  answer(
    gcloud,
    255,
    requests=('ACTIVE', 'ACTIVE', 'SUSPENDED', 'ABSENT'),
    **{'worker.sh setup': [(0, ''), (255, '')]},
  )
  assert until_done(gcloud).returncode == 1
  assert steps(gcloud) == [
    *[*BEGIN, *SETUP, 'run', *CHECK, *SETUP, *CHECK, 'delete'],
    *[*BEGIN, *[*SETUP, *CHECK] * 3, 'delete'],
  ]


def test_a_slice_that_does_not_come_is_asked_for_again(gcloud):
  # Spot capacity that is taken away while it is being made.
  answer(gcloud, 0, requests=('FAILED', 'FAILED', 'ABSENT'))
  done = until_done(gcloud)
  assert done.returncode == 0, done.stderr
  assert steps(gcloud) == [
    *['describe', 'create', 'describe'],
    *['describe', 'delete', 'describe', 'create', 'describe'],
    *[*SETUP, 'run', 'delete'],
  ]
  assert done.stderr.count('no slice came') == 1


def test_a_slice_that_never_comes_is_given_up(gcloud):
  never = ('FAILED', 'FAILED', 'ABSENT')
  answer(gcloud, 0, requests=never * 3)
  done = until_done(gcloud)
  assert done.returncode == 1
  assert 'error: create: given up' in done.stderr
  assert steps(gcloud).count('create') == 3
  assert 'scp' not in steps(gcloud)


def test_an_error_of_create_is_tried_again(gcloud):
  # Right after the slice of before was deleted, too.
  answer(
    gcloud,
    75,
    0,
    requests=(
      *['ABSENT', 'ACTIVE'],
      *['SUSPENDED', 'ABSENT', 'ABSENT', 'ABSENT', 'ACTIVE'],
    ),
    **{
      'queued-resources create': [(1, ''), (0, ''), (1, ''), (1, ''), (0, '')]
    },
  )
  done = until_done(gcloud)
  assert done.returncode == 0, done.stderr
  assert steps(gcloud) == [
    *['describe', 'create', *BEGIN, *SETUP, 'run', *CHECK, 'delete'],
    *[*['describe', 'create'] * 2, *BEGIN, *SETUP, 'run', 'delete'],
  ]


def test_wrong_flags_are_not_tried_again(gcloud):
  answer(gcloud, 0, **{'queued-resources create': [(2, '')]})
  assert until_done(gcloud).returncode == 2
  assert steps(gcloud) == ['describe', 'create']


def test_a_slice_that_could_not_be_seen_at_first_is_joined(gcloud):
  answer(gcloud, 0)
  gcloud.answer({'queued-resources describe': described(['', ''], 'ACTIVE')})
  assert until_done(gcloud).returncode == 0
  assert 'create' not in steps(gcloud)


@pytest.mark.parametrize('state', ['ABSENT', 'DELETING'])
def test_a_slice_that_somebody_deletes_is_not_made_anew(gcloud, state):
  answer(gcloud, 255, requests=('ACTIVE', *[state] * 9), slices=['ABSENT'] * 9)
  done = until_done(gcloud)
  assert done.returncode == 255
  assert 'judge: somebody deleted it' in done.stderr
  assert steps(gcloud) == [*BEGIN, *SETUP, 'run', *CHECK]


def test_a_request_that_somebody_deletes_is_not_made_anew(gcloud):
  answer(gcloud, 0, requests=('WAITING_FOR_RESOURCES', 'ABSENT'))
  assert until_done(gcloud).returncode == 5
  assert steps(gcloud).count('create') == 1


def test_a_lost_login_is_told_once_and_waited_for(gcloud):
  out = [stand_ins.LOGGED_OUT] * 5
  active = [(0, 'ACTIVE\n')]
  answer(
    gcloud,
    *(1, 0),
    **{
      'queued-resources describe': [*active, *out, *active],
      'tpu-vm describe': [*out, (0, 'READY\n')],
      'tpu-vm scp': [(0, ''), *[(1, '')] * 4, (0, '')],
    },
  )
  done = until_done(gcloud)
  assert done.returncode == 0, done.stderr
  assert done.stderr.count('NOT LOGGED IN: run gcloud auth login') == 1


def test_every_restart_has_the_commit_of_the_first(gcloud):
  answer(gcloud, 75, 75, 0)
  gcloud.env['REVISION'] = 'main'
  assert until_done(gcloud).returncode == 0
  git = [call for call in gcloud.calls() if call[0] == 'git']
  assert git[0] == ['git', 'rev-parse', '--verify', 'main']
  assert [call[-1] for call in git[1:]] == [COMMIT] * 3


def test_secrets_that_others_may_read_cost_nothing(gcloud, tmp_path):
  path = tmp_path / 'secrets.env'
  path.write_text('HF_TOKEN=hf_s3cr3t\n')
  path.chmod(0o644)
  gcloud.env['ENV_FILE'] = str(path)
  done = until_done(gcloud)
  assert (done.returncode, 'chmod 600' in done.stderr) == (2, True)
  assert not gcloud.calls()


def test_keep_keeps_the_slice(gcloud):
  gcloud.env['KEEP'] = '1'
  answer(gcloud, 2)
  assert until_done(gcloud).returncode == 2
  assert 'delete' not in steps(gcloud)


def test_ctrl_c_leaves_run_and_slice(gcloud, tmp_path):
  answer(gcloud, 0)
  # In the middle of the run.
  patient = tmp_path / 'bin' / 'gcloud'
  patient.write_text(
    f'{patient.read_text()}\n'
    "if 'worker.sh run' in ' '.join(argv):\n"
    "  __import__('time').sleep(50)\n"
  )
  gcloud.answer({'queued-resources describe': [(0, 'ACTIVE\n')]})
  process = subprocess.Popen(
    # Where tests run in the background, the signal is ignored from birth.
    [
      shutil.which('env'),
      '--default-signal=INT',
      *gcloud.command('until_done.sh', *ARGUMENTS),
    ],
    env=gcloud.env,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  limit = time.monotonic() + 30
  while 'run' not in steps(gcloud) and time.monotonic() < limit:
    time.sleep(0.05)
  assert 'run' in steps(gcloud)
  # As a terminal does: to all processes of the group.
  subprocess.run(['kill', '-INT', '--', f'-{process.pid}'], check=True)
  _, said = process.communicate(timeout=30)
  assert process.returncode == 130
  assert 'the run goes on' in said
  assert 'delete' not in steps(gcloud)


@pytest.mark.parametrize(
  ('arguments', 'problem'),
  [
    ((), 'until_done.sh [--dry-run]'),
    (('--config=c.py',), 'give --workdir=gs://BUCKET/RUN'),
    # On a slice's own disks, which are deleted with it.
    (('--config=c.py', '--workdir=runs/a'), 'give --workdir=gs://BUCKET/RUN'),
  ],
)
def test_bad_arguments_cost_nothing(gcloud, arguments, problem):
  done = gcloud.run('until_done.sh', *arguments)
  assert done.returncode == 2
  assert problem in done.stderr
  assert not gcloud.calls()
