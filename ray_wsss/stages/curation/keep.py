"""Pseudo labels that keep the masks somebody made by hand, and run SAM for the other images alone."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import pyarrow as pa

from ray_wsss.runs.curation.masks import KEPT, HandMasks
from ray_wsss.runs.prepared_images import PreparedImage
from ray_wsss.runs.tally import Tally
from ray_wsss.stages.label import describe


class Labeller(Protocol):
    """A stage that labels images: a row of `stages.label.LABEL_SCHEMA` for each, in order."""

    rows_per_group: int

    def __call__(self, images: Sequence[PreparedImage]) -> tuple[pa.Table, Tally]: ...


class KeepMasks:
    """Labels images by another stage, unless they have a mask in ``masks``.

    Its table has a column ``source`` more than that of the other stage: `KEPT` for a mask that was kept, else
    null. An image with a kept mask has no segments, since SAM has seen nothing of it.

    Args:
        labeller: class of the other stage, which is made with ``arguments``.
    """

    def __init__(self, labeller: Callable[..., Labeller], masks: HandMasks, **arguments: Any) -> None:
        self.masks, self.labeller = masks, labeller(**arguments)
        self.rows_per_group = self.labeller.rows_per_group

    def __call__(self, images: Sequence[PreparedImage]) -> tuple[pa.Table, Tally]:
        """Label images: rows in their order, and counts and times."""
        kept = [at for at, image in enumerate(images) if image.error is None and image.image_id in self.masks]
        others = sorted({*range(len(images))} - {*kept})
        table, tally = self.labeller([images[at] for at in others])
        with tally.phase("write"):
            rows = [self._row(images[at]) for at in kept]
        errors = sum(row["error"] is not None for row in rows)
        tally.images, tally.errors = tally.images + len(rows) - errors, tally.errors + errors
        source = [None] * len(others) + [KEPT] * len(kept)
        table = pa.concat_tables([table, pa.Table.from_pylist(rows, schema=table.schema)])
        table = table.append_column("source", pa.array(source, pa.string()))
        order = [*others, *kept]
        return table.take(sorted(range(len(order)), key=order.__getitem__)).combine_chunks(), tally

    def _row(self, image: PreparedImage) -> dict[str, Any]:
        row: dict[str, Any] = {"image_id": image.image_id, "error": None}
        try:
            mask = self.masks.read(image.image_id)
            if mask.shape != image.image_hw:
                sizes = [f"{width}x{height}" for height, width in (mask.shape, image.image_hw)]
                raise ValueError(f"its kept mask is {sizes[0]} pixels, the image {sizes[1]}")
        except ValueError as error:
            return row | {"error": str(error)}
        return row | describe(mask)
