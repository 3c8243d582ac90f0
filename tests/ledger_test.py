"""The ledger: what is compared, and the arithmetic of the comparison."""

import json
import math

import jax
import numpy as np
import pytest

from chimera import ledger, train
from chimera.evaluation import exam
from chimera.optics import stage_1
from chimera.run import config_json, finish
from chimera.system import lock, provenance
from tests import tiny
from tests.benchmarks import conditions_test


def _line(method, seed, l1):
  return {
    'method': method,
    'seed': seed,
    'config': '0',
    'condition': 'tuned',
    'figures': {'ema/path_l1': l1, 'master/psnr': 20.0},
  }


def test_a_method_is_a_variant_its_changes_and_a_scale():
  control = ledger.create_config('control@2', 3, {'train.cycles': 70})
  plain = ledger.create_config('control', 3, {'train.cycles': 70})
  assert control.train.learning_rate == 2 * plain.train.learning_rate
  assert (control.seed, control.train.cycles) == (3, 70)
  assert not control.meld.enabled
  local = ledger.create_config('local', 0, {})
  assert local.meld.optimizer_state == 'local'
  for pillar in ('school', 'pid', 'q', 'meld'):
    config = ledger.create_config(f'no_{pillar}', 0, {})
    on = {p: config[p].enabled for p in ('school', 'pid', 'q', 'meld')}
    assert on == {p: p != pillar for p in on}


def test_an_unknown_method_names_the_known_ones():
  with pytest.raises(ValueError, match=r'control, default.*got defualt'):
    ledger.create_config('defualt', 0, {})


def test_a_run_of_another_config_has_another_digest():
  a, b, c = (
    ledger.digest(ledger.create_config(method, seed, {}))
    for method, seed in (('default', 0), ('default@2', 0), ('default', 1))
  )
  assert len({a, b, c}) == 3
  assert a == ledger.digest(ledger.create_config('default@1', 0, {}))


def test_the_paired_interval_is_student_s():
  # Differences 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.30265.
  mean, half = ledger.paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
  assert mean == pytest.approx(2.0)
  assert half == pytest.approx(4.30265 / 3**0.5, rel=1e-5)


def test_methods_alike_have_no_interval_and_one_pair_none_that_is_known():
  assert ledger.paired([1.0, 2.0], [1.0, 2.0]) == (0.0, 0.0)
  mean, half = ledger.paired([3.0], [1.0])
  assert (mean, math.isnan(half)) == (2.0, True)


def test_the_table_pairs_by_seed_and_shows_the_spread():
  lines = [
    _line('control', 0, 0.10),
    _line('default', 0, 0.09),
    _line('control', 1, 0.20),
    _line('default', 1, 0.17),
    _line('default', 2, 0.50),  # has no partner yet
  ]
  table = ledger.tabulate(lines, 'ema')
  assert list(table.columns[0].cells) == [
    'control (2)',
    'default (3)',
    '  less control',
  ]
  control, default, less = table.columns[1].cells
  assert control == '0.1500 ± 0.0707'
  assert default.startswith('0.2533 ± ')
  assert less.startswith('-0.0200 ± ')


def test_a_method_lacks_what_it_has_no_figure_of():
  lost = {**_line('control', 1, 0.0), 'figures': {}}
  rival = {**_line('prodigy', 0, 0.0), 'figures': {'master/psnr': 21.0}}
  lines = [lost, _line('control', 0, 0.1), _line('default', 0, 0.2), rival]
  ema, master = (ledger.tabulate(lines, group) for group in ('ema', 'master'))
  assert list(ema.columns[1].cells) == [
    *('nan ± nan', '0.2000 ± nan', '+0.1000 ± nan'),
    *('nan ± nan', '+nan ± nan'),
  ]
  assert list(master.columns[1].cells)[-2:] == ['21.00 ± nan', '+1.00 ± nan']


def test_an_audition_counts_as_cycles():
  config = ledger.create_config('default', 0, {'train.cycles': 700})
  assert (config.train.cycles, config.train.audition) == (600, True)
  control = ledger.create_config('control', 0, {'train.cycles': 700})
  assert (control.train.cycles, control.train.audition) == (700, False)
  two = {'train.cycles': 700, 'clone_names': ('perceptual', 'structural')}
  assert ledger.create_config('default', 0, two).train.cycles == 500
  later = {'train.cycles': 700, 'init_from': 'tokenizer'}
  assert ledger.create_config('default', 0, later).train.cycles == 700


def test_a_condition_sets_one_thing_wrong():
  right = config_json.keys(ledger.create_config('control', 0, {}))
  for condition, key, value in (
    ('rate/30', 'train.learning_rate', 8e-3 / 30),
    ('rate*10', 'train.learning_rate', 8e-2),
    ('adv*30', 'loss.adv', 0.15),
    ('vq/10', 'loss.vq', 0.05),
    ('cold', 'train.warmup', 0),
    ('batch2', 'train.batch_size', 2),
  ):
    config = ledger.create_config('control@3', 0, {}, condition)
    wrong = config_json.keys(config)
    wrong['train.learning_rate'] /= 3
    assert [k for k in right if wrong[k] != pytest.approx(right[k])] == [key]
    assert wrong[key] == pytest.approx(value)


def test_what_is_spoilt_is_judged_in_natural_bins(tmp_path, monkeypatch):
  seen, prepared = [], conditions_test.by_radius()

  def learn(config, workdir, data):
    seen.append(data)
    return {'master/path_l1': 1.0}

  data = prepared._replace(held_out_paths=prepared.paths_NxHxWxC[::3])
  monkeypatch.setattr(stage_1, 'prepare', lambda *_: data)
  monkeypatch.setattr(train, 'train', learn)
  list(ledger.run(tmp_path, ['default'], [0], {}, ['tuned', 'rare']))

  def placed(data):
    return exam.look_at_held_out(tiny.get_config(), data)[0][2]

  tuned, rare = map(placed, seen)
  np.testing.assert_array_equal(rare, tuned)
  counts = np.bincount(tuned, minlength=10)
  assert counts.max() - counts.min() <= len(tuned) // 10
  assert not np.array_equal(placed(seen[1]._replace(judges_N=None)), tuned)


def _of(condition, method, seed, l1):
  return {**_line(method, seed, l1), 'condition': condition}


def test_the_regret_is_above_the_tuned_control_of_the_seed():
  lines = [
    _of('tuned', 'control', 0, 0.1),
    _of('tuned', 'control', 1, 0.2),
    _of('tuned', 'control@3', 0, 0.08),  # a sweep has a best
    _of('rate*3', 'control', 0, 0.12),
    _of('rate*3', 'default', 0, 0.09),
    _of('rate*3', 'default', 1, math.nan),
    _of('rare', 'control@3', 0, 0.2),
    _of('rare', 'control', 0, 0.4),
    _of('rare', 'default', 0, 0.3),
    _of('tuned', 'default', 2, 0.3),  # without its control
  ]
  found = ledger.regrets(lines, 'ema/path_l1')
  assert found['default']['rate*3'] == pytest.approx([0.125, math.inf])
  assert found['default']['rare'] == pytest.approx([0.5])
  assert 'tuned' not in found['default']
  assert found['control']['tuned'] == pytest.approx([0.25, 0.0])
  assert found['control']['rate*3'] == pytest.approx([0.5])
  whole = ledger.tabulate_regrets(lines, 'ema/path_l1')
  assert list(whole.columns[3].cells)[-2:] == ['+inf', '+inf']
  lost = {**lines[0], 'seed': 7, 'figures': {}}  # it ended by its roll-backs
  found = ledger.regrets([*lines, lost], 'ema/path_l1')
  assert found['control']['tuned'] == pytest.approx([0.25, 0.0])
  table = ledger.tabulate_regrets(lines[:5], 'ema/path_l1')
  heads = ['condition', 'control', 'control@3', 'default']
  assert [c.header for c in table.columns] == heads
  assert list(zip(*(c.cells for c in table.columns))) == [
    ('tuned', '+12.5 ± 17.7', '+0.0', ''),
    ('rate*3', '+50.0', '', '+12.5'),
    ('worst', '+50.0', '+0.0', '+12.5'),
    ('mean', '+31.2', '+0.0', '+12.5'),
  ]


@pytest.mark.parametrize(
  ('words', 'said'),
  [
    (['robust', '--picture', 'nowhere/a.svg'], 'a folder there is: nowhere/a'),
    (['robust', '--picture', '.'], 'must be a file'),
    (['--picture', 'a.svg'], 'is of `robust`'),
    (['robust', '--conditions', 'rate*10'], '--conditions needs tuned'),
    (['robust', '--methods', 'default'], '--methods needs control'),
    (['--methods', 'control', 'defualt'], 'got defualt: fix --methods'),
    (['--methods', 'control@x'], 'number above 0, got control@x'),
    (['--methods', 'control@-1'], 'number above 0, got control@-1'),
    (['--train', 'nowhere'], "--train must be a folder of images, got 'nowh"),
    (['--held_out', 'nowhere'], '--held_out must be a folder'),
    (['--set', 'nosuch.key=1'], 'no setting nosuch.key: fix --set'),
    (['--set', 'data.crop'], "must be KEY=VALUE, got 'data.crop'"),
    (['--set', 'data.crop=half'], 'data.crop'),
    (['--seeds', '0', '-1'], 'seed'),
    (['--conditions', 'rate/30'], '--conditions is of `robust`'),
    (['--set', 'seed=5'], 'in which it is 0: fix --set, or --seeds'),
    # Which would no longer be the control.
    (['--set', 'loss.emphasis=0.3'], 'control would be another method'),
    # Neither takes the other's place.
    (['--set', 'a=1', '--set', 'data.crop=half'], 'no setting a: fix --set'),
  ],
)
def test_what_cannot_be_is_refused_before_any_run(
  words, said, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr('sys.argv', ['ledger', *words])
  monkeypatch.delattr(ledger, 'run')
  with pytest.raises(SystemExit, match='2'):
    ledger.main()
  assert said in capsys.readouterr().err


@pytest.mark.parametrize(
  ('error', 'code', 'said'),
  [
    (KeyboardInterrupt(), 130, 'the same command goes on from here'),
    (RuntimeError('RESOURCE_EXHAUSTED: full'), 2, 'memory of a device is full'),
    (ValueError('give another --workdir.'), 2, 'give another --home.'),
  ],
)
def test_what_ends_it_is_one_line(
  error, code, said, tmp_path, monkeypatch, capsys
):
  def run(*_):
    raise error

  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr('sys.argv', ['ledger'])
  monkeypatch.setattr(ledger, 'run', run)
  with pytest.raises(SystemExit, match=str(code)):
    ledger.main()
  assert said in capsys.readouterr().err.splitlines()[-1]


def test_two_ledgers_of_one_home_are_refused(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr('sys.argv', ['ledger', '--home', 'home'])
  monkeypatch.delattr(ledger, 'run')
  with lock.hold('home', '--home'), pytest.raises(SystemExit, match='2'):
    ledger.main()
  assert '--home' in capsys.readouterr().err.splitlines()[-1]


def test_the_ledger_is_read_as_it_was_written(tmp_path):
  path = tmp_path / 'ledger.jsonl'
  assert ledger.read(path) == []
  lines = [_line('control', 0, 0.1), _line('default', 0, 0.2)]
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  assert ledger.read(path) == lines


def test_a_torn_line_costs_itself_alone(tmp_path, monkeypatch, warnings):
  monkeypatch.setattr(stage_1, 'prepare', lambda *_: None)
  monkeypatch.setattr(train, 'train', lambda *_: {'master/path_l1': 1.0})
  path, words = tmp_path / 'ledger.jsonl', (['default'], [0, 1], {})
  whole = list(ledger.run(tmp_path, *words))
  path.write_bytes(path.read_bytes()[:-9])
  assert ledger.read(path) == whole[:1]
  assert list(ledger.run(tmp_path, *words)) == whole
  assert ledger.read(path) == whole
  assert 'is torn' in warnings[0]


def test_lines_of_another_commit_are_told(tmp_path, monkeypatch, warnings):
  monkeypatch.setattr(stage_1, 'prepare', lambda *_: None)
  monkeypatch.setattr(train, 'train', lambda *_: {'master/path_l1': 1.0})
  monkeypatch.setattr(provenance, 'commit', lambda: '0123456789ab')
  words = tmp_path, ['default'], [3], {}
  (line,) = ledger.run(*words)
  assert line['commit'] == '0123456789ab'
  assert list(ledger.run(*words)) == [line]
  assert not warnings
  monkeypatch.setattr(provenance, 'commit', lambda: '0123456789ab+')
  assert list(ledger.run(*words)) == [line]
  assert warnings == ['default of seed 3 in tuned is of commit 0123456789ab.']


def test_a_setting_may_be_a_text_without_quotation_marks():
  assert ledger._change('data.crop=whole') == ('data.crop', 'whole')
  assert ledger._change('model.levels=(8, 5)') == ('model.levels', (8, 5))
  assert ledger._change('data.source=a=b') == ('data.source', 'a=b')


def test_what_one_run_compiled_is_gone_before_the_next(tmp_path, monkeypatch):
  traces = []

  @jax.jit
  def step(x):
    traces.append(x)
    return x + 1

  def run(config, workdir, data):
    return {'master/path_l1': float(step(1.0))}

  monkeypatch.setattr(stage_1, 'prepare', lambda *_: None)
  monkeypatch.setattr(train, 'train', run)
  lines = list(ledger.run(tmp_path, ['default'], [0, 1], {}))
  assert [line['figures'] for line in lines] == [{'master/path_l1': 2.0}] * 2
  assert len(traces) == 2


def test_a_rival_is_judged_as_the_control_is(tmp_path, monkeypatch):
  np.save(tmp_path / 'source.npy', tiny.bins_and_paths()[1])
  config = tiny.get_config('control')
  config.data.source = str(tmp_path / 'source.npy')
  config.data.held_out_count = 20
  config.train.cycles = config.train.eval_every = 2
  monkeypatch.setattr(ledger, 'create_config', lambda *_: config)
  finished = []
  monkeypatch.setattr(
    finish, 'finish', lambda *of: finished.append(of[3:]) or of[3]
  )
  [rival] = ledger.run(tmp_path, ['prodigy'], [0], {})
  # By optics that were finished for it, as for any other.
  [(prepared, home)] = finished
  assert home == str(tmp_path / 'stage_1_seed_0')
  assert len(prepared.held_out_paths) == 20
  data = stage_1.prepare(config, str(tmp_path / 'stage_1_seed_0'))
  bins = train.prepare_curriculum(config, str(tmp_path), data)
  spec, born = train.newborn(config, data, bins)
  held_out, _ = exam.look_at_held_out(config, data)
  vectors = born.master, born.generator.params
  control = exam.examine(config, spec, held_out, data.optics, *vectors)
  names = exam.flat({'master': control.figures['master']})
  assert set(rival['figures']) == set(names)
  assert np.isfinite(list(rival['figures'].values())).all()
