"""Damaged image files: read as Pillow reads them, or skipped with a reason.

Three processes read each: ours; Pillow, strict; and Pillow, which takes what it
can get. What ours reads is what strict Pillow reads; where that refuses, it is
what lenient Pillow makes of it, or what was there before the damage.
"""

import functools
import hashlib
import io
import json
import os
import pathlib
import re
import resource
import select
import struct
import subprocess
import sys
import time
import zlib

import hypothesis
from hypothesis import strategies as st
import numpy as np
from PIL import ExifTags, Image, ImageFile, PngImagePlugin
import pytest

from chimera.data import images
from tests import sweep

ROOT = pathlib.Path(__file__).parent.parent.parent
SECONDS = 10
MOST = 2**30  # bytes that a process may ever hold
# The only files that strict Pillow reads and ours does not.
STRICTER = {
  'PNG': r'the checksum of its [A-Za-z]{4} is wrong',
  'JPEG': r'it ends too soon: .* (rows|scans) are there',
  'MPO': r'it ends too soon: .* (rows|scans) are there',
  'TIFF': r'it ends too soon: .* pixels are there|pixels cannot be in',
  'WEBP': r'pixels cannot be in',
}


def _adam7(pixels):
  """A PNG in seven passes, which Pillow does not write."""
  height, width, _ = pixels.shape
  data = b''
  for top, left, down, right in (
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
    *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
  ):
    for row in pixels[top::down, left::right]:
      data += b'\0' + row.tobytes()
  chunks = b'\x89PNG\r\n\x1a\n'
  header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 1)
  for kind, body in (
    *((b'IHDR', header), (b'IDAT', zlib.compress(data)), (b'IEND', b'')),
  ):
    checksum = zlib.crc32(kind + body)
    chunks += struct.pack('>I4s', len(body), kind) + body
    chunks += struct.pack('>I', checksum)
  return chunks


@functools.cache
def _files():
  """(format, bytes) of whole files."""
  rng = np.random.default_rng(0)
  rows, columns = np.mgrid[:40, :48]
  smooth = np.stack([rows * 6, columns * 5, rows + columns], -1)
  pixels = (smooth + rng.integers(0, 20, smooth.shape)).clip(0, 255)
  image = Image.fromarray(pixels.astype(np.uint8))
  alpha = image.copy()
  alpha.putalpha(image.getchannel(0))
  gray = image.convert('L')
  deep = Image.fromarray(np.asarray(gray, np.uint16) * 257)
  real = Image.fromarray(np.asarray(gray, np.float32) / 255)
  palette = image.quantize(16)
  palette.info['transparency'] = 3
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 6
  exif[ExifTags.Base.Artist] = 'who it was'
  text = PngImagePlugin.PngInfo()
  text.add_text('Comment', 'y' * 500, zip=True)
  text.add_itxt('XML:com.adobe.xmp', '<a tiff:Orientation="8"/>', zip=True)
  others = dict(save_all=True, append_images=[image.rotate(90), image])
  long = dict(pnginfo=PngImagePlugin.PngInfo())
  long['pnginfo'].add_itxt('XML:com.adobe.xmp', 'x' * 2**21, zip=True)
  made = [('PNG', _adam7(np.asarray(image)))]
  for kind, what, options in (
    ('JPEG', image, {}),
    ('JPEG', image, dict(progressive=True, exif=exif, comment=b'said')),
    ('JPEG', gray, dict(optimize=True, quality=30)),
    ('JPEG', image.convert('CMYK'), dict(quality=95)),
    ('JPEG', image, dict(restart_marker_rows=1, subsampling=0)),
    ('MPO', image, dict(append_images=[image], save_all=True)),
    ('PNG', image, dict(pnginfo=text, exif=exif)),
    ('PNG', image, long),
    ('PNG', alpha, {}),
    ('PNG', palette, {}),
    ('PNG', deep, {}),
    ('PNG', image.convert('1'), dict(dpi=(72, 72))),
    ('PNG', image, others),
    ('WEBP', image, {}),
    ('WEBP', image, dict(lossless=True, exif=exif, xmp=b'<a/>')),
    ('WEBP', alpha, {}),
    ('WEBP', image, others),
    ('TIFF', image, {}),
    ('TIFF', image, dict(compression='tiff_lzw', exif=exif)),
    ('TIFF', alpha, dict(compression='tiff_adobe_deflate')),
    ('TIFF', gray, dict(compression='packbits')),
    ('TIFF', image, dict(compression='jpeg')),
    ('TIFF', image.convert('1'), dict(compression='group4')),
    ('TIFF', deep, others | dict(append_images=[deep])),
    ('TIFF', real, dict(compression='tiff_lzw')),
    ('TIFF', palette, {}),
    ('TIFF', image, dict(big_tiff=True)),
  ):
    f = io.BytesIO()
    what.save(f, kind, **options)
    made.append((kind, f.getvalue()))
  return made


def _damage(data, place, kind, value, length):
  """What became of a file."""
  # As often among the first bytes and the last ones as anywhere.
  where, i = place
  places = {
    'first': i % min(300, len(data)),
    'last': len(data) - 1 - i % min(60, len(data)),
    'any': i % len(data),
  }
  at = places[where]
  part = data[at : at + length]
  if kind == 'flip':
    return data[:at] + bytes([data[at] ^ 1 << value % 8]) + data[at + 1 :]
  if kind == 'set':
    return data[:at] + bytes([value]) * len(part) + data[at + len(part) :]
  if kind == 'cut':
    return data[: max(at, 1)]
  if kind == 'drop':
    return data[:at] + data[at + length :] or data
  if kind == 'insert':
    return data[:at] + bytes([value]) * length + data[at:]
  there = value * len(data) // 256
  low, high = min(at, there), max(at, there)
  length = min(length, high - low)
  return (
    data[:low]
    + data[high : high + length]
    + data[low + length : high]
    + data[low : low + length]
    + data[high + length :]
  )


DAMAGES = st.lists(
  st.tuples(
    st.tuples(st.sampled_from(['first', 'last', 'any']), st.integers(0, 2**16)),
    st.sampled_from(['flip', 'flip', 'set', 'cut', 'drop', 'insert', 'swap']),
    st.integers(0, 255),
    st.integers(1, 40),
  ),
  min_size=1,
  max_size=2,
)


class _Reader:
  """A process that reads files; another one after a fault."""

  def __init__(self, role):
    self._role = role
    self._process = None

  def read(self, path):
    """{'pixels': digest} or {'why': reason}, and 'peak', bytes."""
    if self._process is None:
      self._process = subprocess.Popen(
        [sys.executable, '-W', 'ignore', '-m', __spec__.name, self._role],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
      )
      self._process.stdout.readline()  # it is there
    self._process.stdin.write(f'{path}\n'.encode())
    self._process.stdin.flush()
    start = time.monotonic()
    ready, _, _ = select.select([self._process.stdout], [], [], SECONDS)
    line = self._process.stdout.readline() if ready else b''
    if not line:
      said = f'took {time.monotonic() - start:.0f} s, ended with {self.end()}'
      return {'fault': said}
    return json.loads(line)

  def end(self):
    process, self._process = self._process, None
    if process is None:
      return None
    process.stdin.close()
    try:
      return process.wait(1)
    except subprocess.TimeoutExpired:
      process.kill()
      return process.wait()


@pytest.fixture(scope='module')
def readers():
  made = [_Reader(role) for role in ('ours', 'strict', 'lenient')]
  yield made
  for reader in made:
    reader.end()


def _judge(readers, home, kind, whole, damages):
  path, data = home / 'damaged.png', whole
  for damage in damages:
    data = _damage(data, *damage)
  path.write_bytes(data)
  ours, strict, lenient = (reader.read(path) for reader in readers)
  assert 'fault' not in ours, ours
  assert ours['peak'] < MOST, ours
  if 'pixels' in ours:
    if 'pixels' in strict:
      assert ours['pixels'] == strict['pixels']
    else:
      path.write_bytes(whole)
      before = readers[2].read(path)['pixels']
      assert ours['pixels'] in (lenient.get('pixels'), before), strict
      if whole.startswith(data):
        assert ours['pixels'] == before, strict
    return 'read' if 'pixels' in strict else 'mended'
  why = ours['why']
  assert why
  assert '\n' not in why
  assert not re.search(r'_io\.|0x[0-9a-f]{5}|memory', why), why
  if 'pixels' in strict:
    assert re.search(STRICTER.get(kind, '^$'), why), why
    is_jpeg = kind in ('JPEG', 'MPO')
    if is_jpeg and b'\xff\xd9' in data[data.index(b'\xff\xda') :]:
      # An end behind too few scans, or behind too few bits for the last pixels.
      with Image.open(path) as image:
        last = np.unique(np.asarray(image)[-1, -1])
        assert 'progressive' in image.info or last in (127, 128)
  return 'skipped'


@sweep.of(ci=150, long=2000)
@hypothesis.given(which=st.integers(0, len(_files()) - 1), damages=DAMAGES)
def test_a_damaged_file_is_read_as_pillow_does_or_skipped(
  readers, tmp_path_factory, which, damages
):
  kind, data = _files()[which]
  home = tmp_path_factory.getbasetemp()
  verdict = _judge(readers, home, kind, data, damages)
  hypothesis.event(f'{kind} {verdict}')


def test_whole_files_are_read(readers, tmp_path):
  path = tmp_path / 'a.png'
  for kind, data in _files():
    path.write_bytes(data)
    ours, strict, _ = (reader.read(path) for reader in readers)
    if 'pixels' not in strict:
      # What the table of the issue begins with: text that is too long.
      assert kind == 'PNG'
      assert len(data) > 5000
    assert ours['pixels']
    assert ours['pixels'] == strict.get('pixels', ours['pixels'])


def _serve(role):
  """Answers for every path on stdin, a line each."""
  resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))
  ImageFile.LOAD_TRUNCATED_IMAGES = role == 'lenient'
  if role == 'lenient':
    PngImagePlugin.MAX_TEXT_CHUNK = 2**24
  sys.stdout.write('\n')
  sys.stdout.flush()
  for line in sys.stdin:
    try:
      if role == 'ours':
        pixels = images.load_photograph(line.rstrip('\n'))
      else:
        pixels = _of_pillow(line.rstrip('\n'))
      digest = hashlib.sha256(pixels.tobytes()).hexdigest()
      found = {'pixels': [pixels.shape, digest]}
    except Exception as e:
      # Ours promises ValueError alone.
      known = role != 'ours' or isinstance(e, ValueError)
      found = {'why' if known else 'fault': f'{e}'}
    sys.stdout.write(json.dumps(found | {'peak': _peak()}) + '\n')
    sys.stdout.flush()


def _peak():
  """Bytes that this process ever held; 0 where there is no /proc.

  What getrusage says begins with the parent's.
  """
  status = pathlib.Path('/proc/self/status')
  text = status.read_text() if status.exists() else 'VmHWM: 0'
  return int(re.search(r'VmHWM:\s*(\d+)', text)[1]) * 1024


def _of_pillow(path):
  """As uint8 RGB, by another way than ours where there is one."""
  with Image.open(path) as image:
    if image.width * image.height > 2**28:
      raise ValueError('too large')
    image.load()
    try:
      turn = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:
      turn = None
    deep = image.mode[0] in 'IF'
    pixels = image if deep else image.convert('RGBA')
    if not deep and image.has_transparency_data:
      white = Image.new('RGBA', image.size, 'white')
      pixels = Image.alpha_composite(white, pixels)
    pixels = np.asarray(pixels, np.float64)
  if deep:
    tops = (1.01, 255) if image.mode == 'F' else (255, 1023, 4095, 65535)
    if not (pixels.min() >= 0 and pixels.max() <= tops[-1]):
      raise ValueError('no light')
    top = np.floor(next(top for top in tops if pixels.max() <= top))
    pixels = np.rint(pixels / top * 255).clip(0, 255)[..., None].repeat(3, 2)
  pixels = pixels[..., :3].astype(np.uint8)
  if turn in (5, 6, 7, 8):
    pixels = pixels.swapaxes(0, 1)
  if turn in (2, 3, 6, 7):
    pixels = pixels[:, ::-1]
  if turn in (3, 4, 7, 8):
    pixels = pixels[::-1]
  return pixels


if __name__ == '__main__':
  _serve(sys.argv[1])
