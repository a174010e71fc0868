"""CLIP's text as the start of a classifier's class maps."""
