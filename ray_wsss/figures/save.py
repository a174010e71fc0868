"""Writes figures to disk."""

from pathlib import Path

from matplotlib.figure import Figure

from ray_wsss.storage import replace_atomically


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    with replace_atomically(path) as temporary:
        figure.savefig(temporary, format="png")
