"""What the host knows of a batch, kept when the batch goes to a GPU: asking the GPU for it stops both."""

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
    """A batch's facts that decide shapes; no tensor of it is to be moved to a device."""

    image_labels: Tensor
    """(B, C), 0/1, on the CPU: the (image, class) pairs of the batch."""
    geometries: Sequence[Geometry] = ()
    """From each image to its crop; none where the batch has no embeddings."""
    image_hw: Sequence[tuple[int, int]] = ()
    """Size of each image, in pixels; likewise."""
    segment_bounds: tuple[int, int] | None = None
    """`ops.ssc.segment_bounds` of its segment maps; None without them."""

    def __getitem__(self, images: slice) -> "HostPlan":
        """The plan of some images of the batch; the bounds of all hold for them too."""
        return replace(
            self,
            image_labels=self.image_labels[images],
            geometries=self.geometries[images],
            image_hw=self.image_hw[images],
        )


def make_plan(batch: Mapping[str, Any]) -> HostPlan:
    """The plan of a collated batch. Tensors that are on a GPU already are waited for."""
    return HostPlan(
        image_labels=batch["image_labels"].cpu(),
        geometries=[unpack_geometry(packed) for packed in batch.get("geometry", ())],
        image_hw=[(height, width) for height, width in map(Tensor.tolist, batch.get("image_hw", ()))],
        segment_bounds=segment_bounds(batch["segments"]) if "segments" in batch else None,
    )


def collate(items: list[dict[str, Tensor | str]]) -> dict[str, Any]:
    """A batch of crops, with its ``plan`` in place of what only the host needs."""
    batch = default_collate(items)
    batch["plan"] = make_plan(batch)
    return {name: value for name, value in batch.items() if name not in ("geometry", "image_hw")}


def pack_geometry(geometry: Geometry) -> Tensor:
    """A geometry as a tensor of integers, for batches."""
    fields = (*geometry.scaled_hw, geometry.top, geometry.left, geometry.crop_px, geometry.flip)
    return torch.tensor([int(value) for value in fields])


def unpack_geometry(packed: Tensor) -> Geometry:
    """What `pack_geometry` packed."""
    height, width, top, left, crop_px, flip = packed.tolist()
    return Geometry(scaled_hw=(height, width), top=top, left=left, crop_px=crop_px, flip=bool(flip))
