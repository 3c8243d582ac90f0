"""The School: curriculum and lessons."""
