"""A run: its config, devices, checkpoints and results."""
