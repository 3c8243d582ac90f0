"""A tokenizer that compiles nothing: a token is a shade of gray."""

import io
import types

import numpy as np
from PIL import Image

from chimera.data import images
from chimera.tokenizer import export


class Tokenizer:
  """A token is 8 x 8 pixels, 16 * token their shade."""

  image_size, grid, codes, side = 16, (2, 2), 16, 8
  codebook_digest = 'gray'
  meta = types.MappingProxyType({'files': {export.WEIGHTS: 'none'}})
  parts = types.SimpleNamespace(optics=types.SimpleNamespace(cell=4))

  def encode(self, images_BxHxWx3):
    return images_BxHxWx3[..., ::8, ::8, 0].astype(np.int32) // 16

  def decode(self, tokens_Bxhxw):
    gray = tokens_Bxhxw.repeat(8, -2).repeat(8, -1)[..., None] * 16
    return images.to_float(gray.repeat(3, -1).astype(np.uint8))


def png(tokens_hxw):
  """The file of a picture that has these tokens."""
  shades = 16 * np.asarray(tokens_hxw, np.uint8)
  data = io.BytesIO()
  Image.fromarray(shades.repeat(8, 0).repeat(8, 1)).save(data, 'PNG')
  return data.getvalue()
