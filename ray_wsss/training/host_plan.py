"""Facts that the host keeps about a batch on a GPU, because reading them back would make the GPU idle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from ray_wsss.ops.geometry import Geometry
from ray_wsss.ops.ssc import segment_bounds


@dataclass(frozen=True, eq=False)
class HostPlan:
    """Facts about a batch that decide tensor shapes. Its own tensors stay on the CPU."""

    image_labels: Tensor
    """(B, C), 0 or 1: the (image, class) pairs of the batch."""
    geometries: Sequence[Geometry] = ()
    """Geometry from each image to its crop; empty if the batch has no embeddings."""
    image_hw: Sequence[tuple[int, int]] = ()
    """Height and width of each image, in pixels; empty if the batch has no embeddings."""
    segment_bounds: tuple[int, int] | None = None
    """Result of `ops.ssc.segment_bounds` for the batch's segment maps; None if it has none."""

    def __getitem__(self, images: slice) -> "HostPlan":
        """The plan of some images of the batch. The segment bounds of the batch hold for them too."""
        return replace(
            self,
            image_labels=self.image_labels[images],
            geometries=self.geometries[images],
            image_hw=self.image_hw[images],
        )


def make_plan(batch: Mapping[str, Any]) -> HostPlan:
    """Make the plan of a collated batch. The host waits for the GPU if the batch is already on one."""
    return HostPlan(
        image_labels=batch["image_labels"].cpu(),
        geometries=[unpack_geometry(packed) for packed in batch.get("geometry", ())],
        image_hw=[(height, width) for height, width in map(Tensor.tolist, batch.get("image_hw", ()))],
        segment_bounds=segment_bounds(batch["segments"]) if "segments" in batch else None,
    )


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate crops into a batch; its ``plan`` replaces the entries that only the host needs.

    ``broken`` has an entry for each image: that of its crop, or None.
    """
    broken = [item.get("broken") for item in items]
    batch = default_collate([{k: v for k, v in item.items() if k != "broken"} for item in items])
    batch["broken"] = broken
    batch["plan"] = make_plan(batch)
    return {name: value for name, value in batch.items() if name not in ("geometry", "image_hw")}


def pack_geometry(geometry: Geometry) -> Tensor:
    """Pack a geometry into a tensor of integers, which can be collated."""
    fields = (*geometry.scaled_hw, geometry.top, geometry.left, geometry.crop_px, geometry.flip)
    return torch.tensor([int(value) for value in fields])


def unpack_geometry(packed: Tensor) -> Geometry:
    """The geometry that `pack_geometry` packed."""
    height, width, top, left, crop_px, flip = packed.tolist()
    return Geometry(scaled_hw=(height, width), top=top, left=left, crop_px=crop_px, flip=bool(flip))
