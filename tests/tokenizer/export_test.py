"""The exported tokenizer: one language in trainer, export and artefact."""

import copy
import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from chimera.clones import models
from chimera.data import images
from chimera.optics import poincare
from chimera.system import disk
from chimera.tokenizer import export
from tests import tiny


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tiny.save_tokenizer(tmp_path_factory.mktemp('export') / 'tokenizer')


@pytest.fixture(scope='module')
def pictures():
  """uint8 (12, 16, 16, 3), from flat to wild."""
  rng = np.random.default_rng(0)
  contrast = np.linspace(0, 120, 12)[:, None, None, None]
  noise = rng.normal(size=(12, 16, 16, 3)) * contrast
  return np.clip(128 + noise, 0, 255).astype(np.uint8)


def _artefacts(folder):
  return (
    jax.export.deserialize(bytearray((folder / name).read_bytes()))
    for name in export.ARTEFACTS
  )


def _as_the_trainer_does(parts, pictures):
  """Stage 1, then the tokenizer on its path_params, as two programs."""
  x = images.to_float(pictures)
  paths = jax.jit(lambda v, x: parts.optics.apply(v, x, method='encode'))(
    parts.variables, x
  )
  return jax.jit(
    lambda p, x: parts.tokenizer.apply({'params': p}, x, method='tokenize')
  )(parts.params, poincare.normalize(paths))


FSQ = {'quantizer': 'fsq', 'levels': (16, 15)}


@pytest.mark.parametrize('quantizer', [{}, FSQ], ids=['vq', 'fsq'])
def test_codes_are_identical_in_trainer_export_and_artefact(
  tmp_path, pictures, quantizer
):
  folder = tiny.save_tokenizer(tmp_path / 'tokenizer', **quantizer)
  loaded = export.load(folder)
  encode, decode = _artefacts(folder)
  tokens = np.asarray(loaded.encode(pictures))
  assert tokens.dtype == np.int32
  assert tokens.shape == (12, 2, 2)
  assert len(np.unique(tokens)) > 3
  trained = _as_the_trainer_does(tiny.parts(**quantizer), pictures)
  np.testing.assert_array_equal(tokens, trained)
  x = images.to_float(pictures)
  np.testing.assert_array_equal(tokens, encode.call(x))
  back = loaded.decode(tokens)
  assert back.shape == (12, 16, 16, 3)
  np.testing.assert_allclose(back, decode.call(tokens), atol=1e-5)
  assert np.abs(back).max() <= 1


def test_uint8_and_floats_give_the_same_tokens(folder, pictures):
  loaded = export.load(folder)
  x = images.to_float(pictures)
  np.testing.assert_array_equal(loaded.encode(pictures), loaded.encode(x))


@pytest.mark.parametrize('batch', [1, 3, 12])
def test_any_batch_gives_the_same_tokens(folder, pictures, batch):
  loaded = export.load(folder)
  encode, _ = _artefacts(folder)
  part = pictures[:batch]
  whole = loaded.encode(pictures)[:batch]
  np.testing.assert_array_equal(loaded.encode(part), whole)
  np.testing.assert_array_equal(encode.call(images.to_float(part)), whole)


def test_four_devices_give_the_tokens_and_pixels_of_one(folder, pictures):
  loaded = export.load(folder)
  encode, decode = _artefacts(folder)
  mesh = jax.sharding.Mesh(jax.devices()[:4], 'i')
  over = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('i'))
  x = images.to_float(pictures)
  tokens = np.asarray(loaded.encode(x))
  spread = loaded.encode(jax.device_put(x, over))
  np.testing.assert_array_equal(spread, tokens)
  spread = jax.device_put(jnp.asarray(tokens), over)
  back = loaded.decode(tokens)
  np.testing.assert_allclose(loaded.decode(spread), back, atol=1e-5)
  for device in jax.devices()[:4]:
    there = jax.device_put(x, device)
    np.testing.assert_array_equal(encode.call(there), tokens)
    there = decode.call(jax.device_put(tokens, device))
    np.testing.assert_allclose(there, back, atol=1e-5)


def test_a_tokenizer_of_path_params_needs_no_optics(tmp_path):
  _, paths = tiny.bins_and_paths()
  parts = tiny.parts()._replace(optics=None, variables=None)
  export.save(tmp_path, parts, input_shape=(8, 8, 3), came_from={})
  loaded = export.load(tmp_path)
  assert loaded.grid == (4, 4)
  tokens = loaded.encode(paths[:5])
  expected = parts.tokenizer.apply(
    {'params': parts.params}, poincare.normalize(paths[:5]), method='tokenize'
  )
  np.testing.assert_array_equal(tokens, expected)
  back = np.asarray(loaded.decode(tokens))
  assert back.shape == (5, 8, 8, 3)
  low = np.array([-np.pi, -np.pi / 4, 0])
  high = np.array([np.pi, np.pi / 4, np.pi / 2])
  assert np.all((back >= low - 1e-5) & (back <= high + 1e-5))


def test_loading_needs_neither_tensorflow_nor_the_trainer(folder, pictures):
  np.save(folder.parent / 'pictures.npy', pictures)
  program = f"""
import sys
sys.modules |= dict.fromkeys(
  ['tensorflow', 'tensorboard', 'clu', 'ml_collections', 'skimage',
   'matplotlib', 'PIL'])
import numpy as np
from chimera.tokenizer import export
tokenizer = export.load({str(folder)!r})
pictures = np.load({str(folder.parent / 'pictures.npy')!r})
tokens = tokenizer.encode(pictures)
tokenizer.decode(tokens)
ours = {{n for n in sys.modules if n.count('.') == 2 and n[:8] == 'chimera.'}}
assert ours == {{'chimera.system.axes', 'chimera.system.disk',
                 'chimera.tokenizer.export',
                 'chimera.clones.convolution', 'chimera.clones.models',
                 'chimera.clones.quantizer', 'chimera.clones.terms',
                 'chimera.optics.modules', 'chimera.optics.poincare',
                 'chimera.tokenizer.door'}}, ours
np.save({str(folder.parent / 'tokens.npy')!r}, tokens)
"""
  subprocess.run([sys.executable, '-c', program], check=True)
  tokens = np.load(folder.parent / 'tokens.npy')
  np.testing.assert_array_equal(tokens, export.load(folder).encode(pictures))


def test_the_artefact_runs_where_only_jax_is_installed(folder, pictures):
  x = images.to_float(pictures)
  np.save(folder.parent / 'x.npy', x)
  program = f"""
import sys
sys.modules |= dict.fromkeys(
  ['tensorflow', 'flax', 'optax', 'chex', 'safetensors', 'chimera', 'dm_pix'])
import jax, jax.export, numpy as np
encode, decode = (
  jax.export.deserialize(bytearray(open({str(folder)!r} + name, 'rb').read()))
  for name in ('/encode.stablehlo', '/decode.stablehlo'))
tokens = encode.call(np.load({str(folder.parent / 'x.npy')!r}))
np.save({str(folder.parent / 'tokens.npy')!r}, tokens)
np.save({str(folder.parent / 'back.npy')!r}, decode.call(tokens))
"""
  subprocess.run([sys.executable, '-c', program], check=True)
  loaded = export.load(folder)
  tokens = loaded.encode(x)
  np.testing.assert_array_equal(np.load(folder.parent / 'tokens.npy'), tokens)
  back = np.load(folder.parent / 'back.npy')
  np.testing.assert_allclose(back, loaded.decode(tokens), atol=1e-5)


def test_the_json_says_what_readers_need(folder):
  meta = json.loads((folder / export.META).read_text())
  assert meta['input_shape'] == [16, 16, 3]
  assert meta['grid'] == [2, 2]
  assert meta['tokenizer']['quantizer'] == 'vq'
  assert meta['tokenizer']['codes'] == 16
  assert meta['optics'] == {
    'cell': 4,
    'width': 8,
    'radius': 'contrast',
    'blocks': 3,
  }
  assert '[-1, 1]' in meta['color_range']
  assert meta['came_from'] == {'a': 1}
  assert set(meta['files']) == {export.WEIGHTS, *export.ARTEFACTS}


def test_another_codebook_has_another_digest(folder, tmp_path):
  other = export.load(tiny.save_tokenizer(tmp_path / 'other', seed=1))
  assert other.codebook_digest != export.load(folder).codebook_digest
  one, two = (
    export.load(tiny.save_tokenizer(tmp_path / f'fsq {seed}', seed=seed, **FSQ))
    for seed in (0, 1)
  )
  assert one.codes == two.codes == 240
  assert one.codebook_digest != two.codebook_digest


def test_a_tokenizer_from_before_there_was_a_choice_is_read(folder, tmp_path):
  old = shutil.copytree(folder, tmp_path / 'old')
  meta = disk.read_sealed(old / export.META)
  del meta['tokenizer']['quantizer']
  disk.write_sealed(old / export.META, meta)
  assert meta['tokenizer'] == {
    'width': 8,
    'blocks': 1,
    'downsample': 2,
    'codes': 16,
    'code_dim': 4,
  }
  ours, theirs = export.load(folder), export.load(old)
  assert theirs.parts.tokenizer == ours.parts.tokenizer
  assert theirs.codebook_digest == ours.codebook_digest


@pytest.mark.parametrize(
  'name', [export.META, export.WEIGHTS, *export.ARTEFACTS]
)
def test_a_flipped_bit_anywhere_is_noticed(tmp_path, name):
  folder = tiny.save_tokenizer(tmp_path / 'tokenizer')
  path = folder / name
  whole = path.read_bytes()
  rng = np.random.default_rng(0)
  for place in rng.integers(len(whole), size=20):
    data = bytearray(whole)
    data[place] ^= 1 << int(rng.integers(8))
    if name == export.META and _means_the_same(data, whole):
      continue
    path.write_bytes(data)
    with pytest.raises(ValueError, match='not a whole tokenizer'):
      export.load(folder)
  for data in (whole[: len(whole) // 2], b'', whole + b'x'):
    path.write_bytes(data)
    with pytest.raises(ValueError, match='not a whole tokenizer'):
      export.load(folder)
  path.unlink()
  with pytest.raises(ValueError, match='tokenizer'):
    export.load(folder)
  path.write_bytes(whole)
  export.load(folder)


def _means_the_same(data, whole):
  """A blank may become another blank."""
  try:
    return json.loads(data) == json.loads(whole)
  except ValueError:
    return False


def test_another_format_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(export, 'FORMAT', 2)
  folder = tiny.save_tokenizer(tmp_path)
  monkeypatch.setattr(export, 'FORMAT', 1)
  with pytest.raises(ValueError, match='format 2, and this reads 1'):
    export.load(folder)


def _spoilt(pictures):
  """float32 images, of which the second and the last are none."""
  x = np.array(images.to_float(pictures))
  x[1, 3, 3, 0] = np.nan
  x[-1, 0, 0, 2] = 1.1
  return x


@pytest.mark.parametrize('quantizer', [{}, FSQ], ids=['vq', 'fsq'])
def test_in_jit_and_artefact_what_is_no_image_has_no_tokens(
  tmp_path, pictures, quantizer
):
  folder = tiny.save_tokenizer(tmp_path / 'tokenizer', **quantizer)
  loaded = export.load(folder)
  x = _spoilt(pictures)
  expected = np.array(loaded.encode(pictures))
  assert expected.min() >= 0
  expected[[1, -1]] = -1
  encode, _ = _artefacts(folder)
  for tokens in (
    jax.jit(loaded.encode)(x),
    jax.jit(lambda x: loaded.encode(list(x)))(x),
    jax.vmap(lambda image: loaded.encode(image[None])[0])(jnp.asarray(x)),
    encode.call(x),
  ):
    np.testing.assert_array_equal(tokens, expected)
  for bring in (np.asarray, jnp.asarray, list):
    with pytest.raises(ValueError, match=r'in \[-1, 1\], got NaN as float32'):
      loaded.encode(bring(x))


@pytest.mark.parametrize('quantizer', [{}, FSQ], ids=['vq', 'fsq'])
def test_in_jit_and_artefact_what_is_no_token_has_no_pixels(
  tmp_path, quantizer
):
  folder = tiny.save_tokenizer(tmp_path / 'tokenizer', **quantizer)
  loaded, v = export.load(folder), export.load(folder).codes
  tokens = np.arange(20).reshape(5, 2, 2) % v
  whole = np.asarray(loaded.decode(tokens))
  assert np.isfinite(whole).all()
  tokens[1, 0, 1], tokens[2, 1, 1], tokens[4, 0, 0] = -1, v, 10 * v
  _, decode = _artefacts(folder)
  for back in (
    jax.jit(loaded.decode)(tokens),
    jax.jit(loaded.decode)(tokens.astype(np.int16)),
    jax.vmap(lambda t: loaded.decode(t[None])[0])(jnp.asarray(tokens)),
    decode.call(tokens.astype(np.int32)),
  ):
    assert np.isnan(back[np.array([1, 2, 4])]).all()
    np.testing.assert_allclose(back[np.array([0, 3])], whole[[0, 3]], atol=1e-5)
  for bring in (np.asarray, jnp.asarray, list):
    with pytest.raises(ValueError, match=rf'\[0, {v}\), got -1 to {10 * v}'):
      loaded.decode(bring(tokens))


def test_the_door_changes_no_bit_of_the_pixels(folder):
  loaded, parts = export.load(folder), tiny.parts()

  @jax.jit
  def plain(params, variables, tokens):
    x = parts.tokenizer.apply({'params': params}, tokens, method='detokenize')
    paths = poincare.denormalize(x)
    return parts.optics.apply(variables, paths, method='decode')

  tokens = np.random.default_rng(0).integers(0, 16, (12, 2, 2)).astype(np.int32)
  back = plain(parts.params, parts.variables, tokens)
  np.testing.assert_array_equal(loaded.decode(tokens), back)


def test_any_precision_has_the_tokens_of_its_float32(folder, pictures):
  loaded = export.load(folder)
  for dtype in ('>f4', np.float16, jnp.bfloat16, np.float64):
    x = images.to_float(pictures).astype(dtype)
    expected = loaded.encode(x.astype(np.float32))
    np.testing.assert_array_equal(loaded.encode(x), expected)
    if dtype in (np.float16, jnp.bfloat16):
      for encode in (loaded.encode, jax.jit(loaded.encode)):
        np.testing.assert_array_equal(encode(jnp.asarray(x)), expected)
  with jax.enable_x64():
    wide = jnp.asarray(x)
    assert wide.dtype == np.float64
    np.testing.assert_array_equal(loaded.encode(wide), expected)
    np.testing.assert_array_equal(jax.jit(loaded.encode)(wide), expected)
    np.testing.assert_array_equal(loaded.encode(x), expected)


def test_a_batch_of_unknown_size_passes_the_door(folder, pictures):
  loaded = export.load(folder)
  x = jax.ShapeDtypeStruct((*jax.export.symbolic_shape('b'), 16, 16, 3), 'f4')
  exported = jax.export.export(jax.jit(loaded.encode))(x)
  x = images.to_float(pictures)
  np.testing.assert_array_equal(exported.call(x), loaded.encode(x))


def test_copies_have_the_same_tokens_here_and_in_another_process(
  folder, pictures
):
  loaded = export.load(folder)
  tokens = np.asarray(loaded.encode(pictures))
  data = pickle.dumps(loaded)
  # The parameters, and nothing that was compiled.
  assert len(data) < 2 * (folder / export.WEIGHTS).stat().st_size
  for copied in (pickle.loads(data), copy.deepcopy(loaded), copy.copy(loaded)):
    np.testing.assert_array_equal(copied.encode(pictures), tokens)
    assert copied.codebook_digest == loaded.codebook_digest
  with multiprocessing.get_context('spawn').Pool(1) as pool:
    there = pool.apply(loaded.encode, (pictures,))
  np.testing.assert_array_equal(there, tokens)


def test_what_is_no_image_and_no_token_is_refused(folder, pictures):
  loaded = export.load(folder)
  with pytest.raises(ValueError, match=r'\(B, 16, 16, 3\), got \(16, 16, 3\)'):
    loaded.encode(pictures[0])
  with pytest.raises(ValueError, match='crop or resize'):
    loaded.encode(pictures[:, :8])
  with pytest.raises(ValueError, match='got dtype = int32'):
    loaded.encode(pictures.astype(np.int32))
  with pytest.raises(ValueError, match=r'\(B, 2, 2\), got \(2, 2\)'):
    loaded.decode(np.zeros((2, 2), np.int32))
  with pytest.raises(ValueError, match='integers'):
    loaded.decode(np.zeros((1, 2, 2), np.float32))
  with pytest.raises(ValueError, match=r'in \[0, 16\), got 0 to 16'):
    loaded.decode(np.array([[[0, 1], [2, 16]]]))


def test_the_codebook_in_the_file_is_the_trained_one(folder):
  book = export.load(folder).parts.params['codebook']
  np.testing.assert_array_equal(book, tiny.parts().params['codebook'])
  assert isinstance(export.load(folder).parts.tokenizer, models.Tokenizer)
