"""launch/worker.sh as a host runs it, with a stand-in for the program."""

import importlib.metadata
import os
import re
import signal
import subprocess
import time

import pytest

from tests.launch import stand_ins

# It says what it was given, and lives until it is told to end.
_PROGRAM = """#!/usr/bin/env bash
trap 'echo saving; sleep .2; echo saved; exit 75' TERM
printf '<%s>' "$@"; echo
for _ in {1..200}; do [[ ! -e leave ]] || exit "$(<leave)"; sleep .05; done
"""


@pytest.fixture
def host(tmp_path):
  made = stand_ins.StandIns(tmp_path, 'python3')
  program = made.project / '.venv' / 'bin' / 'python'
  program.parent.mkdir(parents=True)
  program.write_text(_PROGRAM)
  program.chmod(0o755)
  yield made
  (made.project / 'leave').write_text('0')


def start(host, *arguments):
  return subprocess.Popen(
    host.command('worker.sh', 'run', *arguments),
    env=host.env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )


def wait_for_start(host):
  limit = time.monotonic() + 20
  for name in ('run.log', 'run.pid'):
    path = host.project / name
    while not (path.exists() and '\n' in path.read_text()):
      assert time.monotonic() < limit, f'{path}: nothing'
      time.sleep(0.02)


@pytest.mark.parametrize('code', [0, 2])
def test_run_shows_the_output_and_ends_with_the_exit_code(host, code):
  (host.project / 'leave').write_text(str(code))
  done = host.run('worker.sh', 'run', '--config=a b', "--x='*'")
  assert done.returncode == code
  assert done.stdout == "<-m><tract_jax.main><--config=a b><--x='*'>\n"
  # The log keeps what was before; a run shows its own.
  again = host.run('worker.sh', 'run', '--config=c')
  assert again.stdout == '<-m><tract_jax.main><--config=c>\n'
  log = (host.project / 'run.log').read_text()
  assert log == done.stdout + again.stdout


def test_run_joins_what_runs_and_outlives_the_connection(host):
  log = host.project / 'run.log'
  first = start(host, '--config=a')
  wait_for_start(host)
  os.killpg(first.pid, signal.SIGKILL)
  first.communicate(timeout=20)
  second = start(host, '--config=b')
  said = second.stderr.readline()
  assert 'joins .venv/bin/python -m tract_jax.main --config=a' in said
  (host.project / 'leave').write_text('7')
  second.communicate(timeout=20)
  assert second.returncode == 7
  assert log.read_text().count('<-m>') == 1


def test_secrets_reach_the_program_as_they_are_written(host):
  path = host.project.parent / 'tract_jax.env'
  program = host.project / '.venv' / 'bin' / 'python'
  program.write_text(
    '#!/usr/bin/env bash\necho "<$HF_TOKEN><$WANDB_API_KEY>"\n'
  )
  assert host.run('worker.sh', 'run').stdout == '<><>\n'
  path.write_text(
    '# mine\n\nHF_TOKEN=$(touch ran) `touch ran` "q" \\ a=b\n'
    'X[$(touch ran)]=hidden\ntouch ran\nWANDB_API_KEY=last'
  )
  done = host.run('worker.sh', 'run')
  assert done.stdout == '<$(touch ran) `touch ran` "q" \\ a=b><last>\n'
  assert not done.stderr
  assert not (host.project / 'ran').exists()
  printed = host.run('worker.sh', '--dry-run', 'run', '--config=a')
  assert printed.stdout == '.venv/bin/python -m tract_jax.main --config=a\n'


def test_stop_lets_it_save(host):
  process = start(host, '--config=a')
  wait_for_start(host)
  assert host.run('worker.sh', 'stop').returncode == 0
  output, _ = process.communicate(timeout=20)
  assert process.returncode == 75
  assert output.endswith('saving\nsaved\n')
  done = host.run('worker.sh', 'stop')
  assert (done.returncode, 'nothing runs' in done.stderr) == (1, True)


def test_a_host_that_shuts_down_lets_it_save(host):
  process = start(host, '--config=a')
  wait_for_start(host)
  # All of its processes are told to end.
  shell = int((host.project / 'run.pid').read_text())
  os.killpg(shell, signal.SIGTERM)
  output, _ = process.communicate(timeout=20)
  assert process.returncode == 75
  assert output.endswith('saved\n')


def test_a_program_that_is_killed_gives_its_signal(host):
  process = start(host, '--config=a')
  wait_for_start(host)
  shell = (host.project / 'run.pid').read_text().strip()
  subprocess.run(['pkill', '-KILL', '--parent', shell], check=True)
  process.communicate(timeout=20)
  assert process.returncode == 137


def test_setup_makes_the_locked_environment(host):
  # The stand-in of pip brings no uv, so it is there before.
  host.add(host.project / '.uv' / 'bin' / 'uv')
  printed = host.dry_run('worker.sh', 'setup', 'wandb')
  assert host.run('worker.sh', 'setup', 'wandb').returncode == 0
  made = host.calls()
  assert [call[1:] for call in printed] == [call[1:] for call in made]
  files = [a for call in made for a in call if a.startswith('requirements/')]
  names = ('lock', 'tpu', 'wandb')
  assert files == [f'requirements/{name}.txt' for name in names]
  assert all('--require-hashes' in call for call in made[:3])
  assert '--no-index' in made[3]


def test_setup_gets_uv_and_python_where_they_are_missing(host):
  (host.project / '.venv' / 'bin' / 'python').unlink()
  printed = host.dry_run('worker.sh', 'setup')
  assert printed[0][:4] == ['python3', '-m', 'pip', 'install']
  assert {'--require-hashes', 'requirements/uv.txt'} <= set(printed[0])
  assert printed[1][:2] == ['.uv/bin/uv', 'venv']
  assert '--python=3.11' in printed[1]


@pytest.mark.parametrize('name', ['uv.txt', 'tpu.txt', 'wandb.txt'])
def test_requirements_of_hosts_are_locked(name):
  text = (stand_ins.ROOT / 'requirements' / name).read_text()
  lines = re.sub(r'(?m)^#.*\n', '', text).replace('\\\n', ' ').splitlines()
  for line in lines:
    pinned = r'[\w-]+==\S+(\s+--hash=sha256:[0-9a-f]{64})+'
    assert re.fullmatch(pinned, line), line


def test_libtpu_is_what_the_locked_jax_asks_for():
  lock = (stand_ins.ROOT / 'requirements' / 'lock.txt').read_text()
  (jax,) = re.findall(r'(?m)^jax==(\S+)', lock)
  tpu = (stand_ins.ROOT / 'requirements' / 'tpu.txt').read_text()
  if (installed := importlib.metadata.version('jax')) != jax:
    pytest.skip(f'jax {installed} is not the locked {jax}')
  (asked,) = [
    re.split('[=;]', line)[2].removesuffix('.*').strip()
    for line in importlib.metadata.requires('jax')
    if line.startswith('libtpu==')
  ]
  assert re.search(rf'(?m)^libtpu=={re.escape(asked)}\b', tpu)
