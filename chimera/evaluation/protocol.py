"""What held-out figures were taken by: printed and stored beside them."""

import json
from typing import Any

import ml_collections

from chimera.evaluation import evaluate
from chimera.system import provenance


def protocol(
  config: ml_collections.ConfigDict,
  held_out: evaluate.HeldOut,
  done: int,
  drawn_by: str = '',
  auditioned: int = 0,
) -> dict[str, Any]:
  """What figures were taken by.

  Args:
    config: the run's.
    held_out: what they are of.
    done: cycles.
    drawn_by: how far the optics have learned; '' leaves it open.
    auditioned: images seen before the first cycle.
  """
  by = 'sample' if held_out.images_NxSxSx3 is None else 'photograph'
  own = config.data.held_out_source
  record = {
    'split': 'a source of its own' if own else f'held out by {by}',
    'source': own or config.data.source,
    'count': len(held_out.paths_NxHxWxC),
    'color_range': '[-1, 1]',
  }
  if held_out.images_NxSxSx3 is not None:
    scale = f'1 to {config.data.max_scale:g}, at random'
    if config.data.crop == 'whole':
      scale = 'the largest centered square, one a photograph'
    record |= {
      'crop': config.data.image_size,
      'crop_scale': scale,
      'resize_filter': 'Lanczos (Pillow)',
      'rounding': '8 bits, photograph and reconstruction, before pixel figures',
    }
    if drawn_by:
      record['optics'] = drawn_by
  if config.eval.inception:
    record['inception'] = provenance.file_digest(config.eval.inception)
    record['inception_resize_filter'] = 'bicubic, to 299'
  if config.eval.features:
    record['features'] = provenance.file_digest(config.eval.features)
  return record | {
    'cycles': done,
    'images_seen': auditioned
    + done * config.train.batch_size * len(config.clone_names),
    'decay': config.train.decay,
    'seed': config.seed,
    'config': provenance.digest(json.loads(config.to_json())),
    'commit': provenance.commit(),
  }
