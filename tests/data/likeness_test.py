"""Near copies fall together, and different photographs do not."""

import io

import numpy as np
from PIL import Image
import pytest

from chimera.data import folders, images, likeness


@pytest.fixture(scope='module')
def photographs():
  return [
    images.load_image(images.BUNDLED + name) for name in folders.PHOTOGRAPHS
  ]


def _kept(image):
  return _encoded(image, 'WEBP', lossless=True)


def _encoded(image, form, **options):
  f = io.BytesIO()
  image.save(f, form, **options)
  return Image.open(f).convert('RGB')


COPIES = {
  'a JPEG': lambda x: _encoded(x, 'JPEG', quality=50),
  'a WebP': lambda x: _encoded(x, 'WEBP', quality=40),
  'of 64 colors': lambda x: _encoded(x.quantize(64), 'PNG'),
  'half as large': lambda x: x.resize((x.width // 2, x.height // 2)),
  'squeezed': lambda x: x.resize((128, 128), Image.Resampling.LANCZOS),
  'enlarged': lambda x: x.resize((2 * x.width, 2 * x.height)),
  'gray': lambda x: x.convert('L').convert('RGB'),
  'brighter': lambda x: x.point(lambda v: 20 + v * 0.9),
}


@pytest.mark.parametrize('name', COPIES)
def test_a_copy_falls_together_with_its_photograph_alone(photographs, name):
  # Fine textures alone, resized, look another way.
  some = [photographs[i] for i in (0, 2, 4, 6, 7, 12, 13, 14, 15)]
  looks = [likeness.look(x) for x in some]
  looks += [likeness.look(COPIES[name](x)) for x in some]
  groups = likeness.group(looks)
  assert groups[: len(some)] == groups[len(some) :]
  assert len(set(groups)) == len(some)


def test_the_bundled_photographs_are_all_different(photographs):
  groups = likeness.group([likeness.look(x) for x in photographs])
  assert len(set(groups)) == len(photographs)


def test_a_look_is_the_brightness_of_16_by_16_cells():
  cells = np.arange(256, dtype=np.uint8).reshape(16, 16)
  pixels = cells.repeat(24, 0).repeat(36, 1)[..., None].repeat(3, 2)
  seen = np.frombuffer(likeness.look(Image.fromarray(pixels)), np.uint8)
  np.testing.assert_array_equal(seen.reshape(16, 16), cells)


def test_what_shows_nothing_falls_together_with_nothing():
  flat = [Image.new('RGB', (90, 60), (i, i, i)) for i in range(40)]
  rng = np.random.default_rng(0)
  for i in range(40):
    # Paper with its grain.
    noise = 240 + rng.integers(0, 9, (90, 60, 3), np.uint8)
    flat[i % 20] = Image.fromarray(noise)
  groups = likeness.group([likeness.look(x) for x in flat])
  assert len(set(groups)) == 40
  # But for its own pixels, in whatever file.
  again = likeness.group([likeness.look(x) for x in [*flat, *map(_kept, flat)]])
  assert again[:40] == again[40:]
  assert len(set(again)) == 40
  assert likeness.group([]) == []


@pytest.mark.parametrize('rows', [512, 7])
def test_groups_are_those_of_all_pairs(monkeypatch, rows):
  monkeypatch.setattr(likeness, '_ROWS', rows)
  rng = np.random.default_rng(0)
  bases = rng.uniform(50, 200, (9, 256))
  drift = rng.normal(size=(9, 256))
  looks, xs = [], []
  for i in rng.integers(9, size=300):
    # Chains: their ends are no copies of each other, but of those between.
    x = bases[i] + drift[i] * rng.uniform(-60, 60)
    xs.append(np.clip(x, 0, 255).astype(np.uint8))
    looks.append(xs[-1].tobytes())
  x = np.array(xs, np.float64)
  x -= x.mean(1, keepdims=True)
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  near = np.linalg.norm(x[:, None] - x, axis=2) < likeness.NEAR
  assert not np.array_equal(near @ near, near)
  for _ in range(9):
    near = near @ near
  groups = np.array(likeness.group(looks))
  np.testing.assert_array_equal(groups[:, None] == groups, near)
  assert 9 <= len(set(groups.tolist())) < 50


@pytest.mark.parametrize('rows', [512, 7])
def test_near_are_copies_but_not_the_copies_of_copies(monkeypatch, rows):
  monkeypatch.setattr(likeness, '_ROWS', rows)
  rng = np.random.default_rng(0)
  base, drift = rng.uniform(50, 200, 256), rng.normal(size=256)
  steps = rng.uniform(-40, 40, 200)
  xs = np.clip(base + steps[:, None] * drift, 0, 255).astype(np.uint8)
  flat = bytes(32)
  looks, others = (
    [x.tobytes() for x in xs[:150]],
    [x.tobytes() for x in xs[150:]],
  )
  x = xs - xs.mean(1, keepdims=True)
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  near = np.linalg.norm(x[:150, None] - x[150:151], axis=2) < likeness.NEAR
  found = likeness.is_near([*looks, flat], others[:1])
  assert found == [*near.any(1), False]
  assert 0 < sum(found) < 150
  assert len(set(likeness.group([*looks, *others]))) == 1
  assert likeness.is_near([flat, *looks[:1]], [flat, *looks[:1]]) == [True] * 2
  assert likeness.is_near([], []) == []


def test_a_thousand_copies_cost_no_more_than_as_many_photographs():
  rng = np.random.default_rng(0)
  base = rng.integers(20, 230, 256)
  looks = [
    np.uint8(base + rng.integers(-3, 4, 256)).tobytes() for _ in range(1000)
  ]
  assert len(set(likeness.group(looks))) == 1
