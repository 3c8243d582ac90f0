"""Every key has its rule, and rules hold where they should."""

import pytest

from chimera.run import preflight, rules
from configs import chimera as chimera_config

NAN, INFINITY = float('nan'), float('inf')


def test_every_key_has_its_rule_and_every_rule_its_key():
  config = chimera_config.get_config()
  blocks = {
    f'specialists.{name}.{key}'
    for name in config.clone_names
    for key in rules.OF_SPECIALIST
  }
  assert set(preflight.keys(config)) == set(rules.RULES) | blocks


@pytest.mark.parametrize(
  ('key', 'good', 'bad'),
  [
    ('school.mix', (0, 0.5, 1.0), (-0.1, 1.1, NAN, True, None, '0.5')),
    ('meld.alpha', (0, 0.999), (1, 1.0, -0.1)),
    ('data.held_out_fraction', (0.01, 0.99), (0, 1)),
    ('train.learning_rate', (1e-9, 5), (0, -1, INFINITY)),
    ('train.cycles', (1, 10**9), (0, -1, False)),
    ('meld.loss_bound', (0, 1.5), (1, 0.5, -1)),
    ('model.downsample', (1, 2, 64), (0, 3, 12)),
    ('model.quantizer', ('vq', 'fsq'), ('VQ', '', None)),
    (
      'model.levels',
      ((8, 5, 5, 5), (2,), (2**31 - 1,)),
      ((), (8, 1), (2.5,), [8, 5], 8, (2**16, 2**15), (True, 2), ('8',)),
    ),
    ('pid.enabled', (True, False), (1, 0, 'True', None)),
    ('devices', (0, 1, 3), (-1, True, False, '4')),
    ('export.weights', ('master', 'ema'), ('', 'Master', None)),
    ('basename', ('a', 'a.b'), ('', '.a', 'a/b', '..', 1)),
    ('q.low', (0.5, 1), (0, (0.5, 0.5))),
    ('enrols', (True, False), (1, 0.0)),
    ('pid.target.ssim', (0.1,), (0.0, (0.1, 0.1))),
    ('emphasis.ssim', (0, 2), (-0.1, (1.0, 1.0))),
    ('q.window', (2, 10), (1, 0)),
    ('school.metric', ('mean_radius',), ('jpeg', '')),
    ('q.actions', ((1.0,), (0.5, 2)), ((), [1.0], (0.0,), (NAN,))),
    ('bins', ((9,), (0, 5)), ((), (10,), (-1,), (1, 1), (True,), (1.0,), [1])),
    (
      'clone_names',
      (('a',), ('b_2', 'a'), tuple('abcdefgh')),
      ((), ('a', 'a'), ('a.b',), ('a/b',), ('',), ('a', 'ema'), 'a', (1,)),
    ),
    ('data.source', ('', '/a'), (None, 1)),
  ],
)
def test_a_rule_holds_for_what_is_good_and_for_nothing_else(key, good, bad):
  rule = (rules.RULES | rules.OF_SPECIALIST)[key]
  assert [value for value in good if not rule.holds(value)] == []
  assert [value for value in bad if rule.holds(value)] == []


def test_a_broken_rule_is_one_line_with_the_value_and_its_flag():
  rules.check('train.keep', rules.at_least(1), 1)
  with pytest.raises(ValueError, match='must be') as e:
    rules.check('train.keep', rules.at_least(1), 0)
  assert str(e.value) == (
    'train.keep must be at least 1, got train.keep = 0: fix '
    '--config.train.keep.'
  )
