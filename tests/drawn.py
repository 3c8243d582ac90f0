"""Whether a run's tokenizer draws as its figures say: .ci/run asks.

python -m tests.drawn WORKDIR
"""

import json
import pathlib
import sys

import numpy as np
import safetensors.numpy

import chimera


def main(workdir: pathlib.Path) -> None:
  tokenizer = chimera.load(workdir / 'tokenizer')
  with np.load(workdir / 'optics' / 'held_out.npz') as held_out:
    images = held_out['images']
  seen = np.asarray(tokenizer.decode(tokenizer.encode(images)))
  back = np.clip(np.rint((seen + 1) * 127.5), 0, 255)
  mse_N = ((back - images) ** 2).mean((1, 2, 3))
  psnr = (10 * np.log10(255**2 / mse_N)).mean()
  figures = json.loads((workdir / 'evaluation.json').read_text())
  assert figures['protocol']['optics'].startswith('finished')
  assert abs(psnr - figures['master/psnr']) < 0.01, psnr
  # Of stage 1's optics the decoder has learned on, and nothing else.
  before, after = (
    safetensors.numpy.load((workdir / path).read_bytes())
    for path in ('optics/optics.safetensors', 'tokenizer/tokenizer.safetensors')
  )
  for name, x in before.items():
    (same,) = (k for k in after if k.endswith(name))
    is_decoder = name.split('/')[1].split('_')[0] in (
      'expand',
      'refine',
      'paint',
    )
    assert np.array_equal(x, after[same]) != is_decoder, name
  print(f'{workdir} draws as it says: {psnr:.2f} dB.')


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
