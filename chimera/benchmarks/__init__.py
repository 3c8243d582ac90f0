"""What Chimera costs, measured: a benchmark a module."""
