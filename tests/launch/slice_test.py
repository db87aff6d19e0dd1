"""launch/slice.sh, as tpu_vm.sh uses it, against a stand-in of gcloud."""

import pytest

from tests.launch import stand_ins

TPUS = ['gcloud', 'compute', 'tpus']
WHERE = ['--zone=us-west4-a', '--project=mine', '--quiet']
ABSENT, SILENT = stand_ins.ABSENT, stand_ins.SILENT


@pytest.fixture
def gcloud(tmp_path):
  made = stand_ins.StandIns(tmp_path, 'gcloud')
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
    'CREATE_FLAGS': '--network=ours --internal-ips',
  }
  gcloud.run('tpu_vm.sh', 'create')
  asked = gcloud.calls()[1]
  assert {
    '--spot',
    '--accelerator-type=v6e-16',
    '--runtime-version=v2-alpha-tpuv6e',
    '--service-account=judge@mine.iam.gserviceaccount.com',
    '--network=ours',
    '--internal-ips',
  } <= set(asked)


def test_a_slice_that_is_there_is_not_asked_for_again(gcloud):
  gcloud.answer(states())
  assert gcloud.run('tpu_vm.sh', 'create').returncode == 0
  assert {of_request(call) for call in gcloud.calls()} == {'describe'}


def test_a_slice_that_was_taken_away_is_deleted_first(gcloud):
  gcloud.answer(states((0, 'SUSPENDED\n'), ABSENT))
  assert gcloud.run('tpu_vm.sh', 'create').returncode == 0
  assert [of_request(call) for call in gcloud.calls()] == [
    'describe',
    'delete',
    'describe',
    'create',
    'describe',
  ]


def test_create_waits_for_an_answer_before_it_asks(gcloud):
  # A request may well be there: ALREADY_EXISTS would come of asking.
  gcloud.answer(
    states(SILENT, stand_ins.SILENT_AGAIN, stand_ins.LOGGED_OUT, ABSENT)
  )
  done = gcloud.run('tpu_vm.sh', 'create')
  assert done.returncode == 0, done.stderr
  asked = [of_request(call) for call in gcloud.calls()]
  assert asked == [*['describe'] * 4, 'create', 'describe']
  # Each trouble once, though its words differ.
  assert done.stderr.count('Max retries exceeded') == 1
  assert done.stderr.count('NOT LOGGED IN: run gcloud auth login') == 1


def test_create_joins_what_it_could_not_see_at_first(gcloud):
  gcloud.answer(states(SILENT))
  assert gcloud.run('tpu_vm.sh', 'create').returncode == 0
  assert {of_request(call) for call in gcloud.calls()} == {'describe'}


def test_create_waits_while_another_request_is_being_deleted(gcloud):
  gcloud.answer(states((0, 'DELETING\n'), ABSENT))
  assert gcloud.run('tpu_vm.sh', 'create').returncode == 0
  asked = [of_request(call) for call in gcloud.calls()]
  assert asked == ['describe', 'describe', 'create', 'describe']


def test_create_ends_where_gcloud_refuses(gcloud):
  gcloud.answer(states(stand_ins.FORBIDDEN))
  done = gcloud.run('tpu_vm.sh', 'create')
  assert done.returncode == 1
  assert done.stderr.count('PERMISSION_DENIED') == 1
  assert 'judge: gcloud refuses it' in done.stderr


@pytest.mark.parametrize('first', [[ABSENT], []], ids=['own', 'joined'])
def test_create_ends_when_somebody_deletes_the_request(gcloud, first):
  waiting = (0, 'WAITING_FOR_RESOURCES\n')
  gcloud.answer(states(*first, waiting, ABSENT))
  done = gcloud.run('tpu_vm.sh', 'create')
  assert done.returncode == 5
  assert 'judge: somebody deleted it' in done.stderr


def test_a_warning_of_gcloud_is_no_state(gcloud):
  warned = (0, 'ACTIVE\n', 'WARNING: Python 3.9 will be deprecated.\n')
  gcloud.answer(states(warned))
  assert gcloud.run('tpu_vm.sh', 'create').returncode == 0
  assert len(gcloud.calls()) == 1


def test_a_request_that_fails_is_an_error(gcloud):
  gcloud.answer(states(ABSENT, (0, 'FAILED\n')))
  done = gcloud.run('tpu_vm.sh', 'create')
  assert done.returncode == 1
  assert 'judge: no slice came' in done.stderr


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
    ('ACTIVE', 'ABSENT', 3),
    # By hand: who did it wants no other.
    ('ABSENT', 'ABSENT', 5),
    ('ABSENT', '', 5),
    ('DELETING', 'DELETING', 5),
    # Whether by hand or not is still to be asked.
    ('', 'ABSENT', 4),
  ],
)
def test_check_knows_a_slice_that_was_taken_away(
  gcloud, request_state, slice_state, code
):
  said = {'': SILENT, 'ABSENT': ABSENT}
  gcloud.answer(
    {
      'queued-resources describe': [
        said.get(request_state, (0, f'{request_state}\n'))
      ],
      'tpu-vm describe': [said.get(slice_state, (0, f'{slice_state}\n'))],
    }
  )
  assert gcloud.run('tpu_vm.sh', 'check').returncode == code


@pytest.mark.parametrize(
  ('answer', 'words'),
  [
    (stand_ins.LOGGED_OUT, 'NOT LOGGED IN: run gcloud auth login'),
    (stand_ins.FORBIDDEN, "Permission 'tpu.queuedResources.get' denied"),
  ],
)
def test_check_says_why_there_is_no_answer(gcloud, answer, words):
  gcloud.answer({'describe': [answer]})
  done = gcloud.run('tpu_vm.sh', 'check')
  assert (done.returncode, words in done.stderr) == (4, True)


def test_delete_tries_again(gcloud):
  gcloud.answer({'delete': [(1, ''), (1, ''), (0, '')], **states()})
  assert gcloud.run('tpu_vm.sh', 'delete').returncode == 0
  assert [of_request(call) for call in gcloud.calls()] == [
    *['delete', 'describe'] * 2,
    'delete',
  ]
  delete = [*TPUS, 'queued-resources', 'delete', 'judge', '--force', *WHERE]
  assert gcloud.calls()[-1] == delete
  gcloud.answer({'delete': [(1, '')], **states()})
  done = gcloud.run('tpu_vm.sh', 'delete')
  assert done.returncode == 1
  assert 'could not be deleted' in done.stderr


def test_what_is_not_there_is_deleted(gcloud):
  gcloud.answer({'delete': [(1, '')], **states(ABSENT)})
  assert gcloud.run('tpu_vm.sh', 'delete').returncode == 0
  assert len(gcloud.calls()) == 2


def test_delete_waits_for_a_network(gcloud):
  # Longer than it tries otherwise: a slice that stays costs.
  gcloud.answer(
    {'delete': [*[(1, '')] * 25, (0, '')], **states(*[SILENT] * 25)}
  )
  assert gcloud.run('tpu_vm.sh', 'delete').returncode == 0
  gcloud.answer({'delete': [(1, '')], 'describe': [stand_ins.FORBIDDEN]})
  assert gcloud.run('tpu_vm.sh', 'delete').returncode == 1
