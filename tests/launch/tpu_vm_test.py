"""launch/tpu_vm.sh against a stand-in of gcloud."""

import shlex
import subprocess

import pytest

from tests.launch import stand_ins

TPUS = ['gcloud', 'compute', 'tpus']
WHERE = ['--zone=us-west4-a', '--project=mine', '--quiet']
ABSENT = (1, '')


@pytest.fixture
def gcloud(tmp_path):
  made = stand_ins.StandIns(tmp_path, 'gcloud', 'git', 'mkdir')
  made.env |= {
    'TPU_NAME': 'judge',
    'ZONE': 'us-west4-a',
    'PROJECT': 'mine',
  }
  return made


def states(*answers):
  return {'queued-resources describe': [*answers, (0, 'ACTIVE\n')]}


def of_request(call):
  return call[4] if call[:4] == [*TPUS, 'queued-resources'] else None


def test_create_asks_once_and_waits(gcloud):
  waiting = (0, 'WAITING_FOR_RESOURCES\n')
  gcloud.answer(states(ABSENT, waiting, waiting, (0, 'PROVISIONING\n')))
  done = gcloud.run('tpu_vm.sh', 'create')
  assert done.returncode == 0, done.stderr
  assert [of_request(call) for call in gcloud.calls()] == [
    'describe',
    'create',
    *['describe'] * 4,
  ]
  assert gcloud.calls()[1] == [
    *TPUS,
    'queued-resources',
    'create',
    'judge',
    '--node-id=judge',
    '--accelerator-type=v5litepod-16',
    '--runtime-version=v2-alpha-tpuv5-lite',
    *WHERE,
  ]
  # Each state once, however often it was asked for.
  assert done.stderr.count('WAITING_FOR_RESOURCES') == 1
  assert 'judge: ACTIVE' in done.stderr


def test_create_takes_its_variables(gcloud):
  gcloud.answer(states(ABSENT))
  gcloud.env |= {
    'SPOT': '1',
    'ACCELERATOR_TYPE': 'v6e-16',
    'RUNTIME_VERSION': 'v2-alpha-tpuv6e',
    'SERVICE_ACCOUNT': 'judge@mine.iam.gserviceaccount.com',
  }
  gcloud.run('tpu_vm.sh', 'create')
  asked = gcloud.calls()[1]
  assert {
    '--spot',
    '--accelerator-type=v6e-16',
    '--runtime-version=v2-alpha-tpuv6e',
    '--service-account=judge@mine.iam.gserviceaccount.com',
  } <= set(asked)


def test_a_slice_that_is_there_is_not_asked_for_again(gcloud):
  gcloud.answer(states())
  assert gcloud.run('tpu_vm.sh', 'create').returncode == 0
  assert {of_request(call) for call in gcloud.calls()} == {'describe'}


def test_a_slice_that_was_taken_away_is_deleted_first(gcloud):
  gcloud.answer(states((0, 'SUSPENDED\n')))
  assert gcloud.run('tpu_vm.sh', 'create').returncode == 0
  assert [of_request(call) for call in gcloud.calls()] == [
    'describe',
    'delete',
    'create',
    'describe',
  ]


def test_a_request_that_fails_is_an_error(gcloud):
  gcloud.answer(states(ABSENT, (0, 'FAILED\n')))
  done = gcloud.run('tpu_vm.sh', 'create')
  assert done.returncode == 1
  assert 'judge: no slice came' in done.stderr


def test_setup_brings_code_to_all_hosts_and_then_packages(gcloud):
  assert gcloud.run('tpu_vm.sh', 'setup').returncode == 0
  _, archive, scp, ssh = gcloud.calls()
  assert archive[:2] == ['git', 'archive'] and archive[-1] == 'HEAD'
  assert scp == [
    *[*TPUS, 'tpu-vm', 'scp', 'build/tract_jax.tar.gz', 'judge:'],
    *['--worker=all', *WHERE],
  ]
  assert ssh[:6] == [*TPUS, 'tpu-vm', 'ssh', 'judge']
  assert '--worker=all' in ssh
  assert 'launch/worker.sh setup; }' in ssh[7]
  gcloud.env['EXTRAS'] = 'wandb'
  *_, ssh = gcloud.dry_run('tpu_vm.sh', 'setup')
  assert 'launch/worker.sh setup wandb; }' in ssh[7]


def remote_command(call):
  """The words of what the hosts' shell is asked to run."""
  (command,) = [a for a in call if a.startswith('--command=')]
  return shlex.split(command.removeprefix('--command='))


def test_run_gives_all_hosts_the_arguments_as_they_are(gcloud):
  arguments = [
    '--config=configs/mistral.py:fast',
    '--workdir=gs://bucket/run 1',
    '--config.methods=("tract",)',
    "--config.score.format='{:g}'",
    '--config.data.system_prompt=$HOME "a" \\ *',
  ]
  gcloud.answer({'worker.sh run': [(75, 'step 7\n')]})
  done = gcloud.run('tpu_vm.sh', 'run', *arguments)
  assert (done.returncode, done.stdout) == (75, 'step 7\n')
  (call,) = gcloud.calls()
  assert '--worker=all' in call
  program = ['bash', 'tract_jax/launch/worker.sh', 'run']
  assert remote_command(call) == [*program, *arguments]


@pytest.mark.parametrize(
  ('command', 'worker', 'remote'),
  [
    (('logs',), '0', 'tail -n 100 -F tract_jax/run.log'),
    (('logs', '3'), '3', 'tail -n 100 -F tract_jax/run.log'),
    (('stop',), 'all', 'bash tract_jax/launch/worker.sh stop'),
  ],
)
def test_what_is_asked_of_hosts(gcloud, command, worker, remote):
  gcloud.run('tpu_vm.sh', *command)
  (call,) = gcloud.calls()
  assert f'--worker={worker}' in call
  assert remote_command(call) == remote.split()


@pytest.mark.parametrize(
  ('request_state', 'slice_state', 'code'),
  [
    ('ACTIVE', 'READY', 0),
    ('ACTIVE', 'REPAIRING', 0),
    ('', 'READY', 0),
    # gcloud could not be asked: nothing is known of it.
    ('', '', 4),
    ('ACTIVE', 'PREEMPTED', 3),
    ('ACTIVE', 'TERMINATED', 3),
    ('SUSPENDING', 'READY', 3),
    ('SUSPENDED', '', 3),
    ('FAILED', '', 3),
  ],
)
def test_check_knows_a_slice_that_was_taken_away(
  gcloud, request_state, slice_state, code
):
  gcloud.answer(
    {
      'queued-resources describe': [(0, f'{request_state}\n')],
      'tpu-vm describe': [(0 if slice_state else 1, f'{slice_state}\n')],
    }
  )
  assert gcloud.run('tpu_vm.sh', 'check').returncode == code


def test_delete_tries_again(gcloud):
  gcloud.answer({'delete': [(1, ''), (1, ''), (0, '')]})
  assert gcloud.run('tpu_vm.sh', 'delete').returncode == 0
  assert (
    gcloud.calls()
    == [[*TPUS, 'queued-resources', 'delete', 'judge', '--force', *WHERE]] * 3
  )
  gcloud.answer({'delete': [(1, '')]})
  done = gcloud.run('tpu_vm.sh', 'delete')
  assert done.returncode == 1
  assert 'could not be deleted' in done.stderr


@pytest.mark.parametrize(
  'command',
  [
    ('create',),
    ('setup',),
    ('run', '--config=c.py', '--workdir=gs://b/r', "--config.name=it's"),
    ('logs', '2'),
    ('stop',),
    ('check',),
    ('delete',),
  ],
  ids=lambda command: command[0],
)
def test_dry_run_prints_the_calls_that_are_made(gcloud, command):
  gcloud.answer(states(ABSENT) | {'tpu-vm describe': [(0, 'READY\n')]})
  printed = gcloud.dry_run('tpu_vm.sh', *command)
  assert gcloud.run('tpu_vm.sh', *command).returncode == 0
  assert printed == gcloud.calls()


def test_missing_variables_are_named(gcloud):
  del gcloud.env['ZONE'], gcloud.env['PROJECT']
  done = gcloud.run('tpu_vm.sh', 'create')
  assert done.returncode == 2
  assert done.stderr == 'tpu_vm.sh: error: set ZONE PROJECT\n'
  assert not gcloud.calls()


def test_run_needs_a_workdir_that_all_hosts_share(gcloud):
  done = gcloud.run('tpu_vm.sh', 'run', '--config=c.py')
  assert done.returncode == 2
  assert 'give --workdir=gs://BUCKET/RUN' in done.stderr
  assert not gcloud.calls()


def test_an_unknown_command_shows_what_there_is(gcloud, tmp_path):
  # From any folder.
  done = subprocess.run(
    gcloud.command('tpu_vm.sh', 'crate'),
    env=gcloud.env,
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2
  assert done.stderr.startswith('A slice of TPU VMs')
  assert 'set -euo' not in done.stderr
