"""launch/Dockerfile, what it may copy, and launch/image.sh."""

import fnmatch
import re

import pytest

from tests.launch import stand_ins


def instructions():
  """[(keyword, rest)] of the Dockerfile."""
  text = (stand_ins.ROOT / 'launch' / 'Dockerfile').read_text()
  text = re.sub(r'(?m)^\s*#.*\n', '', text).replace('\\\n', ' ')
  return [
    tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()
  ]


def of(keyword):
  return [rest for name, rest in instructions() if name == keyword]


def test_the_base_is_pinned_by_digest():
  (base,) = of('FROM')
  assert re.fullmatch(r'python:3\.11\.\d+-slim-\w+@sha256:[0-9a-f]{64}', base)


def test_packages_are_locked_with_hashes():
  installs = [
    part for run in of('RUN') for part in run.split('&&') if 'pip' in part
  ]
  for install in installs:
    # The project itself comes from the folder, and brings nothing along.
    assert '--require-hashes' in install or '--no-index' in install, install
  files = re.findall(r'--requirement=(\S+)', ' '.join(installs))
  names = ('lock', 'tpu', '$name')
  assert files == [f'requirements/{name}.txt' for name in names]


def test_it_runs_as_an_unprivileged_user():
  *_, (user_keyword, user), (entry_keyword, entry) = instructions()
  assert (user_keyword, user) == ('USER', '1000:1000')
  assert (entry_keyword, entry) == (
    'ENTRYPOINT',
    '["python", "-m", "tract_jax.main"]',
  )


def test_the_build_sees_what_is_copied_and_nothing_else():
  lines = (stand_ins.ROOT / '.dockerignore').read_text().splitlines()
  rules = [line for line in lines if line and not line.startswith('#')]
  assert rules[0] == '*'
  let_in = {rule[1:] for rule in rules if rule.startswith('!')}
  copied = {source for rest in of('COPY') for source in rest.split()[:-1]}
  assert copied == let_in
  for path in copied:
    assert (stand_ins.ROOT / path).exists(), path
  # What runs and tools leave in these folders stays out.
  assert any(fnmatch.fnmatch('**/__pycache__', r) for r in rules[len(let_in) :])


@pytest.fixture
def docker(tmp_path):
  made = stand_ins.StandIns(tmp_path, 'docker')
  made.env['IMAGE'] = 'host/mine/tract_jax:1'
  return made


def test_the_image_is_built_and_pushed(docker):
  printed = docker.dry_run('image.sh')
  assert docker.run('image.sh').returncode == 0
  assert printed == docker.calls()
  build, push = docker.calls()
  assert {'--file=launch/Dockerfile', '--tag=host/mine/tract_jax:1'} < set(
    build
  )
  assert push == ['docker', 'push', 'host/mine/tract_jax:1']
  assert not any('EXTRAS' in argument for argument in build)
  docker.env['EXTRAS'] = 'wandb'
  build, _ = docker.dry_run('image.sh')
  assert '--build-arg=EXTRAS=wandb' in build


def test_what_was_not_built_is_not_pushed(docker):
  docker.answer({'docker build': [(1, '')]})
  assert docker.run('image.sh').returncode == 1
  assert len(docker.calls()) == 1
  del docker.env['IMAGE']
  done = docker.run('image.sh')
  assert (done.returncode, done.stderr) == (2, 'image.sh: error: set IMAGE\n')
