"""The command line.

  python -m tract_jax.main --config=configs/demo.py [--task=run]
    [--workdir=runs/demo] [--config.train.lr=2e-5 ...]

A model is used as it is, a judge by its judge.json, where a task trains nothing
and data.train_path is empty; it needs no config, and rows need no rating:

  python -m tract_jax.main --task=predict --config.model.path=JUDGE
    --config.data.benchmarks=rows.jsonl [--workdir=runs/judge]

writes predictions/<method>/rows.jsonl, by the method that judge.json names, or
without one zero_shot, or released where config.methods says so.

On several hosts the same command runs on each, with one workdir: joined, they
do every task together (docs/hosts.md).

Exit codes: 0 done, 2 bad config or data, or too little memory for them, 75
interrupted and resumable, 130 Ctrl-C, 134 another host died, 1 other.
"""

import contextlib
import io
import re
import sys

from absl import flags
from etils import epath
import jax
import ml_collections
from ml_collections import config_flags

from tract_jax import types
from tract_jax.parallel import agreement, distributed
from tract_jax.pipeline import (
  build,
  config_check,
  fingerprint,
  hosts,
  inspect_data,
  interruption,
  plan,
  progress,
  read_data,
  scrub,
  tasks,
)
from tract_jax.pipeline import config as config_lib
from tract_jax.pipeline import methods as methods_lib
from tract_jax.pipeline import run as run_lib
from tract_jax.pipeline import workdir as workdir_lib
from tract_jax.training import loop

_CONFIG = '--config='
_ONE_CONFIG = (
  'give one --config=FILE, such as configs/demo.py; only a model that is used '
  'as it is needs none'
)
TASKS = (*tasks.TASKS, 'inspect', 'plan')
# They work without rows, too.
_NEED_NO_ROWS = ('inspect', 'plan')
_PREDICT = ('run', 'predict', 'evaluate')
_TRAIN_NOTHING = ('predict', 'evaluate', 'inspect')
# What a device says that has no room for a program or an array. A message to a
# host that is too long is RESOURCE_EXHAUSTED, too, and so is a kernel for which
# the memory beside a chip's units is too small.
_OUT_OF_MEMORY = re.compile(
  'RESOURCE_EXHAUSTED(?!.*memory space [vs]mem).*(memory|allocat)'
)
_LESS_MEMORY = (
  'less memory: config.model.dtype=bfloat16; config.model.remat=full and a '
  'smaller config.train.micro_batch_size while training, a smaller '
  'config.sampling.slots or config.sampling.prefill_tokens while sampling; '
  'for a TPU --task=plan says what fits'
)


def main(argv: list[str] | None = None) -> int:
  """Runs a task.

  Args:
    argv: arguments without the program's name; those of the process if None.

  Returns:
    The exit code.
  """
  # Whatever the locale, no path or id in a line may end a run.
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')
  argv = sys.argv[1:] if argv is None else argv
  if not argv or {'--help', '-h'} & set(argv):
    print(__doc__)
    return 0 if argv else 2
  try:
    task, workdir, config = parse(argv)
  except types.InputError as error:
    return _fail(error)
  return _execute(task, epath.Path(workdir), config)


def parse(argv: list[str]) -> tuple[str, str, ml_collections.ConfigDict]:
  """Reads the arguments.

  Args:
    argv: arguments without the program's name.

  Returns:
    (task, workdir, config with every key, checked).

  Raises:
    types.InputError: an unknown flag, key, task or value, a line each.
  """
  files = [a.removeprefix(_CONFIG) for a in argv if a.startswith(_CONFIG)]
  if len(files) > 1:
    raise types.InputError(_ONE_CONFIG)
  rest = [a for a in argv if not a.startswith(_CONFIG)]
  if files:
    config = config_lib.read_config(files[0])
  else:
    config = config_lib.merge({'name': 'judge'})
  _check_keys(rest, config)
  values = flags.FlagValues()
  flags.DEFINE_string('workdir', '', 'Folder of the run.', flag_values=values)
  flags.DEFINE_enum('task', 'run', TASKS, 'What to do.', flag_values=values)
  try:
    # Reads the files of --flagfile, too.
    config_flags.DEFINE_config_dict(
      'config', config, flag_values=values, sys_argv=['main', *rest]
    )
    left = values(['main', *rest])[1:]
  # absl, and Python's own reader of values, raise whatever they meet.
  except Exception as error:
    raise types.InputError(_one_line(error)) from error
  if left:
    raise types.InputError(f'{left[0]}: not a flag')
  as_judge = _is_as_judge(values.task, config)
  if not files and not as_judge:
    raise types.InputError(_ONE_CONFIG)
  config_check.check(
    config,
    as_judge=as_judge,
    needs_rows=values.task not in _NEED_NO_ROWS,
    predicts=values.task in _PREDICT,
  )
  workdir = values.workdir or f'runs/{config.name}'
  if scrub.holds_secret(workdir):
    raise types.InputError(f'--workdir: {scrub.ADVICE}')
  return values.task, workdir, config


def _is_as_judge(task: str, config: ml_collections.ConfigDict) -> bool:
  """Whether the model is used as it is, by its own judge.json."""
  if config.data.source != 'files' or config.data.train_path:
    return False
  # Unknown names are told by the check of the config.
  if task == 'run':
    return not any(
      method.stages for method in methods_lib.known(config.methods)
    )
  return task in _TRAIN_NOTHING


def _check_keys(argv: list[str], config: ml_collections.ConfigDict) -> None:
  """Names every --config.KEY that does not exist, with the nearest."""
  problems = []
  for argument in argv:
    # "--noconfig.KEY" switches a key off.
    flag, _, _ = argument.lstrip('-').removeprefix('no').partition('=')
    if flag.startswith('config.'):
      key = flag.removeprefix('config.')
      if key not in config_lib.keys(config):
        problems.append(config_lib.unknown_key(key))
  if problems:
    raise types.InputError('\n'.join(problems))


def _execute(task: str, folder: epath.Path, config) -> int:
  """Runs a task on a checked config; gives the exit code."""
  signals = interruption.StopSignal()
  try:
    host = _start(task, config.hosts, signals)
  except types.InputError as error:
    return _fail(error)
  stop = agreement.Agreement(signals.requested, host)
  try:
    _run(task, folder, config, host, stop)
    return 0
  except BaseException as error:
    interrupted = isinstance(error, loop.Interrupted | KeyboardInterrupt)
    unreachable = isinstance(error, types.UnreachableError)
    other_failed = False
    # Where the first process is gone, nobody is told.
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      other_failed = interrupted and stop.has_failed()
      stop.leave(failed=not (interrupted or unreachable))
    if isinstance(error, types.InputError):
      return _fail(error)
    if line := _lack_of_memory(error):
      return _fail(types.InputError(f'{line}\n{_LESS_MEMORY}'))
    if isinstance(error, loop.NonFiniteError):
      _tell(f'error: {error}')
      return 1
    if unreachable:
      _tell(f'error: {error}; the same command continues')
      return interruption.SIGTERM_EXIT
    if not interrupted:
      raise
    reason = str(error) or 'stopped at once'
    if other_failed:
      _tell(f'{reason}: another host failed; see its error')
      return 1
    _tell(f'{reason}; the same command continues')
    if isinstance(error, KeyboardInterrupt):
      return interruption.CTRL_C_EXIT
    return signals.exit_code or interruption.SIGTERM_EXIT


def _run(
  task: str,
  folder: epath.Path,
  config,
  host: distributed.Host,
  stop: agreement.Agreement,
) -> None:
  hosts.check_alike(host, stop, lambda: fingerprint.host_fields(task, config))
  as_judge = _is_as_judge(task, config)
  if task == 'inspect':
    inspect_data.inspect(*_setup_and_data(config, task, as_judge, host))
    return
  if task == 'evaluate' and host.is_alone and host.index:
    progress.say(f'{host}: the first one makes the report')
    return
  if task == 'plan':
    with workdir_lib.use(folder, host):
      plan.plan(config, folder)
    return
  with workdir_lib.use(folder, host):
    workdir_lib.check_shared(folder, host, stop)
    progress.say(f'workdir: {folder}')
    setup, data = _setup_and_data(config, task, as_judge, host)
    inspect_data.say_model(setup)
    run = run_lib.Run(setup, data, folder, stop, host)
    hosts.check_alike(host, stop, run.inputs)
    tasks.execute(run, task, as_judge=as_judge)


def _setup_and_data(
  config, task: str, as_judge: bool, host: distributed.Host
) -> tuple[build.Setup, read_data.RunData]:
  setup = build.build(config, as_judge=as_judge, trains=not host.is_alone)
  if as_judge:
    for name, method in setup.as_is.items():
      cot = 'after a CoT' if method.with_cot else 'without CoT'
      progress.say(
        f'the model as it is: {name}, predictor {method.predictor}, {cot}'
      )
  predicts = task != 'evaluate'
  return setup, read_data.read_data(setup, as_judge=as_judge, predicts=predicts)


def _start(
  task: str, limits, signals: interruption.StopSignal
) -> distributed.Host:
  """Starts jax, joined with the other processes of the run, or alone."""
  host = distributed.ONLY_HOST
  if task == 'plan':
    plan.use_no_chips()
    return host
  if task in tasks.ON_SEVERAL_HOSTS:
    host = distributed.find_alone()
  if host.is_alone:
    distributed.initialize_alone()
    signals.install()
    return host
  distributed.initialize(**limits)
  # Before devices are looked for, which takes long on a pod: jax has its own
  # way with SIGTERM until then.
  signals.install()
  return distributed.joined_host()


def _lack_of_memory(error: BaseException) -> str:
  """The first line of what a device says; behind a compiler's are its arrays.

  Args:
    error: any.

  Returns:
    "" where it is another error.
  """
  line = str(error).partition('\n')[0]
  is_jax = isinstance(error, jax.errors.JaxRuntimeError)
  return line if is_jax and _OUT_OF_MEMORY.search(line) else ''


def _fail(error: types.InputError) -> int:
  for line in str(error).splitlines():
    _tell(f'error: {line}')
  return 2


def _tell(line: str) -> None:
  print(scrub.scrubbed(line), file=sys.stderr)


def _one_line(error: Exception) -> str:
  return ' '.join(str(error).split()) or type(error).__name__


if __name__ == '__main__':
  sys.excepthook = scrub.print_exception
  code = main()
  interruption.ignore()
  sys.exit(code)
