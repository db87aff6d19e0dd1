"""The part of wandb that is used, with the server in this process."""

import dataclasses
import importlib.machinery
import sys
import types as python_types


@dataclasses.dataclass
class Run:
  """What the server has of a run, and what a process sees of it."""

  step: int = 0
  history: list = dataclasses.field(default_factory=list)
  num_finished: int = 0


class Server:
  """Runs by id, and the arguments of every init."""

  def __init__(self, fails_at: str = ''):
    self.runs: dict[str, Run] = {}
    self.asked: list[dict] = []
    self._fails_at = fails_at

  def init(self, **arguments):
    self.asked.append(arguments)
    self._may_fail('init')
    run = self.runs.setdefault(arguments['id'], Run())
    if run.history:
      run.step = run.history[-1][0] + 1

    def log(values, step):
      self._may_fail('log')
      assert step >= run.step, 'wandb drops it, and says so'
      run.step = step
      run.history.append((step, values))

    def finish():
      self._may_fail('finish')
      run.num_finished += 1

    return _Handle(run, log, finish)

  def _may_fail(self, where: str) -> None:
    if where == self._fails_at:
      raise OSError(f'no way to {where}')


class _Handle:
  """What init gives."""

  def __init__(self, run, log, finish):
    self._run, self.log, self.finish = run, log, finish

  @property
  def step(self) -> int:
    return self._run.step


def install(monkeypatch, fails_at: str = '') -> Server:
  """Puts the stand-in in wandb's place; gives its server."""
  server = Server(fails_at)
  module = python_types.ModuleType('wandb')
  module.__spec__ = importlib.machinery.ModuleSpec('wandb', None, origin='here')
  module.init = server.init
  monkeypatch.setitem(sys.modules, 'wandb', module)
  return server
