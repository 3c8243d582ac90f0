"""The Clones: networks, losses, and what tells specialists apart."""
