"""Image-level labels in, pixel masks out: S2C ("From SAM to CAMs", CVPR 2024) on Ray."""

__version__ = "0.1.0"
