"""The Hugging Face hub: what a commit is, and what went wrong, in our words.

A branch or a tag may name something else tomorrow, so whatever comes from the
hub is named by a commit. Messages hold no URL, header or token.
"""

import re
import urllib.parse

import huggingface_hub
from huggingface_hub import constants, errors

from tract_jax import types

ID = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*')
_COMMIT = re.compile(r'[0-9a-f]{40}')


def commit(place: str, given: list[str], missing: str, where: str) -> str:
  """The one commit that is named.

  Args:
    place: begins the message, such as "model.path: 'org/name'".
    given: the revisions that are named, at least one.
    missing: what to say where there is none.
    where: what the user gives the commit's digits to.

  Returns:
    40 hexadecimal digits.

  Raises:
    types.InputError: none, several, or one that is no commit.
  """
  if not given:
    reason = missing
  elif len(set(given)) > 1:
    reason = f'two revisions, {" and ".join(given)}'
  elif not _COMMIT.fullmatch(given[0]):
    reason = f'the revision {given[0]!r} is no full commit id'
  else:
    return given[0]
  raise types.InputError(
    f'{place}: {reason}: give {where} the 40 digits of one commit, since what a'
    ' branch or a tag names may change'
  )


def problem(error: Exception, what: str) -> str:
  """Why something could not be had.

  Args:
    error: of huggingface_hub, or of what it uses.
    what: "model" or "dataset".

  Returns:
    A line without anything secret.
  """
  hub = urllib.parse.urlsplit(constants.ENDPOINT).hostname
  status = getattr(getattr(error, 'response', None), 'status_code', None)
  answer = f' ({hub} answered {status})' if status else ''
  if isinstance(error, errors.GatedRepoError):
    return (
      f'a gated {what}: ask for access on its page, and log in with "hf auth'
      f' login" or HF_TOKEN{answer}'
    )
  if isinstance(error, errors.RepositoryNotFoundError):
    return f'no such {what} on {hub}, or a private one and no access{answer}'
  if isinstance(error, errors.RevisionNotFoundError):
    return f'the {what} has no such commit{answer}'
  if isinstance(error, errors.LocalEntryNotFoundError):
    if huggingface_hub.is_offline_mode():
      why = 'HF_HUB_OFFLINE is set'
    elif isinstance(error.__cause__, errors.HfHubHTTPError):
      return problem(error.__cause__, what)
    else:
      why = f'{hub} cannot be reached'
    return f'{why}, and the {what} is not wholly in {constants.HF_HUB_CACHE}'
  if isinstance(error, OSError) and error.strerror:
    return f'cannot be downloaded: {error.filename or ""} {error.strerror}'
  return f'cannot be downloaded: {type(error).__name__}{answer}'
