"""What a run on a TPU slice will need, compiled ahead of time, no TPU there.

    the slice's chips (libtpu knows them by the topology's name)
      -> the programs of the run, with shapes in place of arrays
      -> compiled -> figures -> where one does not fit, the same with changes
      -> plan/plan.json and plan/plan.txt

Training is planned on `config.mesh` over all chips; sampling on
`config.sampling.mesh` over the chips of one host, since every host samples by
itself.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
import importlib.util
import os
import pathlib
import sys

from etils import epath
import jax
from jax.experimental import topologies
import ml_collections

from tract_jax import types
from tract_jax.data import disk, manifest
from tract_jax.parallel import chips
from tract_jax.pipeline import (
  build,
  plan_figures,
  plan_hours,
  plan_programs,
  plan_report,
  plan_trials,
  progress,
  slot_count,
)
from tract_jax.pipeline import methods as methods_lib

# What libtpu asks for on a TPU's machine, and what keeps it quiet elsewhere.
_ENVIRONMENT = {
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_LOG_DIR': 'disabled',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
}
# Where `make tpu` puts libtpu: apart from the packages, since jax looks for
# TPUs as soon as it finds it there.
_LIBRARY = pathlib.Path(sys.prefix, 'tpu', 'libtpu', 'libtpu.so')


def use_no_chips() -> None:
  """Keeps jax to this machine's CPU; to be called before any device is used."""
  jax.config.update('jax_platforms', 'cpu')


def has_compiler() -> bool:
  """Whether the TPU's compiler, libtpu, is at hand."""
  return (
    'TPU_LIBRARY_PATH' in os.environ
    or importlib.util.find_spec('libtpu') is not None
    or _LIBRARY.is_file()
  )


def plan(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
  """Compiles a run's programs for `config.plan.topology` and writes the plan.

  Args:
    config: checked.
    workdir: plan/plan.json and plan/plan.txt are written under it.

  Raises:
    types.InputError: no topology, or none that libtpu knows; no libtpu; a
      mapping that is not planned; a model whose numbers are nowhere; a mesh
      that does not fit the chips.
  """
  name = config.plan.topology
  if not name:
    raise types.InputError(
      'config.plan.topology: is empty; name a TPU slice, such as v5e:4x4'
    )
  if config.mapping != 'jit':
    raise types.InputError(
      f'config.mapping: {config.mapping!r} is not planned; "jit" is'
    )
  topology = chips.topology(name)
  devices = slice_devices(topology)
  planner = _Planner(plan_trials.asked(config, len(devices)), topology, devices)
  method = max(config.methods, key=_num_stages)
  outcomes = [*planner.training(method), *planner.sampling(method)]
  facts = plan_report.Facts(
    config=planner.config,
    asked=config,
    refusal=_refusal(config, devices),
    topology=topology,
    method=method,
    num_hosts=planner.num_hosts,
    hours=plan_hours.hours(planner.config, method, planner.num_hosts, outcomes),
  )
  folder = workdir / 'plan'
  content = plan_report.as_json(facts, outcomes)
  table = plan_report.as_text(facts, outcomes)
  with disk.writing(folder):
    folder.mkdir(parents=True, exist_ok=True)
    manifest.write_json_atomic(folder / 'plan.json', content)
    manifest.write_text_atomic(folder / 'plan.txt', table)
  progress.say(table)
  progress.say(f'plan: {folder / "plan.json"}')


class _Planner:
  """Compiles programs, and lighter ones where they do not fit.

  Attributes:
    config: that is planned.
    num_hosts: of the slice.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    topology: chips.Topology,
    devices: Sequence[jax.Device],
  ):
    self.config = config
    self._topology = topology
    self._devices = devices
    self._host = _host_devices(topology, devices)
    self.num_hosts = len(devices) // len(self._host)
    self._architecture = plan_programs.read_architecture(config.model)
    self._found: dict[tuple, plan_figures.Figures] = {}

  def training(self, method: str) -> list[plan_report.Outcome]:
    """The training step of each stage."""

    def program(name, stage, config):
      setup = self._make_setup(config)
      num_steps = plan_hours.num_steps(config, stage)
      return plan_programs.training(setup, name, stage, num_steps)

    return [
      self._outcome(
        functools.partial(program, f'train_stage{number}', stage),
        plan_trials.lighter_training(self.config, len(self._devices)),
      )
      for number, stage in enumerate(methods_lib.METHODS[method].stages, 1)
    ]

  def sampling(self, method: str) -> list[plan_report.Outcome]:
    """Reading prompts and writing CoTs, on one host."""
    if not methods_lib.any_with_cot([method]):
      return []

    def on_host(config):
      return build.for_sampling(self._make_setup(config), self._host)

    def program(place, config):
      return plan_programs.sampling(on_host(config))[place]

    setup = on_host(self.config)
    slots = slot_count.num_slots(self.config, setup.model, setup.cot_scores)
    return [
      self._outcome(
        functools.partial(program, place),
        plan_trials.lighter_sampling(self.config, slots),
      )
      for place in range(2)
    ]

  def _make_setup(self, config: ml_collections.ConfigDict) -> build.Setup:
    return plan_programs.make_setup(config, self._devices, self._architecture)

  def _outcome(
    self,
    make: Callable[[ml_collections.ConfigDict], plan_programs.Program],
    lighter: Iterable[plan_trials.Changes],
  ) -> plan_report.Outcome:
    """Figures of a program; with changes, where as it is it does not fit."""
    asked = self._compiled(make, {})
    figures = asked
    tried: list[tuple[plan_trials.Changes, plan_figures.Figures]] = []
    changes: plan_trials.Changes = {}
    for more in lighter:
      if figures.fits or len(tried) == plan_trials.MAX_TRIALS:
        break
      try:
        figures = self._compiled(make, changes | more)
      except types.InputError:  # Such as heads that no mesh splits so.
        continue
      changes |= more
      tried.append((dict(changes), figures))
    return plan_report.Outcome(asked, tuple(tried))

  def _compiled(self, make, changes) -> plan_figures.Figures:
    """Figures of one program, compiled once for stages that are alike."""
    program = make(plan_trials.changed(self.config, changes))
    key = (*program.key, *sorted(changes.items()))
    if key in self._found:
      return dataclasses.replace(
        self._found[key], name=program.name, compile_secs=0.0
      )
    shown = ', '.join(f'{k}={v}' for k, v in changes.items())
    progress.say(
      f'plan: compiling {program.name} for {self._topology.name}'
      + (f' with {shown}' if shown else '')
    )
    figures = plan_figures.compile_program(program, self._topology.chip)
    progress.say(f'plan: {plan_report.one_line(figures)}')
    self._found[key] = figures
    return figures


def _refusal(
  config: ml_collections.ConfigDict, devices: Sequence[jax.Device]
) -> str | None:
  """Why a run cannot split its batch over the slice; None where it can."""
  try:
    build.training_mesh(config, devices)
  except types.InputError as error:
    return str(error)
  return None


def _num_stages(method: str) -> int:
  return len(methods_lib.METHODS[method].stages)


def slice_devices(topology: chips.Topology) -> list[jax.Device]:
  """The chips of a slice, as far as the compiler needs them.

  Args:
    topology: of the slice.

  Returns:
    Devices to compile for; nothing can be put on them.

  Raises:
    types.InputError: no libtpu, or a slice that it does not know.
  """
  for name, value in _ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', topology.accelerator_type)
  if not has_compiler():
    raise types.InputError(
      'config.plan.topology: compiling for TPUs needs libtpu, which is not'
      ' installed; `make tpu` gets it'
    )
  if importlib.util.find_spec('libtpu') is None:
    os.environ.setdefault('TPU_LIBRARY_PATH', str(_LIBRARY))
  try:
    found = topologies.get_topology_desc(topology.name, platform='tpu')
  except Exception as error:  # libtpu raises several kinds.
    reason = ' '.join(str(error).split())
    raise types.InputError(
      f'config.plan.topology: {topology.name!r}: {reason}'
    ) from error
  return list(found.devices)


def _host_devices(
  topology: chips.Topology, devices: Sequence[jax.Device]
) -> list[jax.Device]:
  """The chips of one host, as a slice of their own.

  The compiler takes a program on some of a slice's chips for one on all.
  """
  kind, _, sizes = topology.name.partition(':')
  places = [d.coords for d in devices if d.process_index == 0]
  extents = [max(axis) + 1 for axis in zip(*places, strict=True)]
  axes = len(sizes.split('x'))
  host = f'{kind}:{"x".join(str(extent) for extent in extents[:axes])}'
  return slice_devices(chips.topology(host))
