"""By which flags XLA compiles sooner: what tests compile runs for seconds."""

import importlib.metadata

# The newer emitter of fusions takes a third of the time that a step needs to
# compile, and no core is free to compile a part of it. A jaxlib that does not
# know a flag aborts.
_KNOWN = importlib.metadata.version('jaxlib').startswith('0.10.')
SOONER = (
  '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1'
  if _KNOWN
  else ''
)
