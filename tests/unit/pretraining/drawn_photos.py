"""Colours of the generated photographs of these tests."""

import numpy as np

COLOURS = np.array([[220, 30, 30], [30, 200, 60], [40, 60, 220]])
"""(3, 3) RGB of the rectangles in each photograph, from left to right."""
