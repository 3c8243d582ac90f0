"""The doctor: what is wrong with a run, in plain words, and which key to turn.

Reads a workdir, changes nothing in it, and needs no JAX. What is wrong with the
data comes first, for the rest may follow from it.
"""

from collections.abc import Iterator
import math
import textwrap
from typing import NamedTuple

from chimera.doctor import case as case_lib
from chimera.doctor import readings, symptoms
from chimera.doctor import reference as reference_lib


class Diagnosis(NamedTuple):
  """What the doctor found."""

  workdir: str
  findings: list[case_lib.Finding]  # the likeliest cause first
  notes: list[str]  # what is to be known beside it
  table: list[tuple[str, str, str]]  # quantity, this run's, the reference's


def diagnose(workdir: str) -> Diagnosis:
  """Examines a run.

  Raises:
    ValueError: there is no run in the workdir, or a file of it is broken.
  """
  reference = reference_lib.load()
  run = readings.read_run(workdir)
  curves, figures = readings.curves(run), readings.figures(run)
  long = run.cycles >= case_lib.CYCLES and len(run.rows) >= case_lib.ROWS
  differences = reference_lib.differences(run.settings, reference.settings)
  case = case_lib.Case(run, curves, figures, reference, long, differences)
  findings = [finding for check in symptoms.CHECKS for finding in check(case)]
  if not findings:
    findings = list(symptoms.against(case))
  return Diagnosis(workdir, findings, list(_notes(case)), list(_table(case)))


def describe(diagnosis: Diagnosis) -> str:
  """The diagnosis as plain text of 80 columns."""
  count = len(diagnosis.findings)
  if not count:
    head = f'Nothing is wrong with {diagnosis.workdir}.'
  elif count == 1:
    head = f'One thing is wrong with {diagnosis.workdir}:'
  else:
    head = (
      f'{count} things are wrong with {diagnosis.workdir}. Fix the first one '
      'first: those below it may follow from it.'
    )
  wrap = textwrap.TextWrapper(
    80, break_long_words=False, break_on_hyphens=False
  )
  blocks = [wrap.fill(head)]
  wrap.subsequent_indent = '  '
  for i, (name, seen, why, turn) in enumerate(diagnosis.findings, 1):
    number = f'{i}. ' if count > 1 else ''
    blocks.append(wrap.fill(f'{number}{name}. {seen} {why} Turn: {turn}'))
  blocks += [wrap.fill(f'Note: {note}') for note in diagnosis.notes]
  rows = [('late in the run', 'this run', 'reference'), *diagnosis.table]
  n, m, k = (max(map(len, column)) for column in zip(*rows))
  blocks.append('\n'.join(f'{a:<{n}}  {b:>{m}}  {c:>{k}}' for a, b, c in rows))
  return '\n\n'.join(blocks) + '\n'


def _notes(case: case_lib.Case) -> Iterator[str]:
  run, s = case.run, case.run.settings
  if run.cycles < s['train.cycles']:
    yield (
      f'the run stands at cycle {run.cycles} of {s["train.cycles"]}: it goes '
      'on, or was interrupted; the same train command resumes it.'
    )
  if not case.long:
    yield (
      f'{run.cycles} cycles and {len(run.rows)} log cycles are too few for '
      f'the curves ({case_lib.CYCLES} and {case_lib.ROWS} are needed): only '
      'what must never be was looked for.'
    )
  if case.differences:
    more = len(case.differences) - 6
    yield (
      'it is not the default config, so only quantities without a scale were '
      'compared. Of the reference differ: '
      + '; '.join(case.differences[:6])
      + (f'; and {more} more.' if more > 0 else '.')
    )
  if not case.figures:
    yield 'the workdir holds no latents and manifest: the data were not seen.'
  elif 'gradient' not in case.figures:
    yield 'it trains on path_params: there were no images to look at.'
  elif 'copies' not in case.figures:
    yield 'it was prepared before near copies were counted.'


def _table(case: case_lib.Case) -> Iterator[tuple[str, str, str]]:
  for name, label, form, scaled in (
    ('base_loss', 'loss by base weights', '.3f', True),
    ('fallen', 'loss over the first one', '.2f', False),
    ('perplexity', 'perplexity over codes', '.1%', False),
    ('saturated', 'weights at the PID limit', '.0%', False),
    ('penalty', 'critic penalty', '.2g', False),
    *(
      (name, f'held-out {metric.head}', metric.form, True)
      for name, metric in readings.HELD_OUT.items()
    ),
    ('gap', 'held-out over training L1', '.2f', False),
  ):
    value = case.late(name)
    if math.isfinite(value) and not (scaled and case.differences):
      yield label, format(value, form), case.shown(name, form)
  for name, label, form in (
    ('correlation', 'radius with gradient, rank', '.2f'),
    ('photographs', 'photographs', '.0f'),
    ('lesson', 'samples in the least lesson', '.0f'),
  ):
    if name in case.figures:
      value = format(case.figures[name], form)
      yield label, value, case.shown(name, form)
