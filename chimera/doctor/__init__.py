"""A run examined: afterwards and beforehand."""
