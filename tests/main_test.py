"""The command line: what runs, and how it says what is wrong."""

import json
import pathlib
import subprocess
import sys

import jax
import pytest

from chimera import main
from chimera.monitor import history
from chimera.system import hosts, meeting
from tests import written

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = f'--config={ROOT / "configs" / "chimera.py"}'


@pytest.fixture
def ran(tmp_path, monkeypatch):
  """Calls of the commands, in place of the commands; in an empty folder."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', '')
  # config_flags would run the next config file in the last one's module.
  monkeypatch.delitem(sys.modules, 'config_config', raising=False)
  calls = []
  for name in main.COMMANDS:
    monkeypatch.setitem(
      main.COMMANDS,
      name,
      lambda job, name=name: calls.append((name, job.config, job.workdir)),
    )
  monkeypatch.setattr(main, '_set_up_logging', lambda debug: None)
  return calls


def _main(*argv):
  return main.main(['chimera', *argv])


@pytest.mark.parametrize(
  ('argv', 'command'),
  [
    ((), 'train'),
    (('train', CONFIG), 'train'),
    ((CONFIG, 'prepare-latents'), 'prepare-latents'),
    (('prepare-latents', CONFIG), 'prepare-latents'),
    ((CONFIG, 'prepare-curriculum', '--config.seed=1'), 'prepare-curriculum'),
  ],
)
def test_a_command_stands_before_or_after_the_flags(ran, argv, command):
  assert _main(*argv) == 0
  assert [name for name, *_ in ran] == [command]


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', '/home/me')
  _, job = main.parse(
    [
      *('chimera', 'reconstruct', '~/a.png', './~/b', '~', '--workdir=~/w'),
      *('--out', '~/o', '--tokenizer=~/t', CONFIG),
      *(f'--config.{path}=~/x' for path in main._PATHS),
    ]
  )
  assert job.arguments == ['/home/me/a.png', './~/b', '/home/me']
  found = (job.workdir, job.out, job.tokenizer)
  assert found == ('/home/me/w', '/home/me/o', '/home/me/t')
  c = job.config
  found = c.data.source, c.data.held_out_source, c.init_from
  found += c.eval.inception, c.eval.features
  assert set(found) == {'/home/me/x'}
  # What is called that is meant.
  (tmp_path / '~').mkdir()
  assert main.parse(['chimera', '--workdir=~'])[1].workdir == '~'


def test_overrides_reach_the_config_in_either_form(ran):
  argv = (
    f'{CONFIG}:smoke',
    '--config.train.batch_size=4',
    '--config.train.learning_rate',
    '0.5',
    '--noconfig.q.enabled',
    '--config.specialists.perceptual.emphasis.ssim=2',
    '--config.specialists.structural.bins=(0, 1)',
  )
  assert _main(*argv) == 0
  config = ran[0][1]
  assert config.basename == 'smoke'
  assert config.train.batch_size == 4
  assert config.train.learning_rate == 0.5
  assert config.q.enabled is False
  assert config.specialists.perceptual.emphasis.ssim == 2
  assert config.specialists.structural.bins == (0, 1)


def test_the_workdir_is_named_after_the_run_or_as_told(ran):
  assert _main(f'{CONFIG}:seed') == 0
  assert _main(CONFIG, '--workdir=elsewhere/deep') == 0
  assert [workdir for *_, workdir in ran] == ['runs/seed', 'elsewhere/deep']
  written = pathlib.Path('runs/seed/config.json').read_text()
  assert json.loads(written)['basename'] == 'seed'
  assert pathlib.Path('elsewhere/deep/config.json').exists()


@pytest.mark.parametrize(
  'flag', [('--config=:smoke',), ('-config=:smoke',), ('--config', ':smoke')]
)
def test_a_variant_alone_is_of_the_config_that_ships(ran, flag):
  assert _main(*flag, '--config.seed=3') == 0
  assert _main('train', *flag, '--config.seed=3') == 0
  assert _main(f'{CONFIG}:smoke', '--config.seed=3') == 0
  texts = [config.to_json() for _, config, _ in ran]
  assert texts[0] == texts[1] == texts[2]
  assert ran[0][2] == 'runs/smoke'


def test_a_colon_elsewhere_is_left_alone(monkeypatch, ran):
  assert main.parse(['chimera', 'tokenize', ':a'])[1].arguments == [':a']


@pytest.mark.parametrize(
  ('words', 'files', 'out'),
  [
    (('-dash.png', 'b.png'), ['-dash.png', 'b.png'], ''),
    (('--out=o', '--', '-dash.png', 'b.png'), ['-dash.png', 'b.png'], 'o'),
    (('-dash.png', '--out', 'o', '--', 'b.png'), ['-dash.png', 'b.png'], 'o'),
    (
      ('--', '--config.png', '-config=:x.png'),
      ['--config.png', '-config=:x.png'],
      '',
    ),
    (
      ('-no.png', '--debug', '--', '--out=-.png', '--debug'),
      ['-no.png', '--out=-.png', '--debug'],
      '',
    ),
  ],
)
def test_a_file_may_be_named_like_a_flag(ran, words, files, out):
  for name in files:
    pathlib.Path(name).write_text('')
  command, job = main.parse(['chimera', 'reconstruct', *words])
  assert command == 'reconstruct'
  assert [str(pathlib.Path(name)) for name in job.arguments] == files
  assert job.out == out


def test_more_devices_than_there_are_are_refused_before_stage_1(
  ran, capfd, monkeypatch
):
  assert _main(CONFIG, '--config.devices=4') == 0
  first = jax.devices()[:1]
  monkeypatch.setattr(jax, 'devices', lambda: first)
  for dry in ((), ('--dry-run',)):
    assert _main(CONFIG, '--workdir=w', '--config.devices=4', *dry) == 2
    error = capfd.readouterr().err
    assert error.count('\n') == 1
    assert 'one of 1, for 4 clones with batches of 8 on at most 1, got' in error
  assert len(ran) == 1
  assert not pathlib.Path('w').exists()


def test_a_device_without_memory_is_one_line(ran, capfd, monkeypatch):
  def train(job):
    raise RuntimeError(said)

  monkeypatch.setitem(main.COMMANDS, 'train', train)
  said = 'RESOURCE_EXHAUSTED: Out of memory'
  assert _main(CONFIG) == 2
  error = capfd.readouterr().err
  assert error.startswith('Error: The memory of a device is full (RESOURCE_EXH')
  assert error.count('\n') == 1
  with pytest.raises(RuntimeError):
    _main(CONFIG, '--debug')
  said = 'INTERNAL: a bug'
  with pytest.raises(RuntimeError):
    _main(CONFIG)


def test_a_word_that_is_neither_flag_nor_file_is_refused(ran, capfd):
  assert _main('reconstruct', '-dash.png') == 2
  assert "Unknown command line flag 'dash.png'" in capfd.readouterr().err


@pytest.mark.parametrize(
  'argv',
  [
    ('tokenize', 'photos', '--out=f'),
    ('detokenize', 'f'),
    ('detokenize', 'd', '--out=f/deep/er'),
    ('reconstruct', 'f', '--out', 'f'),
    ('export', '--out=f'),
    ('reconstruct', 'f', '--tokenizer=f'),
    ('train', '--workdir=f'),
    ('doctor', '--workdir=f/w'),
    ('mission-control', '--workdir=link'),
  ],
)
def test_a_file_in_the_place_of_a_folder_is_said_to_be_one(ran, capfd, argv):
  pathlib.Path('f').write_text('kept')
  pathlib.Path('d').mkdir()
  pathlib.Path('link').symlink_to('nowhere')
  assert _main(*argv) == 2
  [line] = capfd.readouterr().err.splitlines()
  assert 'must be a folder, got ' in line
  assert line.endswith((': f is none.', ': link is none.'))
  assert not ran
  assert pathlib.Path('f').read_text() == 'kept'
  assert sorted(p.name for p in pathlib.Path().iterdir()) == ['d', 'f', 'link']


def test_without_a_command_line_it_is_the_process_s_own(ran, monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['chimera', '--config=:smoke', 'train'])
  assert main.main() == 0
  assert ran[0][1].basename == 'smoke'


@pytest.mark.parametrize('variants', ['256,smoke', 'smoke,256'])
def test_variants_add_up_in_any_order(ran, variants):
  assert _main(f'{CONFIG}:{variants}') == 0
  config = ran[0][1]
  assert ran[0][2] == 'runs/256-smoke'
  assert (config.data.image_size, config.model.downsample) == (256, 4)
  assert config.train.cycles == 60


def test_a_dry_run_runs_nothing_and_leaves_no_workdir(ran, monkeypatch):
  calls = []
  monkeypatch.setattr(main, '_dry_run', lambda job: calls.append(job.workdir))
  assert _main(CONFIG, '--dry-run') == 0
  assert _main(CONFIG, 'train', '--dry-run', '--workdir=w') == 0
  assert calls == ['runs/chimera', 'w']
  assert ran == []
  assert list(pathlib.Path().iterdir()) == []


def test_two_command_lines_in_one_process_do_not_mix(ran):
  _main(CONFIG, '--config.seed=5')
  _main(CONFIG, '--workdir=b')
  assert [config.seed for _, config, _ in ran] == [5, 0]


@pytest.mark.parametrize(
  ('argv', 'complaint'),
  [
    (('trian',), 'did you mean train?'),
    (('prepare_latents',), 'did you mean prepare-latents?'),
    (('paint', 'a.png'), 'one of train, prepare-latents, prepare-curr'),
    (('reconstruct',), 'reconstruct takes IMAGE..., got nothing'),
    (('tokenize',), 'tokenize takes FOLDER, got nothing'),
    (('detokenize', 'a', 'b'), 'detokenize takes FOLDER, got a b'),
    (('train', 'evaluate'), 'train takes no further arguments, got evaluate'),
    ((CONFIG, 'train', '3'), 'train takes no further arguments, got 3'),
    (('--workdirs=x',), "'workdirs'. Did you mean: workdir"),
    ((f'{CONFIG}:smoky',), "smoke, seed, control, got 'smoky'"),
    ((f'{CONFIG}:128,',), "control, got ''"),
    (('evaluate', '--dry-run'), '--dry-run is of train, got evaluate'),
    (('evaluate', '--out=x'), '--out is of export, reconstruct, tokenize, d'),
    (('export', '--tokenizer=x'), '--tokenizer is of reconstruct, tokenize'),
    (('--hosts=abc',), 'Error: flag --hosts=abc: '),
    (('evaluate', '--hosts=2', '--host=1'), 'hosts train; evaluate is of one'),
    (('evaluate', '--host=0'), 'leave out --coordinator, --hosts and --host.'),
    (('--config.init_from=/nope',), 'an exported tokenizer or a workdir'),
    (('--config=nope.py',), 'No such config file: nope.py'),
    (('--config=',), 'No such config file: . Fix --config: without a file'),
    (('--config=:smoky',), "smoke, seed, control, got 'smoky'"),
    (('--config',), '--config'),
    (('--config.train.bath_size=3',), 'mean --config.train.batch_size?'),
    (('--config.trian.batch_size', '3'), 'mean --config.train.batch_size?'),
    (('--noconfig.q.enable',), 'mean --config.q.enabled?'),
    (('--config.seed.x=3',), 'mean --config.seed?'),
    (('--config.train=3',), '--config.train is a group of keys'),
    (('--config.train.batch_size=4.5',), '--config.train.batch_size=4.5'),
    (('--config.train.batch_size=many',), '--config.train.batch_size=many'),
    (('--config.train.batch_size',), '--config.train.batch_size'),
    (('--config.school.enabled=maybe',), '--config.school.enabled=maybe'),
    (('--config.q.low=1',), 'Unknown config key --config.q.low, did you mean'),
    (
      ('--config.specialists.structural.bins=()',),
      'bins from 0 to 9, each once',
    ),
    (('--config.train.batch_size=0',), 'must be at least 1'),
    (('--config.train.batch_size=400',), 'at most the samples of the smallest'),
    (('--config.data.source=/nope',), 'no such folder: /nope'),
    (('--config.data.source=/nope.pkl',), 'No such file: /nope.pkl'),
    (('--config.data.source=.',), 'No readable image'),
    (('--config.seed=1', CONFIG), 'in argv before a value for --config'),
  ],
)
def test_a_mistake_is_one_line_and_exit_code_2(ran, capfd, argv, complaint):
  assert _main(*argv) == 2
  out, err = capfd.readouterr()
  assert err.startswith('Error: ')
  assert err.count('\n') == 1
  assert complaint in err
  assert out == ''
  assert ran == []
  assert list(pathlib.Path().iterdir()) == []


@pytest.mark.parametrize(
  'text',
  [
    'def get_config(:',
    'import nothing_of_that_name',
    'x = 1',
    'def get_config(arg=""): return {}["a"]',
    'def get_config(arg=""): raise TypeError("two\\nlines")',
  ],
)
def test_a_config_file_that_does_not_load_is_one_line(ran, capfd, text):
  path = pathlib.Path('mine.py')
  path.write_text(text)
  assert _main(f'--config={path}') == 2
  err = capfd.readouterr().err
  assert err.startswith('Error: --config')
  assert err.count('\n') == 1


def test_an_inception_that_is_none_is_one_line(ran, tmp_path, capfd):
  (tmp_path / 'inception.jax').write_bytes(b'no network')
  argv = (CONFIG, '--workdir=w', '--config.eval.inception=inception.jax')
  assert _main(*argv) == 2
  [line] = capfd.readouterr().err.splitlines()
  assert line.startswith('Error: eval.inception must be a jax.export of')
  assert line.endswith('fix --config.eval.inception.')
  assert not ran
  assert not pathlib.Path('w').exists()


def test_evaluate_needs_a_checkpoint_and_makes_nothing(ran, capfd):
  assert _main('evaluate', CONFIG, '--workdir=w') == 2
  assert 'There must be a checkpoint, got none in w' in capfd.readouterr().err
  assert not pathlib.Path('w').exists()
  assert _main('train', CONFIG, '--workdir=w') == 0
  pathlib.Path('w/checkpoints/100').mkdir(parents=True)
  assert _main(CONFIG, '--workdir=w', 'evaluate') == 0
  assert [name for name, *_ in ran] == ['train', 'evaluate']


def test_evaluate_goes_by_the_config_of_its_workdir(ran, capfd):
  trained = ('--config.train.batch_size=4', '--config.school.mix=0.25')
  assert _main('train', CONFIG, '--workdir=w', *trained) == 0
  pathlib.Path('w/checkpoints/100').mkdir(parents=True)
  assert _main('evaluate', '--workdir=w', '--config.eval.batch_size=3') == 0
  config = ran[-1][1]
  assert config.train.batch_size == 4
  assert config.school.mix == 0.25
  assert config.specialists.adversarial.bins == (4, 5, 6)
  assert config.eval.batch_size == 3
  assert _main('export', '--workdir=w', '--config.train.batch_size=8') == 2
  assert 'train.batch_size (4 there, 8 now)' in capfd.readouterr().err
  pathlib.Path('w/config.json').write_text('{"basename": 3, "seed": "x"}')
  assert _main('evaluate', '--workdir=w') == 2
  assert capfd.readouterr().err.count('\n') == 1


@pytest.mark.parametrize('flag', ['--debug', '-debug', '--debug=True'])
def test_debug_shows_the_traceback(ran, flag):
  with pytest.raises(ValueError, match='at least 1'):
    _main(CONFIG, '--config.train.batch_size=0', flag)


@pytest.mark.parametrize(
  ('change', 'got'), [('del c.basename', 'None'), ('c.basename = 3', '3')]
)
def test_a_config_of_no_name_is_one_line(ran, capfd, change, got):
  pathlib.Path('mine.py').write_text(
    'from chimera.run import default_config\n'
    'def get_config(variant=""):\n'
    '  c = default_config.get_config(variant)\n'
    f'  with c.ignore_type(): {change}\n'
    '  return c\n'
  )
  assert _main('--config=mine.py') == 2
  err = capfd.readouterr().err
  assert f'got basename = {got}' in err
  assert err.count('\n') == 1


def test_an_error_of_a_command_is_one_line_too(ran, capfd, monkeypatch):
  def fail(job):
    raise ValueError('curriculum must be fresh:\n  run it anew.')

  monkeypatch.setitem(main.COMMANDS, 'train', fail)
  assert _main(CONFIG) == 2
  assert capfd.readouterr().err == (
    'Error: curriculum must be fresh: run it anew.\n'
  )


def test_too_little_memory_is_one_line(ran, capfd, monkeypatch):
  def fail(job):
    raise MemoryError

  monkeypatch.setitem(main.COMMANDS, 'train', fail)
  assert _main() == 2
  err = capfd.readouterr().err
  assert 'not enough memory' in err
  assert err.count('\n') == 1


def test_an_interrupt_is_one_line_and_exit_code_130(ran, capfd, monkeypatch):
  def interrupt(job):
    raise KeyboardInterrupt

  monkeypatch.setitem(main.COMMANDS, 'train', interrupt)
  assert _main(CONFIG) == 130
  assert capfd.readouterr().err.count('\n') == 1


def test_our_own_mistakes_keep_their_traceback(ran, monkeypatch):
  def fail(job):
    raise KeyError('a bug')

  monkeypatch.setitem(main.COMMANDS, 'train', fail)
  with pytest.raises(KeyError, match='a bug'):
    _main(CONFIG)


def test_a_workdir_of_another_config_is_refused_and_left_alone(ran, capfd):
  assert _main(CONFIG, '--workdir=w') == 0
  pathlib.Path('w/checkpoints/100').mkdir(parents=True)
  before = pathlib.Path('w/config.json').read_bytes()
  assert _main(CONFIG, '--workdir=w', '--config.train.batch_size=4') == 2
  assert 'train.batch_size (8 there, 4 now)' in capfd.readouterr().err
  assert pathlib.Path('w/config.json').read_bytes() == before
  assert len(ran) == 1
  assert _main(CONFIG, '--workdir=w', '--config.eval.batch_size=4') == 0
  written = json.loads(pathlib.Path('w/config.json').read_text())
  assert written['eval']['batch_size'] == 4


def test_of_two_processes_on_one_workdir_the_second_is_refused(tmp_path):
  program = f"""
import sys
from chimera import main
def command(job):
  sys.stdout.write('at work\\n')
  sys.stdout.flush()
  sys.stdin.read()
main.COMMANDS['train'] = command
sys.exit(main.main(['chimera', '--workdir={tmp_path}/w']))
"""
  first = subprocess.Popen(
    [sys.executable, '-c', program],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    cwd=ROOT,
  )
  with first:
    assert first.stdout.readline() == b'at work\n'
    before = (tmp_path / 'w' / 'config.json').read_bytes()
    second = subprocess.run(
      [sys.executable, '-c', program + '# the second'],
      capture_output=True,
      text=True,
      cwd=ROOT,
    )
    assert second.returncode == 2
    assert second.stdout == ''
    assert f'process {first.pid} is at work in it' in second.stderr
    assert second.stderr.count('\n') == 1
    assert (tmp_path / 'w' / 'config.json').read_bytes() == before
    first.stdin.close()
    assert first.wait() == 0
  assert [p.name for p in (tmp_path / 'w').iterdir()] == ['config.json']


def test_help_lists_every_command(capsys):
  assert _main('--help') == 0
  out = capsys.readouterr().out
  assert all(name in out for name in main.COMMANDS)
  assert max(map(len, out.splitlines())) <= 100


def test_a_mistake_is_told_before_anything_heavy_is_imported(tmp_path):
  program = (
    'import sys; from chimera import main\n'
    'code = main.main(["chimera", "--config.train.bath_size=3"])\n'
    'heavy = {"jax", "tensorflow", "flax"} & set(sys.modules)\n'
    'sys.exit(f"{code} {heavy}" if code != 2 or heavy else 0)'
  )
  subprocess.run([sys.executable, '-c', program], check=True, cwd=ROOT)


def test_mission_control_needs_a_run_and_makes_nothing(tmp_path, capfd):
  workdir = tmp_path / 'w'
  assert _main('mission-control', f'--workdir={workdir}') == 2
  err = capfd.readouterr().err
  assert err.startswith('Error: A run that can be watched has its config.json')
  assert err.count('\n') == 1
  assert not workdir.exists()


def test_mission_control_prints_a_run_and_leaves_it_as_it_is(tmp_path):
  config = main.parse(['chimera', CONFIG])[1].config
  (tmp_path / 'config.json').write_text(config.to_json())
  history.History(str(tmp_path)).append(50, {}, {'perf/cycles_per_sec': 2.0})
  before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
  program = (
    'import sys; from chimera import main\n'
    f'code = main.main(["c", "mission-control", "--workdir={tmp_path}"])\n'
    'heavy = {"jax", "tensorflow", "flax"} & set(sys.modules)\n'
    'sys.exit(f"{code} {heavy}" if code or heavy else 0)'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, cwd=ROOT, check=True
  )
  assert b'50 of 1000' in done.stdout
  assert b'\x1b' not in done.stdout
  assert done.stderr == b''
  assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
  ('perplexity', 'code', 'words'),
  [(600.0, 0, b'Nothing is wrong'), (1.0, 1, b'Collapsed codebook')],
)
def test_the_doctor_says_what_is_wrong_and_leaves_the_run_as_it_is(
  tmp_path, perplexity, code, words
):
  written.write(tmp_path, master=lambda i: {'codebook/perplexity': perplexity})
  before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
  program = (
    'import sys; from chimera import main\n'
    f'code = main.main(["c", "doctor", "--workdir={tmp_path}"])\n'
    'heavy = {"jax", "tensorflow", "flax"} & set(sys.modules)\n'
    'sys.exit(f"{heavy}" if heavy else code)'
  )
  done = subprocess.run(
    [sys.executable, '-c', program], capture_output=True, cwd=ROOT, check=False
  )
  assert done.stderr == b''
  assert done.returncode == code
  assert words in done.stdout
  assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


def test_the_doctor_needs_a_run_and_makes_nothing(tmp_path, capfd):
  workdir = tmp_path / 'w'
  assert _main('doctor', f'--workdir={workdir}') == 2
  err = capfd.readouterr().err
  assert err.startswith('Error: A run has its config.json, got none in')
  assert err.count('\n') == 1
  assert not workdir.exists()


def test_the_module_runs_from_the_command_line(tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'chimera.main', 'evaluat', f'--workdir={tmp_path}'],
    capture_output=True,
    text=True,
    cwd=ROOT,
  )
  assert done.returncode == 2
  assert done.stdout == ''
  assert done.stderr.endswith('got evaluat: did you mean evaluate?\n')
  assert done.stderr.count('\n') == 1


def test_only_our_lines_and_warnings_are_logged(tmp_path):
  program = f"""
import logging, sys
from absl import logging as absl_logging
from chimera import main
from chimera.system import progress
def command(job):
  absl_logging.info('a line of others')
  logging.getLogger('jax').info('another')
  absl_logging.warning('a warning of others')
  progress.Progress(10).update(5)
main.COMMANDS['train'] = command
sys.exit(main.main(['chimera', '--workdir={tmp_path}/w']))
"""
  done = subprocess.run(
    [sys.executable, '-c', program],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=True,
  )
  first, second = done.stderr.splitlines()
  assert first.endswith('a warning of others')
  assert 'Cycle 5 of 10 (50 %)' in second


def test_hosts_compare_every_key_but_the_dashboard(ran, monkeypatch):
  told = []
  monkeypatch.setattr(hosts, 'end_with_the_guard', lambda: None)
  monkeypatch.setattr(
    meeting, 'meet', lambda place, papers: told.append(papers) or 1 / 0
  )

  def papers_of(change):
    _, job = main.parse(['chimera', CONFIG, f'--config.{change}'])
    with pytest.raises(ZeroDivisionError):
      main._run_on_all(job)
    return told.pop().items()

  base = papers_of('train.cycles=1000')
  assert papers_of('train.dashboard=false') == base
  for change in ('train.cycles=2000', 'train.decay=7.0', 'devices=2'):
    key, _, value = change.partition('=')
    assert papers_of(change) - base == {(f'--config.{key}', value)}
