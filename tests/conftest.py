"""Environment of every test: eight virtual CPU devices, no network, no skips
that nobody sees.

What is set here stands before jax is imported, and reaches the processes that
tests start.
"""

import importlib.util
import os
import pathlib
import re

_NUM_DEVICES = 8


def _with_virtual_devices(xla_flags: str) -> str:
  """`xla_flags` with the number of virtual devices set to ours."""
  others = re.sub(
    r'--xla_force_host_platform_device_count=\S*', '', xla_flags
  ).split()
  return ' '.join(
    [*others, f'--xla_force_host_platform_device_count={_NUM_DEVICES}']
  )


def _threads_per_worker() -> int:
  """This worker's share of the cores, when tests run on several workers."""
  num_workers = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', '1'))
  return max(1, len(os.sched_getaffinity(0)) // num_workers)


os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = _with_virtual_devices(os.environ.get('XLA_FLAGS', ''))
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'
os.environ['TOKENIZERS_PARALLELISM'] = 'false'
os.environ['HF_HUB_OFFLINE'] = '1'
# NPROC bounds the thread pools of XLA, OMP_NUM_THREADS those of PyTorch.
os.environ['NPROC'] = str(_threads_per_worker())
os.environ['OMP_NUM_THREADS'] = str(_threads_per_worker())

import pytest  # noqa: E402

# Without these, tests of parity with PyTorch, with real tokenizers or of
# manifests skip. A developer may lack them; a run that decides what lands may
# not.
_REQUIRED_IN_CI = (
  'torch',
  'mistral_common',
  'llama_models',
  'jsonschema',
  'kubernetes_validate',
)


def _missing_in_ci() -> list[str]:
  """Modules that CI must have and this machine lacks; [] outside CI."""
  if os.environ.get('CI', '').lower() not in ('true', '1'):
    return []
  return [m for m in _REQUIRED_IN_CI if importlib.util.find_spec(m) is None]


def _fail_if_skipped_for_want_of(report) -> None:
  """Turns a skip "could not import 'torch'" into a failure in CI."""
  if not report.skipped or hasattr(report, 'wasxfail'):
    return
  reason = report.longrepr[-1] if report.longrepr else ''
  for module in _missing_in_ci():
    if f"could not import '{module}" in str(reason):
      report.outcome = 'failed'
      report.longrepr = f'CI must have {module}: {reason}'


@pytest.fixture(scope='session')
def shared_folder(tmp_path_factory) -> pathlib.Path:
  """A folder that all workers of this run of the tests have."""
  folder = tmp_path_factory.getbasetemp()
  return folder.parent if 'PYTEST_XDIST_WORKER' in os.environ else folder


@pytest.fixture(scope='session', autouse=True)
def compiled(shared_folder) -> None:
  """What a test, or a run that it starts, compiles is there for later ones."""
  import jax

  # Before a test takes XLA_FLAGS away from what it starts.
  assert jax.device_count() == _NUM_DEVICES
  os.environ['TESTS_COMPILED'] = str(shared_folder / 'compiled')
  jax.config.update(
    'jax_compilation_cache_dir', str(shared_folder / 'compiled_by_tests')
  )
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)


@pytest.fixture
def compiled_anew():
  """For tests that read a program's text: one that was kept has another."""
  import jax
  from jax.experimental.compilation_cache import compilation_cache

  def keep(compiled: bool):
    jax.config.update('jax_enable_compilation_cache', compiled)
    compilation_cache.reset_cache()

  keep(False)
  yield
  keep(True)


@pytest.fixture(scope='session')
def undisturbed(shared_folder) -> pathlib.Path:
  """The workdir of a small run that nothing disturbs; to be read and copied."""
  from tests.faults import harness

  workdir = shared_folder / 'undisturbed'
  return harness.once(workdir, lambda: harness.finish(harness.start(workdir)))


@pytest.fixture
def in_process(monkeypatch) -> None:
  """For `main` in this process, whose devices are in use already."""
  from tract_jax.parallel import distributed
  from tract_jax.pipeline import interruption

  monkeypatch.setattr(distributed, 'initialize', lambda **limits: None)
  monkeypatch.setattr(interruption.StopSignal, 'install', lambda self: None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
  report = yield
  _fail_if_skipped_for_want_of(report)
  return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
  report = yield
  _fail_if_skipped_for_want_of(report)
  return report
