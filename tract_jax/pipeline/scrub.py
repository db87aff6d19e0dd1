"""Secrets, kept out of everything that is printed or written.

What counts as one, whoever put it there:

  an environment variable's value   whose name says so: HF_TOKEN, WANDB_API_KEY
  of an address                     https://USER:PASSWORD@host, ...?token=SECRET
  of a known form                   hf_..., ghp_..., AKIA..., AIza..., ya29...

A configuration or a workdir that holds one is refused before anything is
written; lines for people are printed without it.
"""

import os
import re
import sys
import traceback
import types as python_types

_SHOWN = '[secret]'
_NAME = re.compile(r'(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|KEY)S?$', re.I)
# Shorter values are words such as "true", which other texts hold, too.
_LEAST_CHARS = 8
_END = r'[^&#\s,\'"]'
_FORMS = re.compile(
  # User and password of an address.
  r'(?<=://)[^/?#\s,\'"@]+(?=@)'
  # Its parameters, such as access_token and X-Goog-Signature.
  r'|(?<=[?&])(?P<name>[\w.-]*(?:token|secret|password|key|sig|signature'
  rf'|credential)=){_END}+'
  r'|(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20,}|gh[opsur]_[A-Za-z0-9]{20,}'
  r'|github_pat_\w{20,}|AKIA[A-Z0-9]{16}|AIza[\w-]{30,}|ya29\.[\w-]{20,})',
  re.I,
)
ADVICE = (
  'holds what looks like a password or a token, and would be written to files '
  'and logs; log in by the environment instead, as with HF_TOKEN'
)


def scrubbed(text: str) -> str:
  """A text without secrets.

  Args:
    text: for people.

  Returns:
    The same, with "[secret]" in the place of each.

  Example:
    >>> scrubbed('gs://me:password@bucket/rows.json')
    'gs://[secret]@bucket/rows.json'
  """
  values = [
    value
    for name, value in os.environ.items()
    if _NAME.search(name) and len(value) >= _LEAST_CHARS
  ]
  for value in sorted(values, key=len, reverse=True):
    text = text.replace(value, _SHOWN)
  return _FORMS.sub(lambda match: f'{match["name"] or ""}{_SHOWN}', text)


def holds_secret(text: str) -> bool:
  """Whether `scrubbed` finds any."""
  return scrubbed(text) != text


def print_exception(
  kind: type[BaseException],
  error: BaseException,
  trace: python_types.TracebackType | None,
) -> None:
  """As Python prints an error that nobody caught, without secrets.

  Args:
    kind, error, trace: as of sys.excepthook.
  """
  lines = traceback.format_exception(kind, error, trace)
  print(scrubbed(''.join(lines)), end='', file=sys.stderr)
