"""Chimera: an image-tokenizer trainer with four specialist clones.

  import chimera

  tokenizer = chimera.load('runs/chimera/tokenizer')
  image = chimera.read_image('cat.jpg', tokenizer.image_size)
  tokens = tokenizer.encode(image[None])  # (1, h, w) int32

This import is quick: what is offered here is loaded when it is first used.
"""

import importlib

_OFFERED = {
  'load': ('chimera.tokenizer.export', 'load'),
  'load_tokens': ('chimera.tokenizer.tokens', 'load'),
  'read_image': ('chimera.data.images', 'read_image'),
}


def __getattr__(name: str):
  # https://peps.python.org/pep-0562/
  if name not in _OFFERED:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module, function = _OFFERED[name]
  return getattr(importlib.import_module(module), function)


def __dir__() -> list[str]:
  return sorted({*globals(), *_OFFERED})
