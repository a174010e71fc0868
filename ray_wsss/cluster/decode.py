"""Tasks that decode images ahead of the actors; apart from them, since these processes need no torch."""

import time
from collections.abc import Callable
from functools import partial

import pyarrow as pa
from ray.data import Dataset

from ray_wsss.config.resources import Resources
from ray_wsss.runs.prepared_images import PreparedImage, pack_images

_DECODE_MEMORY = 1000 * 2**20
"""Bytes of memory that Ray reserves for a process that decodes chunks.

The value is one that nobody chooses for an actor. Ray 2.60 fuses operators with the same resources into one
process (ray-project/ray#54433), and the actors would then decode themselves while their GPU waits.
"""


def decode_ahead(
    blocks: Dataset, prepare: Callable[[pa.Table], list[PreparedImage]], resources: Resources
) -> Dataset:
    """Add the decoded images to blocks of one row, in tasks that run beside the actors."""
    return blocks.map_batches(
        partial(decode_images, prepare=prepare),  # Ray's dashboard shows the function's name
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=resources.decode_share.cpus,
        memory=_DECODE_MEMORY,
        label_selector=dict(resources.decode_share.labels) or None,
    )


def decode_images(rows: pa.Table, prepare: Callable[[pa.Table], list[PreparedImage]]) -> pa.Table:
    """Add the columns ``images`` (packed) and ``decode_seconds`` to a block of one row."""
    began = time.perf_counter()
    rows = rows.append_column("images", pack_images(prepare(rows)))
    return rows.append_column("decode_seconds", pa.array([time.perf_counter() - began]))
