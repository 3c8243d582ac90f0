"""Chimera: an image-tokenizer trainer with four specialist clones."""
