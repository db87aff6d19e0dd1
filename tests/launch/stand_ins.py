"""Stand-ins for gcloud, kubectl and the like, and a copy of launch/ to run.

A stand-in writes down how it was called, and gives the answers of a script.
Nothing else is on PATH but plain tools, so no real one is ever called.
"""

from collections.abc import Mapping, Sequence
import json
import pathlib
import shlex
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / 'launch').glob('*.sh'))
_TOOLS = (
  *('bash', 'cat', 'dirname', 'grep', 'gzip', 'ls', 'nohup', 'pkill', 'rm'),
  *('sed', 'setsid', 'sleep', 'stat', 'tail', 'tar', 'touch', 'tr'),
)

_PROGRAM = """#!{python} -IS
import json, pathlib, sys
folder = pathlib.Path({folder!r})
argv = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
call = {{'argv': argv}}
if '--filename=-' in argv:
  call['stdin'] = sys.stdin.read()
with open(folder / 'calls.jsonl', 'a') as file:
  file.write(json.dumps(call) + '\\n')
for number, (words, answers) in enumerate(
  json.loads((folder / 'answers.json').read_text())
):
  if words in ' '.join(argv):
    count = folder / f'count{{number}}'
    seen = int(count.read_text()) if count.exists() else 0
    count.write_text(str(seen + 1))
    code, output, *said = answers[min(seen, len(answers) - 1)]
    sys.stdout.write(output)
    sys.stderr.writelines(said)
    sys.exit(code)
"""

# (exit code, standard output[, standard error])
Answer = tuple[int, str] | tuple[int, str, str]

# What gcloud says of what is not there; without a network, twice, as each time
# the address is another; and without a login.
ABSENT = (
  1,
  '',
  'ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource '
  "'projects/mine/locations/us-west4-a/queuedResources/judge' was not found. "
  'This command is authenticated as me@mine.org which is the active account '
  'specified by the [core/account] property\n',
)
SILENT, SILENT_AGAIN = (
  (
    1,
    '',
    'ERROR: gcloud crashed (ConnectionError): Max retries exceeded (Caused by '
    f"NewConnectionError('<HTTPSConnection object at {address}>'))\n",
  )
  for address in ('0x7f3a90c1d2e0', '0x7f11b86f4c10')
)
LOGGED_OUT = (
  1,
  '',
  'ERROR: (gcloud.compute.tpus.queued-resources.describe) There was a problem '
  'refreshing your current auth tokens: Reauthentication failed. cannot prompt '
  'during non-interactive execution.\nPlease run:\n\n  $ gcloud auth login\n',
)
FORBIDDEN = (
  1,
  '',
  'ERROR: (gcloud.compute.tpus.queued-resources.describe) PERMISSION_DENIED: '
  "Permission 'tpu.queuedResources.get' denied\n",
)


class StandIns:
  """A folder with a copy of launch/, and stand-ins as the only programs.

  Attributes:
    project: the folder that holds launch/.
    env: of the scripts; add their variables.
  """

  def __init__(self, folder: pathlib.Path, *names: str):
    """Makes them.

    Args:
      folder: empty, or to be made.
      names: of the programs.
    """
    self._folder = folder
    self.project = folder / 'project'
    self._bin = folder / 'bin'
    self._bin.mkdir(parents=True)
    shutil.copytree(ROOT / 'launch', self.project / 'launch')
    for tool in _TOOLS:
      path = shutil.which(tool)
      assert path, f'{tool} is missing'
      (self._bin / tool).symlink_to(path)
    for name in names:
      self.add(self._bin / name)
    self.env = {'PATH': str(self._bin), 'POLL_SECS': '0', 'HOME': str(folder)}
    self.answer({})

  def add(self, path: pathlib.Path) -> None:
    """Makes a stand-in at a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
      _PROGRAM.format(python=sys.executable, folder=str(self._folder))
    )
    path.chmod(0o755)

  def answer(self, answers: Mapping[str, Sequence[Answer]]) -> None:
    """Says what is answered to calls that hold these words.

    Args:
      answers: from a part of the command line to the answers, in order; the
        last one is repeated. The first part that is found counts. A call that
        no part is found in gives exit code 0 and no output.
    """
    text = json.dumps(list(answers.items()))
    (self._folder / 'answers.json').write_text(text)

  def command(self, script: str, *arguments: str) -> list[str]:
    """The command line of a script of the copy."""
    return [str(self.project / 'launch' / script), *arguments]

  def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a script to its end."""
    return subprocess.run(
      self.command(script, *arguments),
      env=self.env,
      capture_output=True,
      text=True,
      timeout=60,
    )

  def records(self) -> list[dict]:
    """Each call, in order: its argv and, with --filename=-, its stdin."""
    path = self._folder / 'calls.jsonl'
    if not path.exists():
      return []
    return [json.loads(line) for line in path.read_text().splitlines()]

  def calls(self) -> list[list[str]]:
    """argv of each call, in order."""
    return [record['argv'] for record in self.records()]

  def dry_run(self, script: str, *arguments: str) -> list[list[str]]:
    """argv of each call that --dry-run prints; none may be made."""
    before = self.calls()
    done = self.run(script, '--dry-run', *arguments)
    assert done.returncode == 0, done.stderr
    assert self.calls() == before
    return [shlex.split(line) for line in done.stdout.splitlines()]
