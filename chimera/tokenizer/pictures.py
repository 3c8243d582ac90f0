"""Tokens drawn as pictures, and images beside what comes back of them."""

from collections.abc import Iterator, Sequence
import io
import itertools
import math
import os
import pathlib

from absl import logging
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from chimera.data import images
from chimera.system import disk, lock, progress
from chimera.tokenizer import export, store, windows
from chimera.tokenizer import tiles as tiles_lib
from chimera.tokenizer import tokens as tokens_lib

_BATCH = 64  # crops of image_size decoded at a time; of larger ones fewer
_TEXT = 15  # pixels, the height of a picture's letters
_LEAST = 192  # pixels: smaller pictures are drawn larger,
_MOST = 4096  # but none to more pixels than these
_LONGEST = 255 - len('.png.tmp')  # bytes of a name that is drawn to


def detokenize(folder: str, tokenizer: str, out: str) -> None:
  """Draws tokens as PNGs in `out`, one a photograph, named after it.

  Raises:
    ValueError: no tokens, no tokenizer, or one of another codebook, or `out`
      is in use.
  """
  if not out:
    raise ValueError('detokenize needs a folder for its PNGs: give --out=DIR.')
  loaded = tokens_lib.open_tokenizer(tokenizer)
  tokens = store.load(folder)
  meta = tokens.meta
  if meta['codebook_digest'] != loaded.codebook_digest:
    raise ValueError(
      f'The tokens in {folder} are of another codebook than {tokenizer}: give '
      'the --tokenizer that made them.'
    )
  home = pathlib.Path(out)
  with (
    lock.hold(home, '--out'),
    progress.bar('Pictures', len(meta['sources'])) as report,
  ):
    # Where the photographs lie, none gives way.
    entries = [*meta['sources'], *meta['skipped']]
    taken = {os.path.abspath(home / entry['file']) for entry in entries}
    drawn = _draw_each(loaded, tokens)
    for i, (source, picture) in enumerate(zip(meta['sources'], drawn)):
      if meta['crop'] != 'center':
        picture = picture[: source['height'], : source['width']]
      path = _free(home, source['file'], taken)
      if not path.resolve().is_relative_to(home.resolve()):
        raise ValueError(
          f'Pictures are drawn within {home}, got {source["file"]!r} in '
          f'{folder}: rename that image and tokenize anew.'
        )
      try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(path, picture)
      except (FileExistsError, IsADirectoryError, NotADirectoryError) as e:
        raise ValueError(
          f'{path} cannot be made ({disk.reason(e)}): free its place, or '
          f'rename {source["file"]!r} and tokenize anew.'
        ) from e
      report(i + 1, '')
  logging.info('%d picture(s) in %s.', len(meta['sources']), home)


def reconstruct(paths: Sequence[str], tokenizer: str, out: str) -> None:
  """Draws each image beside what comes back of it.

  Raises:
    ValueError: no tokenizer, or an image that is none or is too small.
  """
  loaded = tokens_lib.open_tokenizer(tokenizer)
  home = pathlib.Path(out or 'reconstructions')
  disk.check_folder(home, '--out')
  for path in paths:
    picture = _load(path)
    try:
      tokens_lib.check_size(picture, loaded)
    except ValueError as e:
      raise ValueError(f'{path} cannot be used: {e}; give another.') from e
  home.mkdir(parents=True, exist_ok=True)
  taken = {os.path.abspath(path) for path in paths}
  # Among photographs nothing gives way: it may be one.
  if home.resolve() in {pathlib.Path(path).parent.resolve() for path in taken}:
    taken |= {os.path.abspath(path) for path in home.iterdir()}
  for path in dict.fromkeys(paths):
    picture = _load(path)
    height, width = picture.shape[:2]
    optics, back = _look(loaded, picture), loaded.reconstruct(picture)
    mse = np.mean((picture.astype(np.float64) - back) ** 2)
    psnr = 10 * np.log10(255**2 / max(mse, 1e-9))
    rows, columns = (-(-n // loaded.side) for n in (height, width))
    name = os.path.basename(path)
    if not os.path.exists(path):
      name = name.removeprefix(images.BUNDLED)
    target = _free(home, name, taken)
    _save(target, _beside(picture, optics, back))
    logging.info(
      '%s: %d x %d pixels, %d x %d tokens; PSNR %.2f dB; see %s',
      *(path, width, height, columns, rows, psnr, target),
    )


def _load(path: str) -> np.ndarray:
  # Nothing in the name of a file says that it is another's.
  source = os.path.abspath(path) if os.path.exists(path) else path
  return images.load_photograph(source)


def _draw_each(
  loaded: export.Tokenizer, tokens: store.Tokens
) -> Iterator[np.ndarray]:
  """Each photograph's picture, uint8, as far as whole tokens reach."""
  meta = tokens.meta
  if meta['crop'] == 'whole':
    for tokens_hxw in tokens.grids():
      yield images.to_uint8(loaded.decode(tokens_hxw.astype(np.int32)))
    return
  decoded = _decode_each(loaded, tokens.tokens_Nxhxw)
  for source in meta['sources']:
    rows, columns = source['rows'], source['columns']
    # Of an older store there may be several squares a photograph.
    squares = list(itertools.islice(decoded, rows * columns))
    yield tiles_lib.join(np.stack(squares), rows, columns)


def _decode_each(
  loaded: export.Tokenizer, tokens_Nxhxw: np.ndarray
) -> Iterator[np.ndarray]:
  """The crops (S, S, 3), uint8, one by one."""
  pixels = math.prod(tokens_Nxhxw.shape[1:]) * loaded.side**2
  most = max(1, _BATCH * loaded.image_size**2 // pixels)
  for batch, count in tiles_lib.batches(tokens_Nxhxw, most):
    yield from images.to_uint8(loaded.decode(batch.astype(np.int32)))[:count]


def _look(loaded: export.Tokenizer, picture: np.ndarray) -> np.ndarray:
  """What the optics alone make of a picture, uint8."""
  height, width = picture.shape[:2]
  seen = loaded.look(windows.pad(picture, loaded.side))
  return images.to_uint8(seen)[:height, :width]


def _beside(*pictures: np.ndarray) -> np.ndarray:
  """The three next to each other under their names; small ones enlarged."""
  short, long = sorted(pictures[0].shape[:2])
  scale = max(1, min(-(-_LEAST // short), _MOST // long))
  pictures = [p.repeat(scale, axis=0).repeat(scale, axis=1) for p in pictures]
  height, width = pictures[0].shape[:2]
  step, header = width + 4, _TEXT + 8
  canvas = Image.new('RGB', (3 * step - 4, header + height), 'white')
  pen = ImageDraw.Draw(canvas)
  font = ImageFont.load_default(size=_TEXT)
  names = ('original', 'optics alone', 'tokenizer')
  for i, (name, picture) in enumerate(zip(names, pictures)):
    middle = (i * step + width // 2, header // 2)
    pen.text(middle, name, 'black', font, anchor='mm')
    canvas.paste(Image.fromarray(picture), (i * step, header))
  return np.asarray(canvas)


def _free(home: pathlib.Path, file: str, taken: set[str]) -> pathlib.Path:
  """Where `file` is drawn: numbered where that is taken, which it then is."""
  path, again = home / _drawn(file), 1
  while os.path.abspath(path) in taken:
    again += 1
    path = home / _drawn(f'{file}.{again}')
  taken.add(os.path.abspath(path))
  return path


def _drawn(file: str) -> str:
  """`file`.png, its name shortened to what a file system takes."""
  folder, name = os.path.split(file)
  data = os.fsencode(name)
  if len(data) > _LONGEST:
    mark = f'-{disk.digest(data)[:8]}'
    name = data[: _LONGEST - len(mark)].decode(errors='ignore') + mark
  return os.path.join(folder, f'{name}.png')


def _save(path: pathlib.Path, picture: np.ndarray) -> None:
  buffer = io.BytesIO()
  Image.fromarray(picture).save(buffer, format='PNG')
  disk.write(path, buffer.getvalue())
