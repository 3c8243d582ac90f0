"""The exported tokenizer: one language in trainer, export and artefact."""

import copy
import errno
import functools
import json
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from chimera.clones import models
from chimera.data import images
from chimera.optics import poincare
from chimera.system import disk
from chimera.tokenizer import export, windows
from tests import tiny


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  home = tmp_path_factory.mktemp('export') / 'tokenizer'
  return tiny.save_tokenizer(home, artefacts=True)


@pytest.fixture(scope='module')
def older(tmp_path_factory):
  """From before pictures were of any size."""
  home = tmp_path_factory.mktemp('older') / 'tokenizer'
  return tiny.save_tokenizer(home, artefacts=True, **tiny.OLDER)


@pytest.fixture(scope='module')
def pictures():
  """uint8 (12, 16, 16, 3), from flat to wild."""
  rng = np.random.default_rng(0)
  contrast = np.linspace(0, 120, 12)[:, None, None, None]
  noise = rng.normal(size=(12, 16, 16, 3)) * contrast
  return np.clip(128 + noise, 0, 255).astype(np.uint8)


def _artefacts(folder):
  return [_opened((folder / name).read_bytes()) for name in export.ARTEFACTS]


@functools.cache  # so that it is compiled once for each size
def _opened(data):
  return jax.export.deserialize(bytearray(data))


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
  folder = tmp_path / 'tokenizer'
  tiny.save_tokenizer(folder, artefacts=True, **quantizer)
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
  np.testing.assert_allclose(loaded.decode(tokens[0]), back[0], atol=1e-5)
  for f in (loaded.look, loaded.reconstruct):
    with pytest.raises(ValueError, match='of path_params and sees no images'):
      f(np.zeros((8, 8, 3), np.uint8))
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
                 'chimera.clones.convolution', 'chimera.clones.layer_norm',
                 'chimera.clones.models',
                 'chimera.clones.quantizer', 'chimera.clones.terms',
                 'chimera.optics.modules', 'chimera.optics.poincare',
                 'chimera.tokenizer.door', 'chimera.tokenizer.windows'}}, ours
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
    'radius': 'local',
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


def test_a_tokenizer_from_before_there_was_a_choice_is_read(
  older, pictures, tmp_path
):
  old = shutil.copytree(older, tmp_path / 'old')
  meta = disk.read_sealed(old / export.META)
  for later in ('quantizer', 'norm', 'border'):
    del meta['tokenizer'][later]
  disk.write_sealed(old / export.META, meta)
  assert meta['tokenizer'] == {
    'width': 8,
    'blocks': 1,
    'downsample': 2,
    'codes': 16,
    'code_dim': 4,
  }
  ours, theirs = export.load(older), export.load(old)
  assert theirs.parts.tokenizer == ours.parts.tokenizer
  assert theirs.parts.tokenizer.norm == 'group'
  assert theirs.codebook_digest == ours.codebook_digest
  tokens = np.asarray(theirs.encode(pictures))
  trained = _as_the_trainer_does(tiny.parts(**tiny.OLDER), pictures)
  np.testing.assert_array_equal(tokens, trained)


@pytest.mark.parametrize(
  'name', [export.META, export.WEIGHTS, *export.ARTEFACTS]
)
def test_a_flipped_bit_anywhere_is_noticed(tmp_path, name):
  folder = tiny.save_tokenizer(tmp_path / 'tokenizer', artefacts=True)
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


@pytest.mark.parametrize('room', range(len(export.ARTEFACTS) + 2))
def test_a_disk_that_fills_up_leaves_the_tokenizer_that_was_there(
  tmp_path, monkeypatch, room
):
  folder = tiny.save_tokenizer(tmp_path / 'tokenizer')
  before = {p: p.read_bytes() for p in folder.iterdir()}
  written = []

  def fsync(fd):
    if len(written) == room:
      raise OSError(errno.ENOSPC, 'No space left on device')
    written.append(fd)

  monkeypatch.setattr(os, 'fsync', fsync)
  with pytest.raises(OSError, match='No space left'):
    export.save(
      folder, tiny.parts(seed=1), input_shape=(16, 16, 3), came_from={}
    )
  assert {p: p.read_bytes() for p in folder.iterdir()} == before


def test_what_the_device_raises_is_not_blamed_on_the_files(
  tmp_path, monkeypatch
):
  folder = tiny.save_tokenizer(tmp_path / 'tokenizer')

  def asarray(_):
    raise RuntimeError('RESOURCE_EXHAUSTED: out of memory')

  monkeypatch.setattr(export.jnp, 'asarray', asarray)
  with pytest.raises(RuntimeError, match='RESOURCE_EXHAUSTED'):
    export.load(folder)


def test_what_may_not_be_read_is_said_to_be_that(tmp_path, monkeypatch):
  folder = tiny.save_tokenizer(tmp_path / 'tokenizer')

  def read_sealed(path):
    raise PermissionError(errno.EACCES, 'Permission denied', str(path))

  monkeypatch.setattr(export.disk, 'read_sealed', read_sealed)
  with pytest.raises(ValueError, match=r'cannot be read: .*Permission denied'):
    export.load(folder)


def _means_the_same(data, whole):
  """A blank may become another blank."""
  try:
    return json.loads(data) == json.loads(whole)
  except ValueError:
    return False


def test_another_format_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(export, 'FORMAT', 2)
  export.save(tmp_path, tiny.parts(), input_shape=(16, 16, 3), came_from={})
  monkeypatch.setattr(export, 'FORMAT', 1)
  with pytest.raises(ValueError, match='format 2, and this reads 1'):
    export.load(tmp_path)


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
  folder = tmp_path / 'tokenizer'
  tiny.save_tokenizer(folder, artefacts=True, **quantizer)
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
  folder = tmp_path / 'tokenizer'
  tiny.save_tokenizer(folder, artefacts=True, **quantizer)
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


def test_products_are_exact_on_any_device(folder, pictures):
  """A TPU rounds them to bfloat16, and a GPU to TF32, where nothing is said."""
  loaded = export.load(folder)
  tokens = loaded.encode(pictures)
  for f, x in (
    (loaded.encode, images.to_float(pictures)),
    (loaded.decode, tokens),
  ):
    jaxpr = str(jax.make_jaxpr(f)(jnp.asarray(x)))
    said = re.findall(r'precision=(\w[\w.]*|\([^)]*\))', jaxpr)
    assert len(said) > 4
    assert all('HIGHEST' in word for word in said), set(said)
  for artefact in _artefacts(folder):
    text = artefact.mlir_module()
    found = re.findall(r'stablehlo\.(?:convolution|dot_general).*', text)
    assert len(found) > 4
    assert all('HIGHEST' in line for line in found)


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
  for shape in ((1, 16, 12, 3), (17, 16, 3), (16, 16), (16, 16, 4), (0, 8, 3)):
    with pytest.raises(ValueError, match=r'H and W multiples of 8, got') as e:
      loaded.encode(np.zeros(shape, np.uint8))
    assert '\n' not in str(e.value)
  for shape in ((16, 16), (1, 16, 16, 3), (9, 9, 4), (0, 8, 3)):
    with pytest.raises(ValueError, match=r'one image \(H, W, 3\), got') as e:
      loaded.reconstruct(np.zeros(shape, np.uint8))
    assert '\n' not in str(e.value)
  with pytest.raises(ValueError, match='mode RGB, got YCbCr'):
    loaded.reconstruct(Image.new('YCbCr', (16, 16)))
  with pytest.raises(ValueError, match='got dtype = int32'):
    loaded.encode(pictures.astype(np.int32))
  with pytest.raises(ValueError, match=r'\(H, W\) or .*, got \(4,\)'):
    loaded.decode(np.zeros(4, np.int32))
  with pytest.raises(ValueError, match='integers'):
    loaded.decode(np.zeros((1, 2, 2), np.float32))
  with pytest.raises(ValueError, match=r'in \[0, 16\), got 0 to 16'):
    loaded.decode(np.array([[[0, 1], [2, 16]]]))


def test_the_codebook_in_the_file_is_the_trained_one(folder):
  book = export.load(folder).parts.params['codebook']
  np.testing.assert_array_equal(book, tiny.parts().params['codebook'])
  assert isinstance(export.load(folder).parts.tokenizer, models.Tokenizer)


def _loaded(**settings):
  """A tokenizer with numbers in all its parameters, in memory."""
  meta = {'image_size': 16, 'grid': [2, 2], 'codebook_digest': ''}
  return export.Tokenizer(tiny.grown(tiny.parts(**settings)), meta)


def _photograph(height, width, seed=0):
  """uint8, flat in one corner and wild in another."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:height, :width] / max(height, width)
  wild = 90 * (x * y)[..., None] * rng.normal(size=(height, width, 3))
  smooth = 60 * np.sin(9 * x + 5 * y)[..., None] * rng.uniform(-1, 1, 3)
  return np.clip(128 + smooth + wild, 0, 255).astype(np.uint8)


@pytest.fixture(
  scope='module',
  params=[(1, 'zeros'), (2, 'zeros'), (2, 'mean')],
  ids=['token=4', 'token=8', 'framed'],
)
def wide(request):
  """A tokenizer; a picture of more than its window, its tokens and pixels."""
  downsample, border = request.param
  loaded = _loaded(downsample=downsample, border=border)
  side = loaded.side
  picture = _photograph(38 * side, 55 * side)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(export, '_WINDOW', 99)
    tokens = np.asarray(loaded.encode(picture))
    pixels = np.asarray(loaded.decode(tokens))
  return loaded, picture, tokens, pixels


def test_tokens_and_pixels_do_not_depend_on_the_window(wide, monkeypatch):
  loaded, picture, tokens, pixels = wide
  assert tokens.shape == (38, 55)
  assert pixels.shape == picture.shape
  assert len(np.unique(tokens)) > 5
  assert pixels.std() > 0.1
  monkeypatch.setattr(export, '_WINDOW', 1)  # then it is four times the reach
  shapes, apply = [], windows.apply

  def look(f, x, **how):
    def g(part):
      shapes.append(part.shape)
      return f(part)

    return apply(g, x, **how)

  monkeypatch.setattr(windows, 'apply', look)
  np.testing.assert_array_equal(loaded.encode(picture), tokens)
  assert len(shapes) > 1
  assert max(max(shape[1:3]) for shape in shapes) < 55 * loaded.side
  np.testing.assert_allclose(loaded.decode(tokens), pixels, atol=1e-5)
  # Of a device's array, too.
  np.testing.assert_array_equal(loaded.encode(jnp.asarray(picture)), tokens)


def test_what_is_seen_of_the_whole_image_is_not_cut(older, monkeypatch):
  monkeypatch.setattr(export, '_WINDOW', 1)
  monkeypatch.setattr(windows, 'apply', None)
  loaded = export.load(older)
  assert export.reach(loaded.parts) == (None, None)
  x = _photograph(16, 40)
  assert loaded.decode(loaded.encode(x)).shape == x.shape
  # With one of the two.
  assert export.reach(tiny.parts(radius='contrast')) == (None, 9)
  assert export.reach(tiny.parts(norm='group')) == (None, None)


def test_an_image_of_one_color_has_tokens_of_one_kind():
  """Whatever the optics' carrier makes of it."""
  kinds = {}
  for border in ('mean', 'zeros'):
    loaded = _loaded(border=border)
    gray = np.full((12 * loaded.side, 10 * loaded.side, 3), 90, np.uint8)
    kinds[border] = len(np.unique(loaded.encode(gray)))
  assert kinds['mean'] == 1
  assert kinds['zeros'] > 1


def _seen(parts, tokens_along, axis):
  """By distance in tokens: what a pixel changes, and what a token changes.

  NaN goes wherever anything goes, at any strength. Along a strip of tokens, of
  one pixel, or one token, in its middle. Both as two sets, of the distances at
  which there are tokens, or pixels, that it reaches.
  """
  side = export._side(parts)
  middle = tokens_along // 2
  shape = (tokens_along, 1) if axis == 0 else (1, tokens_along)

  @jax.jit
  def encode(x):
    paths = parts.optics.apply(parts.variables, x, method='encode')
    codes, _ = parts.tokenizer.apply(
      {'params': parts.params},
      *(poincare.normalize(paths), jnp.zeros((1, 2, 2, 3))),
      method='quantize',
    )
    return codes.z_BxhxwxD

  by_pixel = set()
  for place in (side * middle, side * middle + side - 1):
    x = np.zeros((1, side * shape[0], side * shape[1], 3), np.float32)
    at = (place, 0) if axis == 0 else (0, place)
    x[(0, *at, 0)] = np.nan
    is_lost = np.isnan(np.asarray(encode(x))).any(-1).ravel()
    by_pixel |= set(np.flatnonzero(is_lost) - middle)
  book = parts.params['codebook'].copy()
  book[1] = np.nan
  spoilt = parts._replace(params={**parts.params, 'codebook': book})
  tokens = np.zeros((1, *shape), np.int32)
  tokens.flat[middle] = 1
  pixels = np.asarray(jax.jit(lambda t: export.decode(spoilt, t))(tokens))
  is_lost = np.isnan(pixels[0]).any((1 - axis, 2))
  by_token = set(np.flatnonzero(is_lost) // side - middle)
  return by_pixel, by_token


@pytest.mark.parametrize(('downsample', 'axis'), [(1, 0), (2, 1), (4, 0)])
def test_as_far_as_it_is_said_to_see_it_sees_and_no_farther(downsample, axis):
  parts = tiny.parts(downsample=downsample)
  encoder, decoder = export.reach(parts)
  by_pixel, by_token = _seen(parts, 2 * max(encoder, decoder) + 7, axis)
  assert by_pixel == set(range(-encoder, encoder + 1))
  assert by_token == set(range(-decoder, decoder + 1))


def test_the_reach_of_the_default_is_what_was_worked_out_by_hand():
  # Encoder 1 + 2 + 2 + 4 at the cells and 2 cells, 4 * 2 at the tokens of 2;
  # optics 6, of three blocks. Decoder 2 + 4 * 2 + 2 + 1; optics 1 + 1 + 6 + 1.
  parts = tiny.parts()
  assert parts.tokenizer.reach == (1 + 2 + 2 + 4, 2 + 4 + 2 + 1)
  assert parts.optics.reach == (6, 9)
  assert export.reach(parts) == (8, 9)


@pytest.mark.parametrize('made', ['folder', 'older'])
def test_artefacts_take_any_size(made, request):
  home = request.getfixturevalue(made)
  loaded = export.load(home)
  encode, decode = _artefacts(home)
  for height, width in ((8, 8), (16, 40)):
    x = _photograph(height, width)
    tokens = np.asarray(loaded.encode(x))
    assert tokens.shape == (height // 8, width // 8)
    as_float = images.to_float(x[None])
    np.testing.assert_array_equal(encode.call(as_float), tokens[None])
    back = np.asarray(loaded.decode(tokens))
    assert back.shape == x.shape
    found = decode.call(tokens[None])
    np.testing.assert_allclose(found, back[None], atol=1e-5)
    # An image is what it is in a batch of one.
    np.testing.assert_array_equal(loaded.encode(x[None]), tokens[None])
    np.testing.assert_array_equal(loaded.decode(tokens[None]), back[None])


@pytest.mark.parametrize('size', [(37, 53), (1, 1), (7, 3)])
def test_a_picture_of_any_size_comes_back(size):
  loaded = _loaded()
  picture = _photograph(*size)
  back = loaded.reconstruct(picture)
  assert back.shape == picture.shape
  assert back.dtype == np.uint8
  # Mirrored by hand: the last row once more, then the last but one.
  height, width = (-(-n // 8) * 8 for n in size)
  rows, columns = (
    [[*range(n), *range(n - 1, -1, -1)][i % (2 * n)] for i in range(m)]
    for n, m in zip(size, (height, width))
  )
  padded = picture[rows][:, columns]
  whole = np.asarray(loaded.decode(loaded.encode(padded[None])))[0]
  expected = (whole[: size[0], : size[1]].astype(np.float64) + 1) * 127.5
  assert np.abs(back - expected).max() <= 0.51
  np.testing.assert_array_equal(
    loaded.reconstruct(Image.fromarray(picture)), back
  )


def test_of_images_of_many_sizes_few_programs_are_kept(monkeypatch):
  monkeypatch.setattr(export, '_PROGRAMS', 2)
  traced = []
  program = export._Program(lambda params, variables, x: traced.append(0) or x)
  for size in (1, 2, 1, 2, 3, 3, 1):
    x = np.full((size, 2), size, np.float32)
    np.testing.assert_array_equal(program(None, None, x), x)
  # 1, 2, and anew 3, 1.
  assert len(traced) == 4
