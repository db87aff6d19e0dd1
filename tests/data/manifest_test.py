import json

from etils import epath
import numpy as np
import pytest

from tests.pipeline import fake_gcs
from tract_jax import types
from tract_jax.data import manifest


@pytest.mark.parametrize('name', ['tract', 'a.b_c-1', '...', '0'])
def test_names_for_paths_pass(name):
  assert manifest.checked_name(name) == name


@pytest.mark.parametrize(
  'name', ['', '.', '..', 'a/b', '../x', 'a b', 'ä', 'a' * 129]
)
def test_other_names_are_refused(name):
  with pytest.raises(types.InputError, match='used in a path'):
    manifest.checked_name(name)


def test_digest_of_does_not_depend_on_the_order_of_keys():
  assert manifest.digest_of({'a': 1, 'b': [2]}) == manifest.digest_of(
    {'b': (2,), 'a': 1}
  )
  assert manifest.digest_of({'a': 1}) != manifest.digest_of({'a': 1.5})
  # sha256 of the two characters "{}", from the definition.
  assert manifest.digest_of({}) == (
    '44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a'
  )


def test_digest_arrays_sees_name_dtype_shape_and_bytes():
  base = np.arange(6, dtype=np.int32)
  variants = [
    {'a': base},
    {'b': base},
    {'a': base.astype(np.uint32)},
    {'a': base.reshape(2, 3)},
    {'a': base + 1},
    {'a': base, 'b': base},
  ]
  assert len({manifest.digest_arrays(v) for v in variants}) == len(variants)
  strided = np.arange(12, dtype=np.int32)[::2]
  assert manifest.digest_arrays({'a': strided}) == manifest.digest_arrays(
    {'a': strided.copy()}
  )


def test_differences_name_each_field_with_both_values():
  recorded = {'lr': 1e-5, 'model': {'layers': 2, 'dim': 32}, 'gone': None}
  expected = {'lr': 2e-5, 'model': {'layers': 2, 'dim': 64}, 'new': 'x'}
  assert manifest.differences(recorded, expected) == [
    'gone: recorded null, expected nothing',
    'lr: recorded 1e-05, expected 2e-05',
    'model.dim: recorded 32, expected 64',
    'new: recorded nothing, expected "x"',
  ]
  assert not manifest.differences({'a': (1, 2)}, {'a': [1, 2]})


def test_differences_of_long_values_can_be_told_apart():
  (line,) = manifest.differences({'a': 'x' * 500}, {'a': 'x' * 500 + 'y'})
  old, new = line.removeprefix('a: recorded ').split(', expected ')
  assert old != new
  assert len(line) < 400


def test_an_absent_manifest_does_not_match(tmp_path):
  assert not manifest.matches(tmp_path / 'none', 'export', {'seed': 0})
  assert not manifest.is_current(tmp_path / 'none', 'export', {'seed': 0})
  with pytest.raises(types.InputError, match='not finished'):
    manifest.read_results(tmp_path / 'none')


def test_a_manifest_matches_what_it_was_written_with(tmp_path):
  folder = tmp_path / 'schön'
  manifest.write_manifest(folder, 'export', {'grid': (1, 2)}, {'num_rows': 3})
  assert manifest.matches(folder, 'export', {'grid': [1, 2]})
  assert manifest.is_current(folder, 'export', {'grid': [1, 2]})
  assert manifest.read_results(folder) == {'num_rows': 3}
  content = json.loads((folder / 'manifest.json').read_text())
  seal = content.pop('seal')
  assert content == {
    'schema': 2,
    'kind': 'export',
    'finished': True,
    'fingerprint': {'grid': [1, 2]},
    'results': {'num_rows': 3},
  }
  assert seal == manifest.digest_of(content)


def test_what_is_only_begun_is_not_done_but_is_refused_to_others(tmp_path):
  manifest.write_manifest(tmp_path, 'export', {'seed': 0}, finished=False)
  assert not manifest.matches(tmp_path, 'export', {'seed': 0})
  assert not manifest.is_current(tmp_path, 'export', {'seed': 0})
  with pytest.raises(types.InputError, match='seed: recorded 0, expected 1'):
    manifest.matches(tmp_path, 'export', {'seed': 1})
  with pytest.raises(types.InputError, match='not finished'):
    manifest.read_results(tmp_path)


def test_what_may_be_made_anew_is_merely_not_current(tmp_path):
  manifest.write_manifest(tmp_path, 'export', {'seed': 0})
  assert not manifest.is_current(tmp_path, 'export', {'seed': 1})
  assert not manifest.is_current(tmp_path, 'report', {'seed': 0})


def test_another_fingerprint_is_refused_field_by_field(tmp_path):
  manifest.write_manifest(tmp_path, 'export', {'seed': 0, 'model': 'a'})
  with pytest.raises(types.InputError) as error:
    manifest.matches(tmp_path, 'predictions', {'seed': 1, 'model': 'a'})
  assert str(error.value).splitlines() == [
    f'{tmp_path}: kind: recorded "export", expected "predictions"',
    f'{tmp_path}: seed: recorded 0, expected 1',
    f'{tmp_path}: made by another run; choose another --workdir, or delete'
    ' this folder yourself, and what was made from it: self-CoTs, later'
    ' stages, predictions, exports',
  ]


@pytest.mark.parametrize(
  'text',
  [
    '{"schema": 1',
    '[]',
    '{"schema": 2}',
    '{"schema": 1}',
    '{"schema": 1, "kind": "export", "finished": true, "fingerprint": [],'
    ' "results": {}}',
    '{"schema": 1, "fingerprint": {"seed": NaN}}',
    '{"a":' * 100_000,
    '\0',
    '{"seal": NaN}',
    '1e999',
  ],
)
def test_a_damaged_manifest_is_named(tmp_path, text):
  (tmp_path / 'manifest.json').write_text(text)
  with pytest.raises(types.InputError, match=r'manifest\.json: (not|holds)'):
    manifest.matches(tmp_path, 'export', {})


def test_a_manifest_of_an_earlier_schema_is_told(tmp_path):
  content = manifest.sealed({'schema': 1, 'kind': 'export'})
  manifest.write_json_atomic(tmp_path / 'manifest.json', content)
  with pytest.raises(types.InputError, match='not a manifest of schema 2'):
    manifest.matches(tmp_path, 'export', {})


def test_every_changed_value_breaks_a_seal(tmp_path):
  path = tmp_path / 'a.json'
  content = {'x': [1, 2.5, None], 'y': {'ä': 'b\ud800'}, 1: 'one'}
  manifest.write_json_atomic(path, manifest.sealed(content))
  read = {**content, '1': 'one'}
  del read[1]
  assert manifest.unsealed(path) == read
  text = path.read_text()
  for old, new in (('2.5', '2.6'), ('"b', '"c'), ('"x"', '"z"'), ('null', '0')):
    path.write_text(text.replace(old, new))
    with pytest.raises(types.InputError, match=r'a\.json: not as it was'):
      manifest.unsealed(path)
  path.unlink()
  with pytest.raises(types.InputError, match=r'a\.json: cannot be read'):
    manifest.unsealed(path)


def test_what_cannot_be_written_is_told_with_the_room_left(tmp_path):
  (tmp_path / 'file').write_text('')
  path = tmp_path / 'file' / 'a.json'
  with pytest.raises(types.InputError) as error:
    manifest.write_json_atomic(path, {})
  assert str(error.value).startswith(f'{path}: cannot be written: ')
  assert str(error.value).endswith(' MB are free there')


@pytest.fixture(params=['local', 'bucket'])
def folder(request, tmp_path, monkeypatch):
  if request.param == 'local':
    yield epath.Path(tmp_path)
    return
  with fake_gcs.serve(tmp_path, monkeypatch):
    yield epath.Path('gs://bucket/run')


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(folder):
  path = folder / 'a.json'
  manifest.write_json_atomic(path, {'x': 1})
  with pytest.raises(KeyboardInterrupt):
    with manifest.open_atomic(path) as file:
      file.write('half')
      file.flush()
      assert json.loads(path.read_text()) == {'x': 1}
      raise KeyboardInterrupt
  assert json.loads(path.read_text()) == {'x': 1}
  assert [path.name for path in folder.iterdir()] == ['a.json']


def test_json_keeps_lone_surrogates_and_refuses_nan(folder):
  path = folder / 'a.json'
  manifest.write_json_atomic(path, {'ä': 'x\ud800\u2028y'})
  assert json.loads(path.read_bytes()) == {'ä': 'x\ud800\u2028y'}
  with pytest.raises(ValueError, match='not JSON compliant'):
    manifest.write_json_atomic(path, {'x': float('nan')})
  assert 'ä' in json.loads(path.read_bytes())
