"""Some sixty entries of a folder as people have them, or worse.

python -m tests.data.odd_folder FOLDER
"""

import contextlib
import io
import os
import pathlib
import socket
import struct
import sys
import tarfile
from typing import NamedTuple
import zlib

import numpy as np
from PIL import Image, ImageCms

from chimera.data import folders, images

_SIDE = 200  # pixels of the smaller photographs' longer side
_LEVELS = 500
# What a photograph of its own is called, and how it is saved.
_FORMATS = {
  'a.jpg': {},
  'X.JPEG': {},
  'b.PNG': {},
  'c.gif': {},
  'd.avif': {},
  'e.jfif': {'format': 'JPEG'},
  'f.jp2': {},
  'g.ppm': {},
  'h.webp': {},
  'i.bmp': {},
  'j.tiff': {},
  'k.tga': {},
  'name with spaces.png': {},
  'it\'s "quoted".png': {},
  'new\nline.png': {},
  'e\u0301 is two.png': {},  # NFD
  '-dash.png': {},
  '%s [1] {0} $HOME *.png': {},
  os.fsdecode(b'\xff.png'): {},
  'a PNG.jpg': {'format': 'PNG'},
  'nothing behind the name': {'format': 'JPEG'},
  'from the web.jpg_large': {'format': 'JPEG'},
  'sub/sub.png/deeper.png': {},  # a folder that is named like an image
  'profile of XYZ.jpg': {'icc_profile': None},
  'broken profile.jpg': {'icc_profile': b'none'},
  'turned.jpg': {'exif': 6},
}


class Made(NamedTuple):
  """What was written."""

  # Which photograph each image shows, by its path within the folder.
  photographs: dict[str, str]
  skipped: dict[str, str]  # what has an image's name and is none, and why
  left_out: dict[str, int]  # what has another's, by kind


def write(folder):
  """Fills a new folder, and one beside it that it links to."""
  home = pathlib.Path(folder)
  home.mkdir(parents=True)
  shown = {}
  cuts = _cut()
  for name, options in _FORMATS.items():
    image, options = next(cuts), dict(options)
    if 'icc_profile' in options and options['icc_profile'] is None:
      profile = ImageCms.createProfile('XYZ')
      options['icc_profile'] = ImageCms.ImageCmsProfile(profile).tobytes()
    if 'exif' in options:
      turn, options['exif'] = options['exif'], Image.Exif()
      options['exif'][0x0112] = turn
    (home / name).parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):  # macOS takes names of UTF-8 alone
      image.save(home / name, **options)
      shown[name] = name
  for name, image, options in _modes(cuts):
    image.save(home / name, **options)
    shown[name] = name
  for name in _copies(home):
    shown[name] = 'a.jpg'
  shown |= _places(home, cuts)
  skipped, left_out = _others(home)
  return Made(shown, skipped, left_out)


def _cut():
  """Photographs, no two alike."""
  rng = np.random.default_rng(0)
  # Fine textures look alike to nobody, but resized not to themselves either.
  names = [n for n in folders.PHOTOGRAPHS if n[:5] not in ('brick', 'grass')]
  loaded = [images.load_image(images.BUNDLED + name) for name in names]
  for i in range(200):
    whole = loaded[i % len(loaded)]
    width, height = (int(n * rng.uniform(0.4, 0.6)) for n in whole.size)
    left, top = (rng.integers(n // 3) for n in whole.size)
    part = whole.crop((left, top, left + width, top + height))
    part.thumbnail((_SIDE, _SIDE))
    yield part


def _modes(cuts):
  """(name, image, how to save it): values as people have them."""
  gray = [np.asarray(next(cuts).convert('L'), np.float32) for _ in range(6)]
  for i, (name, top) in enumerate((('10', 1023), ('12', 4095), ('16', 65535))):
    deep = np.uint16(gray[i] * (top / 255))
    yield f'{name} bits.png', Image.fromarray(deep), {}
  yield '12 bits.tif', Image.fromarray(np.uint16(gray[3] * (4095 / 255))), {}
  yield 'to 1.tif', Image.fromarray(gray[4] / 255), {}
  yield 'to 255.tif', Image.fromarray(gray[5]), {}
  yield 'cmyk.jpg', next(cuts).convert('CMYK'), {}
  yield 'gray.png', next(cuts).convert('L'), {}
  yield 'bilevel.png', next(cuts).convert('1'), {}
  for mode in ('LA', 'RGBA'):
    clear = next(cuts).convert(mode)
    clear.putalpha(Image.linear_gradient('L').resize(clear.size))
    yield f'{mode}.png', clear, {}
  yield 'clear palette.png', next(cuts).quantize(32), {'transparency': 3}
  for suffix in ('gif', 'png', 'webp'):
    frames = [next(cuts), Image.new('RGB', (50, 50), 'blue').resize((200, 9))]
    others = [frames[1].resize(frames[0].size)]
    options = {'save_all': True, 'append_images': others}
    yield f'animated.{suffix}', frames[0], options


def _copies(home):
  """Names of near copies of a.jpg, and of the same bytes."""
  with Image.open(home / 'a.jpg') as image:
    image.load()
  (home / 'copies').mkdir()
  width, height = image.size
  for name, copy, options in (
    ('half.png', image.resize((width // 2, height // 2)), {}),
    ('twice.jpg', image.resize((2 * width, 2 * height)), {}),
    ('square.jpg', image.resize((128, 128)), {}),
    ('worse.jpg', image, {'quality': 30}),
    ('other.webp', image, {}),
    ('few.gif', image, {}),
  ):
    copy.save(home / 'copies' / name, **options)
    yield f'copies/{name}'
  (home / 'a (1).jpg').write_bytes((home / 'a.jpg').read_bytes())
  (home / 'linked.jpg').symlink_to('a.jpg')
  yield from ('a (1).jpg', 'linked.jpg')


def _places(home, cuts):
  """Images in a linked folder, in a shard, and deep down."""
  beside = home.with_name(f'{home.name} beside')
  beside.mkdir()
  next(cuts).save(beside / 'beside.png')
  (home / 'link').symlink_to(beside)
  (beside / 'back').symlink_to(home)
  with tarfile.open(home / '000000.tar', 'w') as shard:
    for i in range(2):
      f = io.BytesIO()
      next(cuts).save(f, 'JPEG')
      for name, data in ((f'{i}.jpg', f.getvalue()), (f'{i}.cls', b'3')):
        info = tarfile.TarInfo(name)
        info.size = len(data)
        shard.addfile(info, io.BytesIO(data))
  deep = home
  for _ in range(_LEVELS):
    deep /= 'd'
    deep.mkdir()
  next(cuts).save(deep / 'deep.png')
  deep = os.path.relpath(deep / 'deep.png', home)
  names = 'link/beside.png', '000000.tar!0.jpg', '000000.tar!1.jpg', deep
  return {name: name for name in names}


def _others(home):
  """What is no image: skipped by name and reason, and left out by kind."""
  whole = (home / 'a.jpg').read_bytes()
  (home / '.thumbnails').mkdir()
  for name, data in {
    'empty.png': b'',
    'page.jpg': b'<!DOCTYPE html><title>404</title>',
    'text.webp': b'no picture',
    'cut.jpg': whole[: len(whole) // 2],
    'header.png': b'\x89PNG\r\n\x1a\n' + bytes(40),
    'zeros.tif': bytes(2000),
    'huge.png': _huge(20_000, 15_000),
    'broken.tar': bytes(99) + b'x' * 900,
    '._x.png': whole,
    '.hidden.jpg': whole,
    '.thumbnails/a.jpg': whole,
    'labels.txt': b'a cat',
    'notes.TXT': b'a dog',
    'film.mp4': b'\0\0\0\x18ftypmp42',
    'sound.wav': b'RIFF\0\0\0\0WAVE',
    'raw.CR2': b'II*\0\x10\0\0\0CR\x02\0',
    'drawing.svg': b'<svg/>',
    'README': b'read me',
    'photos.zip': b'PK\x03\x04',
  }.items():
    (home / name).write_bytes(data)
  for name, target in {
    'up': '..',
    'here': '.',
    'gone.png': 'nowhere',
    'gone': 'nowhere',
    'itself.png': 'itself.png',
  }.items():
    (home / name).symlink_to(target)
  os.mkfifo(home / 'pipe.png')
  os.mkfifo(home / 'pipe')
  # A path of a socket has some hundred bytes.
  with contextlib.chdir(home), socket.socket(socket.AF_UNIX) as listens:
    listens.bind('socket.jpg')
  no_file, no_link = 'not a file', 'a link to a file that is not there'
  skipped = {
    'empty.png': 'it is empty',
    'page.jpg': "no image that Pillow knows, it begins with b'<!DOC",
    'text.webp': "no image that Pillow knows, it begins with b'no pic",
    'cut.jpg': 'it ends too soon',
    'header.png': 'its header is broken',
    'zeros.tif': 'no image that Pillow knows',
    'huge.png': 'it has too many pixels: 20000 x 15000 are more than 268435456',
    'broken.tar': 'is not a readable archive',
    'gone.png': no_link,
    'itself.png': no_link,
    'pipe.png': no_file,
    'socket.jpg': no_file,
  }
  left_out = {
    'hidden': 3,
    'link back': 3,
    'broken link': 1,
    'no file': 1,
    '.txt': 2,
    '.cls': 2,
    'without a suffix': 1,
    **{k: 1 for k in ('.mp4', '.wav', '.cr2', '.svg', '.zip')},
  }
  return skipped, left_out


def _huge(width, height):
  """A PNG of black bits, a few kB."""
  packer = zlib.compressobj()
  row = bytes(1 + width // 8)
  pixels = [packer.compress(row) for _ in range(height)]
  header = struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)
  data = b'\x89PNG\r\n\x1a\n'
  for name, body in (
    (b'IHDR', header),
    (b'IDAT', b''.join(pixels) + packer.flush()),
    (b'IEND', b''),
  ):
    checksum = struct.pack('>I', zlib.crc32(name + body))
    data += struct.pack('>I', len(body)) + name + body + checksum
  return data


if __name__ == '__main__':
  write(sys.argv[1])
