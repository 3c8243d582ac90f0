"""Every key has its rule, and rules hold where they should."""

import pytest

from chimera.run import config_json, rules
from configs import chimera as chimera_config

NAN, INFINITY = float('nan'), float('inf')
NEVER = 10**11  # what one writes for it


def _nested(depth):
  value = 0
  for _ in range(depth):
    value = [value]
  return value


def test_every_key_has_its_rule_and_every_rule_its_key():
  config = chimera_config.get_config()
  blocks = {
    f'specialists.{name}.{key}'
    for name in config.clone_names
    for key in rules.OF_SPECIALIST
  }
  assert set(config_json.keys(config)) == set(rules.RULES) | blocks


@pytest.mark.parametrize(
  ('key', 'good', 'bad'),
  [
    ('school.mix', (0, 0.5, 1.0), (-0.1, 1.1, NAN, True, None, '0.5')),
    ('meld.alpha', (0, 0.999), (1, 1.0, -0.1)),
    ('data.held_out_fraction', (0.01, 0.99), (0, 1)),
    ('train.learning_rate', (1e-9, 5), (0, -1, INFINITY, 1e40, 1e-46, 10**400)),
    ('train.cycles', (1, 2**31 - 1), (0, -1, False, 8.0, 3_000_000_000)),
    ('train.batch_size', (8,), (8.0, 7.5, '8', None, [8], NAN, INFINITY)),
    ('school.enrol_from', (0, 300), (NEVER, 300.0)),
    ('meld.every', (2**31 - 1,), (NEVER, 1e9)),
    ('optics.steps', (900,), (900.0, NEVER)),
    ('data.seed', (0, 2**40), (1.0, 2**63)),
    ('meld.ema', (0.999, 1 - 2**-24), (1 - 2**-26, 1.0)),
    ('loss.l1', (0, 1e6), (1e39, 1e12, -1e-9)),
    ('pid.limit', (0, 80), (81, 1e3)),
    ('meld.loss_bound', (0, 1.5), (1, 0.5, -1, 1e39)),
    ('model.downsample', (1, 2, 64), (0, 3, 12, 2.0, True, '2')),
    ('model.quantizer', ('vq', 'fsq'), ('VQ', '', None)),
    (
      'model.levels',
      ((8, 5, 5, 5), (2,), (2**31 - 1,)),
      ((), (8, 1), (8.0,), [8, 5], 8, (2**16, 2**15), (True, 2), ('8',)),
    ),
    ('pid.enabled', (True, False), (1, 0, 'True', None)),
    ('devices', (0, 1, 3), (-1, True, False, '4')),
    ('export.weights', ('master', 'ema'), ('', 'Master', None)),
    (
      'basename',
      ('a', 'a.b', 'x' * 200, '\udcff'),
      ('', '.a', 'a/b', '..', 1, None, 'a\0', 'x' * 201, '\ud800'),
    ),
    ('q.low', (0.5, 1), (0, (0.5, 0.5))),
    ('enrols', (True, False), (1, 0.0)),
    ('pid.target.ssim', (0.1,), (0.0, (0.1, 0.1))),
    ('emphasis.ssim', (0, 2), (-0.1, (1.0, 1.0))),
    ('q.window', (2, 10), (1, 0, 2.0, 10**9)),
    ('school.metric', ('mean_radius',), ('jpeg', '')),
    ('q.actions', ((1.0,), (0.5, 2)), ((), [1.0], (0.0,), (NAN,))),
    ('bins', ((9,), (0, 5)), ((), (10,), (-1,), (1, 1), (True,), (1.0,), [1])),
    (
      'clone_names',
      (('a',), ('b_2', 'a'), tuple('abcdefgh')),
      ((), ('a', 'a'), ('a.b',), ('a/b',), ('',), ('a', 'ema'), 'a', (1,)),
    ),
    (
      'data.source',
      ('', '/a'),
      (None, 1, 'a\0', '/a/' + 'x' * 256, 'a/' * 2048),
    ),
  ],
)
def test_a_rule_holds_for_what_is_good_and_for_nothing_else(key, good, bad):
  rule = (rules.RULES | rules.OF_SPECIALIST)[key]
  assert [value for value in good if not rule.holds(value)] == []
  assert [value for value in bad if rule.holds(value)] == []


def test_a_broken_rule_is_one_line_with_the_value_and_its_flag():
  rules.check('train.keep', rules.whole(1, 9), 1)
  with pytest.raises(ValueError, match='must be') as e:
    rules.check('train.keep', rules.whole(1, 9), 2.0)
  assert str(e.value) == (
    'train.keep must be at least 1, a whole number up to 9, got train.keep = '
    '2.0: fix --config.train.keep.'
  )


def test_a_value_without_end_is_cut_short_in_its_line():
  for value in ('x' * 10**6, (0,) * 10**6, 10**5000, _nested(5000)):
    with pytest.raises(ValueError, match='must be') as e:
      rules.check('train.keep', rules.whole(1), value)
    assert len(str(e.value)) < 400
    assert str(e.value).endswith('fix --config.train.keep.')


@pytest.mark.parametrize(
  ('value', 'near'),
  [
    (40, '32 and 48 work'),
    (1, '16 and 32 work'),
    (100, '96 and 112 work'),
    (2**31 - 1, '2147483632 work'),
  ],
)
def test_the_sizes_that_work_are_named_beside_one_that_does_not(value, near):
  rule = rules.multiple('a side', 16, value, least=9)
  assert not rule.holds(value)
  assert f'a multiple of a side = 16, at least 16 ({near}' in rule.text
  assert all(rule.holds(int(n)) for n in near.split() if n.isdecimal())


def test_names_that_a_file_system_takes_for_one_are_one():
  rule = rules.RULES['clone_names']
  for names in (
    ('perceptual', 'Perceptual'),
    ('caf\u00e9', 'cafe\u0301'),  # composed or not, as macOS has it
    ('a', 'MASTER'),
    ('a', 'Previews'),
    ('a', 'x' * 101),
  ):
    assert not rule.holds(names), names
    assert rule.holds(names[:1])
