"""The Brain Meld: the clones into one master."""
