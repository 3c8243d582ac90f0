"""Chimera: an image-tokenizer trainer with four specialist clones.

`load`, `load_tokens` and `read_image`, which are imported at their first use.
"""

import pkgutil

_OFFERED = {
  'load': 'chimera.tokenizer.export:load',
  'load_tokens': 'chimera.tokenizer.store:load',
  'read_image': 'chimera.data.images:read_image',
}


def __getattr__(name: str):
  if name not in _OFFERED:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  return pkgutil.resolve_name(_OFFERED[name])


def __dir__() -> list[str]:
  return sorted({*globals(), *_OFFERED})
