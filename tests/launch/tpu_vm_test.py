"""launch/tpu_vm.sh against a stand-in of gcloud."""

import shlex
import subprocess

import pytest

from tests.launch import stand_ins

TPUS = ['gcloud', 'compute', 'tpus']
WHERE = ['--zone=us-west4-a', '--project=mine', '--quiet']
ALIVE = ['ServerAliveInterval=30', 'ServerAliveCountMax=4']


@pytest.fixture
def gcloud(tmp_path):
  made = stand_ins.StandIns(tmp_path, 'gcloud', 'git', 'mkdir')
  made.env |= {
    'TPU_NAME': 'judge',
    'ZONE': 'us-west4-a',
    'PROJECT': 'mine',
  }
  return made


def test_setup_brings_code_to_all_hosts_and_then_packages(gcloud):
  assert gcloud.run('tpu_vm.sh', 'setup').returncode == 0
  _, _, archive, scp, ssh = gcloud.calls()
  assert archive[:2] == ['git', 'archive'] and archive[-1] == 'HEAD'
  assert scp == [
    *[*TPUS, 'tpu-vm', 'scp', 'build/tract_jax.tar.gz', 'judge:'],
    '--worker=all',
    *[f'--scp-flag=-o{option}' for option in ALIVE],
    *WHERE,
  ]
  assert ssh[:6] == [*TPUS, 'tpu-vm', 'ssh', 'judge']
  assert '--worker=all' in ssh
  assert 'launch/worker.sh setup; }' in ssh[7]
  gcloud.env['EXTRAS'] = 'wandb'
  *_, ssh = gcloud.dry_run('tpu_vm.sh', 'setup')
  assert 'launch/worker.sh setup wandb; }' in ssh[7]


def test_setup_says_what_stays_behind(gcloud):
  gcloud.answer({'diff --quiet HEAD': [(1, '')]})
  done = gcloud.run('tpu_vm.sh', 'setup')
  assert done.returncode == 0
  assert 'what is not committed stays here' in done.stderr
  gcloud.env['REVISION'] = 'abc'
  done = gcloud.run('tpu_vm.sh', 'setup')
  assert 'committed' not in done.stderr


def test_connections_take_flags_and_notice_when_they_are_gone(gcloud):
  gcloud.env |= {
    'TRACK': 'alpha',
    'SSH_FLAGS': '--tunnel-through-iap --ssh-key-file=key',
  }
  gcloud.run('tpu_vm.sh', 'setup')
  gcloud.run('tpu_vm.sh', 'logs')
  _, _, _, scp, ssh, logs = gcloud.calls()
  for call, verb in ((scp, 'scp'), (ssh, 'ssh'), (logs, 'ssh')):
    assert call[:6] == ['gcloud', 'alpha', *TPUS[1:], 'tpu-vm', verb]
    assert {
      *[f'--{verb}-flag=-o{option}' for option in ALIVE],
      '--tunnel-through-iap',
      '--ssh-key-file=key',
    } <= set(call)


def test_setup_replaces_the_code_of_before_and_nothing_else(gcloud, tmp_path):
  home = tmp_path / 'home'
  stays = (
    '.venv/bin/python',
    'data/rows.json',
    'models/m',
    'run.log',
    'runs/r',
  )
  goes = ('tract_jax/gone.py', 'configs/gone.py', 'launch/gone.sh')
  for name in (*stays, *goes, 'launch/worker.sh'):
    path = home / 'tract_jax' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('touch tract_jax/was_set_up\n')
  (home / 'tract_jax.env').write_text('HF_TOKEN=hf_before\n')
  # As git and scp bring it: of this commit's tree.
  subprocess.run(
    ['tar', '-czf', 'tract_jax.tar.gz', 'tract_jax/launch/worker.sh'],
    cwd=home,
    check=True,
  )
  gcloud.run('tpu_vm.sh', 'setup')
  *_, ssh = gcloud.calls()
  (command,) = [a for a in ssh if a.startswith('--command=')]
  # Whether a run goes on: yes, then no.
  gcloud.add(tmp_path / 'bin' / 'pgrep')
  gcloud.answer({'pgrep': [(0, '7\n'), (1, '')]})

  def host():
    words = ['bash', '-c', command.removeprefix('--command=')]
    subprocess.run(words, cwd=home, env=gcloud.env, check=True)

  host()
  assert (home / 'tract_jax' / goes[0]).exists()
  assert not (home / 'tract_jax' / 'was_set_up').exists()
  host()
  assert all((home / 'tract_jax' / name).exists() for name in stays)
  assert not any((home / 'tract_jax' / name).exists() for name in goes)
  assert (home / 'tract_jax' / 'was_set_up').exists()
  # Without ENV_FILE no secret of before stays.
  assert not (home / 'tract_jax.env').exists()


@pytest.fixture
def secrets(gcloud, tmp_path):
  """A file of secrets that is in order."""
  path = tmp_path / 'secrets.env'
  path.write_text('# mine\n\nHF_TOKEN=hf_s3cr3t\nWANDB_API_KEY=a b$c=')
  path.chmod(0o600)
  gcloud.env['ENV_FILE'] = str(path)
  return path


def test_secrets_are_brought_and_never_shown(gcloud, secrets):
  done = gcloud.run('tpu_vm.sh', 'setup')
  assert done.returncode == 0, done.stderr
  *_, scp, ssh = gcloud.calls()
  assert scp[4:8] == [
    'scp',
    str(secrets),
    'judge:tract_jax.env',
    '--worker=all',
  ]
  assert 'tract_jax.env' not in ' '.join(ssh)
  printed = gcloud.run('tpu_vm.sh', '--dry-run', 'setup')
  assert str(secrets) in printed.stdout
  texts = [done.stdout, done.stderr, printed.stdout, printed.stderr]
  texts += [' '.join(call) for call in gcloud.calls()]
  assert not any('s3cr3t' in text or 'a b$c' in text for text in texts)


@pytest.mark.parametrize(
  'line', ['hf_s3cr3t', 'A B=hf_s3cr3t', 'A=hf_s3cr3t\r']
)
def test_other_lines_among_secrets_are_refused_unseen(gcloud, secrets, line):
  secrets.write_text(f'A=b\n{line}\n')
  done = gcloud.run('tpu_vm.sh', 'setup')
  assert done.returncode == 2
  assert 'has a line that is not KEY=VALUE' in done.stderr
  assert 's3cr3t' not in done.stdout + done.stderr
  assert not gcloud.calls()


# What the hosts could not write anew is refused, too.
@pytest.mark.parametrize('mode', [0o640, 0o400])
def test_secrets_that_others_may_read_are_refused(gcloud, secrets, mode):
  secrets.chmod(mode)
  done = gcloud.run('tpu_vm.sh', 'setup')
  assert done.returncode == 2
  assert 'is not of mode 600: chmod 600' in done.stderr
  secrets.unlink()
  assert 'cannot be read' in gcloud.run('tpu_vm.sh', 'setup').stderr
  assert not gcloud.calls()


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
  absent = [stand_ins.ABSENT] if command[0] == 'create' else []
  gcloud.answer(
    {
      'queued-resources describe': [*absent, (0, 'ACTIVE\n')],
      'tpu-vm describe': [(0, 'READY\n')],
    }
  )
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
