"""launch/sky.sh and its file, against a stand-in of SkyPilot."""

import subprocess

import pytest
import yaml

from tests.launch import stand_ins

ARGUMENTS = (
  '--config=configs/mistral.py:fast',
  '--workdir=gs://bucket/run',
  "--config.data.system_prompt=it's $HOME",
)
_TEXT = {'type': 'string'}


@pytest.fixture
def sky(tmp_path):
  made = stand_ins.StandIns(tmp_path, 'sky')
  made.env |= {'NAME': 'judge', 'INFRA': 'gcp/us-west4'}
  return made


def closed(**properties):
  """A schema of an object that has all of these, and no others."""
  return {
    'type': 'object',
    'properties': properties,
    'required': list(properties),
    'additionalProperties': False,
  }


# As SkyPilot 0.14 has it, of what we use.
TASK = closed(
  name=_TEXT,
  workdir=_TEXT,
  resources=closed(
    infra={**_TEXT, 'pattern': '^gcp(/[^/]+){0,2}$'},
    accelerators={**_TEXT, 'pattern': '^tpu-v[0-9a-z]+-[0-9]+$'},
    accelerator_args=closed(runtime_version=_TEXT),
    use_spot={'type': 'boolean'},
    job_recovery=closed(
      strategy={'enum': ['FAILOVER', 'EAGER_NEXT_REGION']},
      recover_on_exit_codes={
        'type': 'array',
        'items': {'type': 'integer', 'minimum': 0, 'maximum': 255},
        'uniqueItems': True,
      },
    ),
  ),
  envs={
    'type': 'object',
    'patternProperties': {
      '^[a-zA-Z_][a-zA-Z0-9_]*$': {'type': ['string', 'null']}
    },
    'additionalProperties': False,
  },
  setup=_TEXT,
  run=_TEXT,
)


def task():
  return yaml.safe_load((stand_ins.ROOT / 'launch/sky.yaml').read_text())


def test_the_file_is_a_valid_task():
  jsonschema = pytest.importorskip('jsonschema')
  jsonschema.validate(task(), TASK)
  with pytest.raises(jsonschema.ValidationError):
    jsonschema.validate({**task(), 'runs': 'x'}, TASK)


def test_only_interruptions_are_recovered_from():
  recovery = task()['resources']['job_recovery']
  assert recovery['recover_on_exit_codes'] == [75]
  # It would repeat a bad config, too.
  assert 'max_restarts_on_errors' not in recovery


def test_a_host_runs_what_was_asked_for(sky):
  assert sky.run('sky.sh', 'create', *ARGUMENTS).returncode == 0
  (call,) = sky.calls()
  assert call[:4] == ['sky', 'jobs', 'launch', '--yes']
  assert {'--name=judge', '--infra=gcp/us-west4'} <= set(call)
  assert call[-1] == 'launch/sky.yaml'
  (env,) = [a for a in call if a.startswith('--env=ARGS=')]
  program = sky.project / '.venv' / 'bin' / 'python'
  sky.add(program)
  subprocess.run(
    ['bash', '-c', task()['run']],
    env={**sky.env, 'ARGS': env.removeprefix('--env=ARGS=')},
    cwd=sky.project,
    check=True,
  )
  assert sky.calls()[1] == ['python', '-m', 'tract_jax.main', *ARGUMENTS]
  assert task()['setup'] == 'bash launch/worker.sh setup $EXTRAS\n'


def test_further_packages_by_choice(sky):
  assert task()['envs']['EXTRAS'] == ''
  sky.env['EXTRAS'] = 'wandb'
  (call,) = sky.dry_run('sky.sh', 'create', *ARGUMENTS)
  assert '--env=EXTRAS=wandb' in call


def test_secrets_are_named_and_never_shown(sky, tmp_path):
  path = tmp_path / 'secrets.env'
  path.write_text('HF_TOKEN=hf_s3cr3t\n')
  path.chmod(0o600)
  sky.env['ENV_FILE'] = str(path)
  (call,) = sky.dry_run('sky.sh', 'create', *ARGUMENTS)
  assert f'--secret-file={path}' in call
  assert 's3cr3t' not in ' '.join(call)
  path.chmod(0o644)
  done = sky.run('sky.sh', 'create', *ARGUMENTS)
  assert (done.returncode, 'chmod 600' in done.stderr) == (2, True)
  assert not sky.calls()


def test_capacity_on_demand_by_choice(sky):
  sky.env['ON_DEMAND'] = '1'
  sky.run('sky.sh', 'create', *ARGUMENTS)
  (call,) = sky.calls()
  assert '--no-use-spot' in call
  assert task()['resources']['use_spot'] is True


@pytest.mark.parametrize(
  'command', [('create', *ARGUMENTS), ('logs',), ('delete',)]
)
def test_dry_run_prints_the_calls_that_are_made(sky, command):
  printed = sky.dry_run('sky.sh', *command)
  assert sky.run('sky.sh', *command).returncode == 0
  assert printed == sky.calls()
  assert len(printed) == 1


def test_missing_variables_are_named(sky):
  del sky.env['INFRA']
  done = sky.run('sky.sh', 'create', *ARGUMENTS)
  assert (done.returncode, done.stderr) == (2, 'sky.sh: error: set INFRA\n')
  assert not sky.calls()
