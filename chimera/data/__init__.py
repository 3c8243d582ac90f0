"""Images and arrays in."""
