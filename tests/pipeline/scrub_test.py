"""What counts as a secret, and what does not."""

import sys

import pytest

from tract_jax.pipeline import scrub


@pytest.fixture(autouse=True)
def environment(monkeypatch):
  monkeypatch.setenv('WANDB_API_KEY', 'f00d' * 10)
  monkeypatch.setenv('MY_PASSWORD', 'correct horse battery')
  monkeypatch.setenv('SHORT_TOKEN', 'true')
  monkeypatch.setenv('TOKENIZERS_PARALLELISM', 'false false')
  monkeypatch.setenv('HF_TOKEN_PATH', '/home/me/token')


@pytest.mark.parametrize(
  ('text', 'shown'),
  [
    ('key ' + 'f00d' * 10 + '!', 'key [secret]!'),
    ('a correct horse battery', 'a [secret]'),
    ('hf_' + 'aB3' * 11, '[secret]'),
    ('(ghp_' + 'a' * 36 + ')', '([secret])'),
    ('gs://me:it@bucket/x', 'gs://[secret]@bucket/x'),
    ('a=s3://key@b/x,b=/y', 'a=s3://[secret]@b/x,b=/y'),
    ('https://h/x?a=1&token=it&b=2', 'https://h/x?a=1&token=[secret]&b=2'),
    (
      'https://h/x?X-Goog-Signature=1f',
      'https://h/x?X-Goog-Signature=[secret]',
    ),
    ("'https://h/x?sig=1f'", "'https://h/x?sig=[secret]'"),
  ],
)
def test_secrets(text, shown):
  assert scrub.scrubbed(text) == shown
  assert scrub.holds_secret(text)
  assert scrub.scrubbed(shown) == shown


@pytest.mark.parametrize(
  'text',
  [
    '',
    'true false false /home/me/token',
    'org/name@' + '0123456789' * 4,
    'hf://datasets/org/name@' + 'a1' * 20 + '/train.json',
    'gs://bucket/a@b/x.json',
    'hf_datasets/key=value',
    'So the overall score is 5? sig=no',
    'f00d',
  ],
)
def test_what_is_none(text):
  assert scrub.scrubbed(text) == text
  assert not scrub.holds_secret(text)


def test_error_that_nobody_caught_is_printed_without_secrets(capsys):
  try:
    raise RuntimeError('gs://me:hunter2@bucket')
  except RuntimeError:
    scrub.print_exception(*sys.exc_info())
  printed = capsys.readouterr().err
  assert printed.startswith('Traceback') and printed.endswith('\n')
  assert 'RuntimeError: gs://[secret]@bucket' in printed
  # The line of the source is of this test, where it stands, too.
  assert 'hunter2' not in printed
