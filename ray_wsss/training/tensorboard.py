"""TensorBoard files of a run: scalars and pictures, written by the first worker."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboardX import SummaryWriter
from tensorboardX.summary import hparams

from ray_wsss.storage import growing_folder

FOLDER = "tensorboard"
"""Subfolder of the run's folder, for TensorBoard's files."""

_GROUPS = {"loss_": "loss/", "val_": "validation/", "seconds_per_step": "speed/", "data_wait_s": "speed/"}


class Board:
    """Writes TensorBoard files to ``out/tensorboard``.

    Args:
        iteration: iteration that this run starts from; later points of an interrupted run are hidden.
        active: whether this worker is the first; others write nothing.
    """

    def __init__(self, out: Path, iteration: int, *, active: bool) -> None:
        self.writer = None
        if active:
            self.stack = ExitStack()
            folder = self.stack.enter_context(growing_folder(out / FOLDER))
            self.writer = SummaryWriter(str(folder), purge_step=iteration)

    def add_scalars(self, metrics: Mapping[str, float], iteration: int) -> None:
        """Write metrics by name; metrics of one kind share a heading."""
        if self.writer is None:
            return
        for name, value in metrics.items():
            if name != "iteration":
                self.writer.add_scalar(_tag(name), value, iteration)
        self.writer.flush()

    def add_picture(self, picture: NDArray[np.uint8] | None, iteration: int) -> None:
        """Write a picture (H, W, 3) uint8 RGB; None writes nothing."""
        if self.writer is not None and picture is not None:
            self.writer.add_image("pictures", picture, iteration, dataformats="HWC")
            self.writer.flush()

    def close(self) -> None:
        """Close the file; on object storage, upload it."""
        if self.writer is not None:
            self.writer.close()
            self.stack.close()


def add_hparams(out: Path, params: Mapping[str, Any], metrics: Mapping[str, float], iteration: int) -> None:
    """Write settings and their metrics to ``out/tensorboard``, for TensorBoard's HParams page."""
    values = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in params.items()}
    figures = {f"sweep/{name}": float(value) for name, value in metrics.items()}
    with growing_folder(out / FOLDER) as folder, SummaryWriter(str(folder)) as writer:
        assert writer.file_writer is not None
        for summary in hparams(values, figures):
            writer.file_writer.add_summary(summary)
        for name, value in figures.items():
            writer.add_scalar(name, value, iteration)


def _tag(name: str) -> str:
    for start, group in _GROUPS.items():
        if name.startswith(start):
            return group + (name.removeprefix(start) or name)
    return name
