"""launch/jobset.sh with its manifest, and launch/xpk.sh, against stand-ins."""

import shlex
import subprocess

import pytest
import yaml

from tests.launch import stand_ins

ARGUMENTS = (
  '--config=configs/mistral.py',
  '--workdir=gs://bucket/run',
  '--config.methods=("tract",)',
  "--config.data.system_prompt=it's $(HOME) \\ & @NAME@",
)
WHERE = ['--cluster=ours', '--project=mine', '--zone=us-west4-a']


@pytest.fixture
def cluster(tmp_path):
  made = stand_ins.StandIns(tmp_path, 'kubectl', 'xpk')
  made.env |= {'NAME': 'judge', 'IMAGE': 'host/mine/tract_jax:1'}
  return made


def manifest(cluster):
  """What is given to kubectl, as text."""
  done = cluster.run('jobset.sh', 'create', *ARGUMENTS)
  assert done.returncode == 0, done.stderr
  (record,) = cluster.records()
  assert record['argv'] == ['kubectl', 'create', '--filename=-']
  return record['stdin']


def closed(properties, required=()):
  """A schema of an object that has no others than these."""
  return {
    'type': 'object',
    'properties': properties,
    'required': list(required),
    'additionalProperties': False,
  }


_TEXT = {'type': 'string'}
_WHOLE = {'type': 'integer', 'minimum': 0}
# jobset.x-k8s.io/v1alpha2 without what we do not use; its jobs are checked by
# Kubernetes' own schema.
JOBSET = closed(
  {
    'apiVersion': {'const': 'jobset.x-k8s.io/v1alpha2'},
    'kind': {'const': 'JobSet'},
    'metadata': closed(
      {
        'name': {**_TEXT, 'pattern': '^[a-z]([-a-z0-9]*[a-z0-9])?$'},
        'annotations': {'type': 'object', 'additionalProperties': _TEXT},
      },
      ['name'],
    ),
    'spec': closed(
      {
        'failurePolicy': closed(
          {
            'maxRestarts': _WHOLE,
            'restartStrategy': {'enum': ['Recreate', 'BlockingRecreate']},
            'rules': {
              'type': 'array',
              'items': closed(
                {
                  'name': {
                    **_TEXT,
                    'pattern': '^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$',
                  },
                  'action': {
                    'enum': [
                      'FailJobSet',
                      'RestartJobSet',
                      'RestartJobSetAndIgnoreMaxRestarts',
                    ]
                  },
                  'onJobFailureReasons': {
                    'type': 'array',
                    'items': {
                      'enum': [
                        'BackoffLimitExceeded',
                        'DeadlineExceeded',
                        'FailedIndexes',
                        'MaxFailedIndexesExceeded',
                        'PodFailurePolicy',
                      ]
                    },
                  },
                },
                ['name', 'action'],
              ),
            },
          }
        ),
        'replicatedJobs': {
          'type': 'array',
          'minItems': 1,
          'items': closed(
            {
              'name': _TEXT,
              'replicas': _WHOLE,
              'template': closed({'spec': {'type': 'object'}}, ['spec']),
            },
            ['name', 'template'],
          ),
        },
      },
      ['replicatedJobs'],
    ),
  },
  ['apiVersion', 'kind', 'metadata', 'spec'],
)


def test_the_manifest_is_a_valid_jobset_of_valid_jobs(cluster):
  jsonschema = pytest.importorskip('jsonschema')
  kubernetes_validate = pytest.importorskip('kubernetes_validate')
  made = yaml.safe_load(manifest(cluster))
  jsonschema.validate(made, JOBSET)

  def validate(spec):
    job = {'apiVersion': 'batch/v1', 'kind': 'Job', 'metadata': {'name': 'j'}}
    kubernetes_validate.validate({**job, 'spec': spec}, '1.33', strict=True)

  for replicated in made['spec']['replicatedJobs']:
    spec = replicated['template']['spec']
    validate(spec)
    # The schemas see what is misspelt.
    with pytest.raises(kubernetes_validate.ValidationError):
      validate({**spec, 'parallelisms': 4})
    spec['template']['spec']['containers'][0]['securityContext']['x'] = True
    with pytest.raises(kubernetes_validate.ValidationError):
      validate(spec)
  made['spec']['failurePolicy']['maxRestart'] = 1
  with pytest.raises(jsonschema.ValidationError):
    jsonschema.validate(made, JOBSET)


def only(values):
  (value,) = values
  return value


def test_the_manifest_says_what_was_asked_for(cluster):
  cluster.env['SERVICE_ACCOUNT'] = 'judge'
  made = yaml.safe_load(manifest(cluster))
  assert made['metadata']['name'] == 'judge'
  pod = only(made['spec']['replicatedJobs'])['template']['spec']['template']
  assert pod['spec']['serviceAccountName'] == 'judge'
  container = only(pod['spec']['containers'])
  assert container['image'] == 'host/mine/tract_jax:1'
  # Kubernetes makes "$" of "$$".
  given = [argument.replace('$$', '$') for argument in container['args']]
  assert given == list(ARGUMENTS)
  assert '$(' not in ''.join(container['args']).replace('$$', '')


def test_pods_are_the_hosts_of_a_v5e_slice(cluster):
  job = only(yaml.safe_load(manifest(cluster))['spec']['replicatedJobs'])
  spec = job['template']['spec']
  pod = spec['template']['spec']
  chips = only(pod['containers'])['resources']['limits']['google.com/tpu']
  selector = pod['nodeSelector']
  rows, columns = selector['cloud.google.com/gke-tpu-topology'].split('x')
  assert (
    selector['cloud.google.com/gke-tpu-accelerator'] == 'tpu-v5-lite-podslice'
  )
  assert spec['parallelism'] == spec['completions']
  assert spec['completions'] * chips == int(rows) * int(columns)
  assert spec['completionMode'] == 'Indexed'
  assert only(pod['containers'])['resources']['requests'] == {
    'google.com/tpu': chips
  }


def outcome(made, exit_code):
  """What becomes of the JobSet when a container ends with this code.

  As Kubernetes and JobSet decide it: a rule of podFailurePolicy that matches
  fails the job for the reason PodFailurePolicy, else the first failure does for
  BackoffLimitExceeded; the first rule of failurePolicy that has the reason
  counts, else the JobSet is restarted.
  """
  spec = only(made['spec']['replicatedJobs'])['template']['spec']
  assert spec['backoffLimit'] == 0
  reason = 'BackoffLimitExceeded'
  for rule in spec['podFailurePolicy']['rules']:
    codes = rule['onExitCodes']
    matches = exit_code in codes['values']
    if codes['operator'] == 'NotIn':
      matches = not matches
    if matches and rule['action'] == 'FailJob':
      reason = 'PodFailurePolicy'
  for rule in made['spec']['failurePolicy']['rules']:
    if reason in rule['onJobFailureReasons']:
      return rule['action']
  return 'RestartJobSet'


def test_interrupted_runs_restart_and_failed_ones_do_not(cluster):
  made = yaml.safe_load(manifest(cluster))
  policy = made['spec']['failurePolicy']
  assert policy['maxRestarts'] > 10
  # Pods of two starts would write into one folder.
  assert policy['restartStrategy'] == 'BlockingRecreate'
  for code in (75, 134, 137, 139, 143):
    assert outcome(made, code) == 'RestartJobSet', code
  for code in (1, 2, 126, 127, 130):
    assert outcome(made, code) == 'FailJobSet', code
  spec = only(made['spec']['replicatedJobs'])['template']['spec']
  pod = spec['template']['spec']
  named = spec['podFailurePolicy']['rules'][0]['onExitCodes']['containerName']
  assert named == only(pod['containers'])['name']
  # Kubernetes refuses a podFailurePolicy with any other.
  assert pod['restartPolicy'] == 'Never'


def test_pods_have_no_rights_and_time_to_save(cluster):
  made = yaml.safe_load(manifest(cluster))
  spec = only(made['spec']['replicatedJobs'])['template']['spec']
  pod = spec['template']['spec']
  assert pod['terminationGracePeriodSeconds'] >= 120
  assert pod['automountServiceAccountToken'] is False
  user = pod['securityContext']
  assert user['runAsNonRoot'] is True and user['runAsUser'] > 0
  assert user['seccompProfile'] == {'type': 'RuntimeDefault'}
  assert only(pod['containers'])['securityContext'] == {
    'privileged': False,
    'allowPrivilegeEscalation': False,
    'readOnlyRootFilesystem': True,
    'capabilities': {'drop': ['ALL']},
  }
  mounts = {m['mountPath'] for m in only(pod['containers'])['volumeMounts']}
  home = {e['name']: e['value'] for e in only(pod['containers'])['env']}['HOME']
  assert home in mounts


def test_pods_have_the_keys_of_a_secret_where_there_is_one(cluster):
  made = yaml.safe_load(manifest(cluster))
  pod = only(made['spec']['replicatedJobs'])['template']['spec']['template']
  source = only(only(pod['spec']['containers'])['envFrom'])
  assert source == {'secretRef': {'name': 'tract-jax-env', 'optional': True}}


def test_dry_run_prints_the_manifest_that_is_sent(cluster, tmp_path):
  sent = manifest(cluster)
  printed = cluster.run('jobset.sh', '--dry-run', 'create', *ARGUMENTS)
  assert len(cluster.calls()) == 1
  # What is printed is a command that does the same.
  subprocess.run(['bash', '-c', printed.stdout], env=cluster.env, check=True)
  assert cluster.records()[1] == {**cluster.records()[0], 'stdin': sent}


@pytest.mark.parametrize(
  ('script', 'command'),
  [
    ('jobset.sh', ('logs', '2')),
    ('jobset.sh', ('state',)),
    ('jobset.sh', ('delete',)),
    ('xpk.sh', ('create', *ARGUMENTS)),
    ('xpk.sh', ('list',)),
    ('xpk.sh', ('delete',)),
  ],
)
def test_dry_run_prints_the_calls_that_are_made(cluster, script, command):
  cluster.env |= {'CLUSTER': 'ours', 'PROJECT': 'mine', 'ZONE': 'us-west4-a'}
  printed = cluster.dry_run(script, *command)
  assert cluster.run(script, *command).returncode == 0
  assert printed == cluster.calls()
  assert len(printed) == 1


def test_logs_are_those_of_one_host(cluster):
  cluster.run('jobset.sh', 'logs', '3')
  selector = only(a for a in only(cluster.calls()) if '--selector' in a)
  assert selector == (
    '--selector=jobset.sigs.k8s.io/jobset-name=judge,'
    'batch.kubernetes.io/job-completion-index=3'
  )


def test_xpk_restarts_what_was_interrupted(cluster):
  cluster.env |= {'CLUSTER': 'ours', 'PROJECT': 'mine', 'ZONE': 'us-west4-a'}
  assert cluster.run('xpk.sh', 'create', *ARGUMENTS).returncode == 0
  call = only(cluster.calls())
  assert call[:7] == ['xpk', 'workload', 'create', '--workload=judge', *WHERE]
  assert {
    '--tpu-type=v5litepod-16',
    '--num-slices=1',
    '--docker-image=host/mine/tract_jax:1',
    '--restart-on-exit-codes=75',
    '--max-restarts=100',
    '--termination-grace-period-seconds=300',
  } <= set(call)
  command = only(a for a in call if a.startswith('--command='))
  words = shlex.split(command.removeprefix('--command='))
  program = ['exec', 'python', '-m', 'tract_jax.main']
  assert words == [*program, *ARGUMENTS]


@pytest.mark.parametrize(
  ('script', 'command', 'missing'),
  [
    ('jobset.sh', ('create', *ARGUMENTS), 'NAME'),
    ('jobset.sh', ('create', *ARGUMENTS), 'IMAGE'),
    ('xpk.sh', ('list',), 'CLUSTER'),
    ('xpk.sh', ('create', *ARGUMENTS), 'IMAGE'),
  ],
)
def test_missing_variables_are_named(cluster, script, command, missing):
  cluster.env |= {'CLUSTER': 'ours', 'PROJECT': 'mine', 'ZONE': 'us-west4-a'}
  del cluster.env[missing]
  done = cluster.run(script, *command)
  assert done.returncode == 2
  assert done.stderr == f'{script}: error: set {missing}\n'
  assert not cluster.calls()


@pytest.mark.parametrize('script', ['jobset.sh', 'xpk.sh'])
def test_create_needs_a_workdir_that_all_hosts_share(cluster, script):
  cluster.env |= {'CLUSTER': 'ours', 'PROJECT': 'mine', 'ZONE': 'us-west4-a'}
  done = cluster.run(script, 'create', '--config=c.py')
  assert done.returncode == 2
  assert 'give --workdir=gs://BUCKET/RUN' in done.stderr
  assert not cluster.calls()


def test_words_of_several_lines_make_no_jobset(cluster):
  more = '--config.data.benchmarks=a=x,\nb=y'
  for flags in ([], ['--dry-run']):
    done = cluster.run('jobset.sh', *flags, 'create', *ARGUMENTS, more)
    assert done.returncode == 2
    assert 'is not of one line' in done.stderr
    assert not done.stdout
  assert not cluster.records()
