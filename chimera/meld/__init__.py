"""The Brain Meld: four clones into one master."""
