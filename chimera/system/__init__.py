"""Files, locks, signals, caches."""
