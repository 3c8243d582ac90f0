"""Chimera's configuration: every key that the code reads.

Whole numbers are whole, 8 and not 8.0. What a value must be, and how far it may
go, says chimera/run/rules.py.

  python -m chimera.main --config=configs/chimera.py

Variants (`--config=configs/chimera.py:NAME`), or several, as `:256,smoke`:
  64       the default, at 64 pixels: chosen for the held-out result.
  128      4 times the tokens at 4 times the cost of a cycle: 0.6 M parameters,
           0.6 GiB for all clones and the training set.
  256      16 times the pixels, for a host of 4 accelerators: 3.7 M parameters;
           3 GiB a device for the training set, and 4.3 GiB for all four
           clones together (on a CPU: 30 s a cycle on two loaded cores).
  smoke    the whole pipeline, small.
  seed     the design document's letter: every step melded, Adam per clone,
           full specialists, full bins; alpha 0.5.
  control  one data-parallel learner: School, agents and Meld off.
"""

from collections.abc import Mapping
import types

import ml_collections

# What each specialist's PID wants of each loss term: see `target` below.
_TARGET = {
  'l1': 1.0,
  'vq': 1.0,
  'adv': 0.02,
  'varentropy': 1.0,
  'ssim': 1.0,
  'edge': 1.0,
  'autocorrelation': 1.0,
  'moments': 1.0,
  'spectrum': 1.0,
  'color_covariance': 1.0,
}


def _specialist(
  *,
  bins: tuple[int, ...],
  emphasis: dict[str, float],
  target: Mapping[str, float] = types.MappingProxyType({}),
  enrols: bool = False,
  proportional: float = 0.3,
  integral: float = 0.002,
  derivative: float = 0.5,
  low: float = 0.5,
  high: float = 1.5,
) -> ml_collections.ConfigDict:
  """The block of one specialist, with what most of them have in common."""
  c = ml_collections.ConfigDict()
  c.bins = bins  # its lessons: of the curriculum, 0 is easy and 9 hard
  c.enrols = enrols  # whether its class follows the tracked varentropy
  # A weight a loss term, see loss.emphasis; 1 is the base weight.
  c.emphasis = {**dict.fromkeys(_TARGET, 1.0), **emphasis}
  c.pid = ml_collections.ConfigDict()
  c.pid.proportional = proportional
  c.pid.integral = integral  # a cycle
  c.pid.derivative = derivative  # cycles
  # Of each loss term, what the loss has been of late times this, over the
  # clones' mean of it; of adv its share of the gradient at the reconstruction.
  c.pid.target = {**_TARGET, **target}
  c.q = ml_collections.ConfigDict()
  c.q.low = low  # least trim of the learning rate, once it has decided
  c.q.high = high  # greatest
  return c


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  c = ml_collections.ConfigDict()
  c.basename = 'chimera'  # names the workdir runs/{basename} and the curriculum
  c.init_from = ''  # an exported tokenizer or a workdir, to fine-tune it
  c.seed = 0
  # How many train; 0 = the most there are that divide the clones, or that give
  # each clone as many, by whose number train.batch_size can be divided.
  c.devices = 0
  # Who learns, and in which order: each has its block in `specialists`. Names
  # of folders and of rows, so no two differ by capitals alone.
  c.clone_names = ('perceptual', 'structural', 'adversarial', 'latent_purity')

  c.data = ml_collections.ConfigDict()
  c.data.source = 'photos'  # or a folder, .zip, .tar, .npy, .npz or .pkl
  c.data.held_out_source = ''  # held-out images likewise; '' = split source
  c.data.held_out_fraction = 0.25  # of the photographs, where source is split
  # Pixels, side of a crop as the models see it: a multiple of optics.cell *
  # model.downsample, and 8 cells at least.
  c.data.image_size = 64
  c.data.train_count = 3072  # crops
  c.data.held_out_count = 256  # crops
  c.data.crop = 'random'  # or 'whole': one a photograph, its centered square
  c.data.permuted = 0.8  # share of the training crops whose colors are shuffled
  c.data.mirrored = 0.5  # likewise, left and right
  c.data.max_scale = 3.0  # a random crop's side is 1 to this times image_size
  c.data.seed = 8  # of split and crops: kept apart from the seed of training

  c.optics = ml_collections.ConfigDict()  # stage 1: image <-> path_params
  c.optics.cell = 4  # pixels a side of one cell of the path_params grid
  c.optics.width = 48  # channels
  c.optics.radius = 'local'  # by contrast: about a cell, 'contrast', 'free'
  c.optics.steps = 900
  c.optics.batch_size = 16  # images
  c.optics.learning_rate = 2e-3
  c.optics.noise = 0.15  # on path_params in [-1, 1] while the optics learn
  # Steps after the last cycle, in which the decoder learns to draw what the
  # tokenizer makes; 0: none.
  c.optics.finish = 300
  c.optics.chunk = 256  # samples encoded or written at a time

  c.school = ml_collections.ConfigDict()
  c.school.enabled = True  # False: every lesson is uniform over everything
  c.school.metric = 'mean_radius'  # or 'total_variation'
  c.school.mix = 0.5  # part of a lesson drawn from everything, in whole samples
  c.school.enrol_from = 300  # cycle of the first re-enrolment; 0 = never
  c.school.enrol_every = 100  # cycles between two re-enrolments, or fences
  c.school.half_life = 500.0  # cycles in which a tracked varentropy halves
  c.school.floor = 0.1  # share of the re-enrolled drawn by lot from everything
  # In no class is a sample whose error, over the usual one of its cycle, is
  # beyond the third quartile by so many distances of the quartiles, as of
  # noise. 0 = no such fence.
  c.school.fence = 2.0
  c.school.resident_mb = 2048  # whole training set on a device up to this size
  # Else a device holds, for each of its clones, as many samples as the largest
  # class has, and so many of everything at a time.
  c.school.rotating_samples = 8192
  c.school.rotate_every = 50  # cycles until others are; see train.log_every

  c.model = ml_collections.ConfigDict()
  c.model.width = 64  # channels
  c.model.norm = 'layer'  # of a cell's channels; 'group' is of the whole image
  c.model.border = 'mean'  # what an encoder sees beyond an image; or 'zeros'
  c.model.blocks = 2  # residual blocks at the token grid, each side
  c.model.downsample = 2  # cells a side of one token: 1, 2, 4, ...
  c.model.quantizer = 'vq'  # a learned codebook; or 'fsq', which has none
  c.model.codes = 1024  # V, of 'vq'
  c.model.code_dim = 8  # D, of 'vq'
  c.model.revive_after = 200  # cycles of disuse, of 'vq'; 0 = never
  c.model.levels = (8, 5, 5, 5)  # of each dimension, of 'fsq'; V: their product
  c.model.critic_width = 32  # channels

  c.loss = ml_collections.ConfigDict()  # base weights
  # What a specialist weighs: base * (1 + emphasis * (its own emphasis - 1)).
  # With 0 their PIDs have the same targets, too.
  c.loss.emphasis = 0.1
  c.loss.l1 = 1.0
  c.loss.vq = 0.5
  c.loss.adv = 0.005
  c.loss.varentropy = 0.02
  c.loss.ssim = 0.3
  c.loss.edge = 0.3
  c.loss.autocorrelation = 0.1
  c.loss.moments = 0.1
  c.loss.spectrum = 0.1
  c.loss.color_covariance = 0.1
  c.loss.commitment = 0.25  # of the vq term
  c.loss.temperature = 0.1  # of the softmax assignment over codes
  c.loss.adv_ramp = 300  # cycles in which the adversarial weight rises from 0

  c.critic = ml_collections.ConfigDict()  # WGAN-GP
  c.critic.learning_rate = 2e-4
  c.critic.penalty = 10.0
  c.critic.drift = 1e-3

  # The document's "four distinct hyperparameter dictionaries" (4.3, 5.2): what
  # each has of its own. `_specialist` has the rest, and says what each key is.
  c.specialists = ml_collections.ConfigDict()
  # A pushes the boundaries of high-frequency detail.
  c.specialists.perceptual = _specialist(
    bins=(9,),
    emphasis={
      'l1': 0.7,
      'vq': 0.7,
      'adv': 0.7,
      'ssim': 3.0,
      'edge': 3.0,
      'autocorrelation': 3.0,
      'spectrum': 2.0,
    },
    target={
      'ssim': 0.5,
      'edge': 0.5,
      'autocorrelation': 0.5,
      'spectrum': 0.5,
    },
    derivative=1.0,
    high=1.25,
  )
  # B solidifies the foundations: shapes, colors, the use of the codebook.
  c.specialists.structural = _specialist(
    bins=(0, 1, 2, 3),
    emphasis={
      'l1': 2.0,
      'vq': 2.0,
      'adv': 0.5,
      'ssim': 0.5,
      'edge': 0.5,
      'autocorrelation': 0.5,
      'spectrum': 0.5,
    },
    target={'l1': 0.5, 'vq': 0.5},
    high=2.0,
  )
  # C leads the arms race with its critic.
  c.specialists.adversarial = _specialist(
    bins=(4, 5, 6),
    emphasis={
      'l1': 0.7,
      'vq': 0.7,
      'adv': 5.0,
      'varentropy': 0.5,
      'ssim': 0.7,
      'edge': 0.7,
      'autocorrelation': 0.7,
    },
    target={'adv': 0.2},
  )
  # D, the librarian, cleans and organizes the latent space.
  c.specialists.latent_purity = _specialist(
    bins=(7, 8),
    enrols=True,
    emphasis={
      'l1': 0.7,
      'adv': 0.5,
      'varentropy': 5.0,
      'ssim': 0.7,
      'edge': 0.7,
      'autocorrelation': 0.7,
      'spectrum': 0.7,
    },
    target={'varentropy': 0.5},
  )

  # The PID lambda controller: what is common to all.
  c.pid = ml_collections.ConfigDict()
  c.pid.enabled = True  # False: the base weights
  c.pid.smoothing = 0.9  # of the filtered log error
  # Before an objective is held at its size:
  c.pid.limit = 0.5  # |adjustment| of log lambda: a factor of 1.65
  c.pid.slew = 0.02  # most that log lambda moves in one cycle
  c.pid.memory = 100.0  # cycles in which what was is forgotten by e
  # Of an enabled PID, whatever the weights: the adversarial share is at most
  # target.adv * exp(limit), the commitment's at the encodings within vq_share.
  c.pid.bounded = True
  c.pid.vq_share = (0.08, 0.15)

  # The Q-learning controller of the learning rate, likewise.
  c.q = ml_collections.ConfigDict()
  c.q.enabled = True  # False: the plain schedule
  c.q.actions = (0.8, 0.95, 1.0, 1.05, 1.2)  # multipliers of the learning rate
  c.q.window = 10  # cycles of loss history
  c.q.every = 10  # cycles an action is held
  # Loss history of the clone's 'own' steps, or the 'total', which it is also
  # where no step is a clone's own: of one clone, or of moments in common.
  c.q.history = 'own'
  c.q.rate = 0.2  # of learning of the table
  c.q.discount = 0.9
  # Usual errors of a value by which one must be greater than that of leaving
  # the rate alone. 0: the greatest is taken.
  c.q.caution = 1.0
  c.q.epsilon = 0.3  # exploration at first
  c.q.epsilon_end = 0.05
  c.q.epsilon_decay = 50.0  # decisions in which the excess falls by e

  c.meld = ml_collections.ConfigDict()
  c.meld.enabled = True  # False: the gradients are averaged
  c.meld.every = 1  # cycles; train.cycles is a multiple of it
  c.meld.alpha = 0.0  # share of itself that the master keeps: inverse step
  c.meld.weights = 'equal'  # or 'mass': by each clone's share of the data
  c.meld.optimizer_state = 'shared_v'  # or 'local', 'shared'
  c.meld.outer_learning_rate = 1.0
  c.meld.outer_momentum = 0.0  # Nesterov; DiLoCo takes 0.7 and 0.9
  c.meld.ema = 0.995  # of the average over cycles, never fed back
  # Times the clones' median; beyond it a clone is sick. 0 = no bound.
  c.meld.loss_bound = 10.0  # of the loss by base weights
  c.meld.update_bound = 100.0  # of the norms of gradients and step
  c.meld.sick_cycles = 20  # in a row with fewer than 2 healthy: roll back

  c.train = ml_collections.ConfigDict()
  c.train.cycles = 1000  # may grow later, see train.schedule
  c.train.batch_size = 8  # samples a clone and cycle
  c.train.learning_rate = 8e-3
  # Rates about it are tried, and a better one is found, before the first cycle;
  # False: the rate as it is.
  c.train.audition = True
  c.train.warmup = 50  # cycles; at least 20 for a rate that was found
  # Constant, then a decay; or 'constant', or 'cosine', which alone cannot be
  # given more train.cycles later.
  c.train.schedule = 'wsd'
  c.train.decay = 0.2  # share of the cycles, of 'wsd'
  c.train.adam_b1 = 0.9
  c.train.adam_b2 = 0.99
  # What the tokenizer's convolutions multiply: 'bfloat16' is faster on a TPU or
  # GPU. Parameters, moments, codes, losses, critics and the meld are float32.
  c.train.dtype = 'float32'
  # Of products of float32: 'default' is the device's, which rounds on a TPU or
  # by TF32; 'high' and 'highest' are slower.
  c.train.precision = 'default'
  c.train.cycles_per_dispatch = 1  # on an accelerator 10 spare the host
  c.train.log_every = 50  # cycles; a multiple of cycles_per_dispatch
  c.train.eval_every = 500  # likewise
  c.train.checkpoint_every = 250  # likewise
  c.train.keep = 2  # checkpoints, the newest ones
  c.train.keep_best = True  # and that of the least held-out path_l1
  c.train.rollbacks = 2  # to the last good checkpoint, then the run stops
  c.train.dashboard = True  # on a terminal; False: plain lines

  c.eval = ml_collections.ConfigDict()
  c.eval.batch_size = 64
  c.eval.preview = 6  # images a row
  c.eval.inception = ''  # for rFID; chimera/evaluation/networks.md says what
  c.eval.features = ''  # for a perceptual distance; likewise

  c.export = ml_collections.ConfigDict()
  c.export.weights = 'master'  # or 'ema', the average over cycles

  c.tokens = ml_collections.ConfigDict()  # what tokenize makes of a photograph
  c.tokens.crop = 'center'  # a rectangle of it, resized; or 'whole', as it is
  c.tokens.size = (0, 0)  # pixels of 'center', height and width; 0: image_size
  c.tokens.batch_size = 64  # crops
  c.tokens.shard = 16384  # crops a file

  variants = {
    '64': lambda c: None,
    '128': _128,
    '256': _256,
    'smoke': _smoke,
    'seed': _seed,
    'control': _control,
  }
  names = arg.split(',') if arg else []
  # In this order, whatever the given one: a size sets what others scale.
  names.sort(key=lambda name: [*variants, name].index(name))
  for name in names:
    if names.count(name) > 1:
      raise ValueError(f'A variant must be named once, got {arg!r}.')
    if name not in variants:
      raise ValueError(
        f'A variant must be one of {", ".join(variants)}, got {name!r}.'
      )
    variants[name](c)
  if 'seed' in names and c.meld.enabled:
    c.train.learning_rate = c.train.learning_rate / (1 - c.meld.alpha)
  c.basename = '-'.join(name for name in names if name != '64') or c.basename
  return c


def _128(c):
  """32x32 path_params, 16x16 tokens: 8 pixels a side of a token, as at 64."""
  c.data.image_size = 128
  c.data.train_count = 8192
  c.data.held_out_count = 512
  c.data.max_scale = 2.0
  c.optics.steps = 2000
  c.optics.finish = 600
  c.optics.chunk = 128
  c.model.codes = 2048
  c.train.cycles = 4000
  c.train.learning_rate = 4e-3
  c.train.warmup = 200
  c.loss.adv_ramp = 1000
  c.school.enrol_from = 1000
  c.school.half_life = 2000.0
  c.eval.batch_size = 32


def _256(c):
  """64x64 path_params, 16x16 tokens: 16 pixels a side of a token."""
  c.data.image_size = 256
  c.data.train_count = 65536
  c.data.held_out_count = 1024
  c.data.max_scale = 2.0
  c.optics.steps = 4000
  c.optics.finish = 1200
  c.optics.chunk = 64
  c.school.enrol_from = 5000
  c.school.enrol_every = 500
  c.school.half_life = 5000.0
  c.school.resident_mb = 4096
  c.model.width = 128
  c.model.downsample = 4
  c.model.codes = 4096
  c.model.critic_width = 64
  c.loss.adv_ramp = 5000
  c.train.cycles = 50000
  c.train.batch_size = 16
  c.train.learning_rate = 2e-3
  c.train.warmup = 1000
  c.train.eval_every = 5000
  c.train.checkpoint_every = 1000
  c.eval.batch_size = 16


def _smoke(c):
  """Measured in WORKSPACE.md."""
  c.data.train_count = 320
  c.data.held_out_count = 32
  c.optics.steps = 60
  c.optics.finish = 20
  c.optics.width = 16
  c.model.width = 16
  c.model.critic_width = 8
  c.model.codes = 64
  c.model.blocks = 1
  c.model.revive_after = 10
  c.train.cycles = 60
  c.train.warmup = 10
  c.train.log_every = 20
  c.train.eval_every = 60
  c.train.checkpoint_every = 20
  c.school.enrol_from = 20
  c.school.enrol_every = 20
  c.school.rotate_every = 20
  c.loss.adv_ramp = 20
  c.eval.batch_size = 32


def _seed(c):
  """The letter names no alpha: 0.5, the learning rate scaled by its inverse."""
  c.loss.emphasis = 1.0
  c.school.mix = 0.0
  c.school.fence = 0.0
  c.meld.optimizer_state = 'local'
  c.meld.alpha = 0.5
  c.train.audition = False
  c.q.history = 'total'
  c.q.caution = 0.0
  c.pid.bounded = False


def _control(c):
  """As many images a cycle, same mean loss."""
  c.loss.emphasis = 0.0
  c.school.enabled = False
  c.pid.enabled = False
  c.q.enabled = False
  c.meld.enabled = False
  c.train.audition = False
