"""Stage 1: images to path_params and back."""
