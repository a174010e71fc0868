"""Refine class maps by what the image shows."""
