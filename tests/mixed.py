"""Thirty files as people have them: `python -m tests.mixed FOLDER`.

Cut out of the bundled photographs: JPEG, PNG, WebP, BMP and TIFF; gray, alpha,
palette, 16 bits, rotated by EXIF; tiny and huge; one corrupt, one text file.
"""

import io
import pathlib
import sys

import numpy as np
from PIL import Image

from chimera.data import folders, images

_ROTATE_90 = 6  # EXIF: the camera was turned
_ORIENTATION = 0x0112


def write(folder):
  """Writes them and returns how many are images that can be read."""
  home = pathlib.Path(folder)
  (home / 'inner' / 'most').mkdir(parents=True)
  rng = np.random.default_rng(0)
  photographs = [
    Image.fromarray(images.load_photograph(images.BUNDLED + name))
    for name in folders.PHOTOGRAPHS
  ]

  def cut(i):
    photograph = photographs[i % len(photographs)]
    width, height = (int(n * rng.uniform(0.4, 0.9)) for n in photograph.size)
    return photograph.crop((0, 0, width, height))

  for i in range(8):
    cut(i).save(home / f'{i}.jpg', quality=90)
  for i in range(8, 14):
    cut(i).save(home / 'inner' / f'{i}.PNG')
  cut(14).save(home / 'a picture.webp')
  cut(15).save(home / 'picture.bmp')
  cut(16).save(home / 'picture.tiff')
  cut(17).convert('L').save(home / 'gray.png')
  cut(18).convert('L').save(home / 'gray.jpeg')
  cut(19).convert('P').save(home / 'palette.png')
  deep = np.asarray(cut(20).convert('L'), np.uint16) * 257
  Image.fromarray(deep).save(home / '16 bits.png')
  alpha = cut(21).convert('RGBA')
  alpha.putalpha(Image.linear_gradient('L').resize(alpha.size))
  alpha.save(home / 'alpha.png')
  exif = Image.Exif()
  exif[_ORIENTATION] = _ROTATE_90
  cut(22).save(home / 'inner' / 'most' / 'rotated.jpg', exif=exif)
  cut(23).resize((11, 7)).save(home / 'tiny.png')
  cut(24).resize((40, 300)).save(home / 'narrow.png')
  cut(25).resize((4000, 3000)).save(home / 'huge.jpg')
  cut(26).convert('CMYK').save(home / 'cmyk.jpg')
  whole = io.BytesIO()
  cut(27).save(whole, format='JPEG')
  (home / 'corrupt.jpg').write_bytes(whole.getvalue()[: whole.tell() // 3])
  (home / 'notes.txt').write_text('No picture.\n')
  (home / 'text.png').write_text('No picture either.\n')
  return 27


if __name__ == '__main__':
  write(sys.argv[1])
