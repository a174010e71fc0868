"""Which way round an image is that EXIF turns: as its annotations were drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_wsss.data.coco.masks import read_polygons, rle_size
from ray_wsss.data.images import ImageError, ImageInfo, choose_orientation

AGAINST_SIZE = "read the way its annotations fit, not as the stated size says"


def orient(
    info: ImageInfo,
    stated_hw: tuple[int, int] | None,
    annotations: Sequence[dict[str, Any]],
    remarks: list[tuple[str, str]],
) -> int:
    """EXIF orientation to decode an image with: that in which its annotations fit, else by the stated size.

    Tools state the size as stored even if they showed the image upright, so that annotations tell more. They
    are asked only if EXIF swaps height and width, and must fit up to a small overshoot.

    Args:
        annotations: ``segmentation`` and ``bbox`` as `data.schema.SourceRow` has them.
        remarks: receives a (remark, detail) if the annotations overrule the stated size.

    Raises:
        ImageError: the annotations fit neither way, or the image has the stated size neither way.
    """
    ways = [(info.width, info.height), (info.height, info.width)]
    reaches = [_reach(a) for a in annotations] if info.exif_orientation >= 5 and ways[0] != ways[1] else []
    reaches = [reach for reach in reaches if reach is not None]
    # What fits neither way is wrong by itself, and says nothing of the image if others fit.
    usable = [reach for reach in reaches if any(reach.fits(hw) for hw in ways)]
    reaches = usable or reaches
    fitting = [hw for hw in ways if all(reach.fits(hw) for reach in reaches)]
    if not fitting:
        low = np.min([reach.low for reach in reaches], axis=0)
        high = np.max([reach.high for reach in reaches], axis=0)
        raise ImageError(
            f"its annotations span x {low[0]:g} to {high[0]:g} and y {low[1]:g} to {high[1]:g}, which fits "
            f"neither the stored {info.width}x{info.height} pixels nor the {info.height}x{info.width} that "
            "EXIF makes of them"
        )
    if not reaches or len(fitting) == 2 or stated_hw not in (None, *ways):
        return choose_orientation(info, stated_hw)
    if stated_hw not in (None, fitting[0]):
        stated, found = (f"{width}x{height}" for height, width in (fitting[0][::-1], fitting[0]))
        remarks.append((AGAINST_SIZE, f"the file states {stated} pixels, its annotations fit {found}"))
    return choose_orientation(info, fitting[0])


@dataclass(frozen=True, slots=True)
class _Reach:
    """Least and greatest x, y in pixels of an annotation."""

    low: tuple[float, float]
    high: tuple[float, float]
    exact: bool = False
    """Whether ``high`` must be the image's size, as that of an RLE."""

    def fits(self, image_hw: tuple[int, int]) -> bool:
        height, width = image_hw
        if self.exact:
            return self.high == (width, height)
        # Outlines drawn by hand overshoot a little, which must not turn an image.
        slack = max(2.0, 0.02 * max(image_hw))
        return min(self.low) >= -slack and self.high[0] <= width + slack and self.high[1] <= height + slack


def _reach(annotation: dict[str, Any]) -> _Reach | None:
    """Reach of an annotation's outline, else of its box, else of its points; None if it has none of them."""
    segmentation, box = annotation.get("segmentation"), annotation.get("bbox")
    polygons = read_polygons(segmentation)[0] if isinstance(segmentation, list) else []
    size = rle_size(segmentation) if isinstance(segmentation, dict) else None
    if polygons:
        x, y = np.concatenate(polygons).T
        return _Reach((float(x.min()), float(y.min())), (float(x.max()), float(y.max())))
    if size is not None:
        return _Reach((0, 0), (size[1], size[0]), exact=True)
    if box is not None:
        return _Reach((box[0], box[1]), (box[0] + box[2], box[1] + box[3]))
    points = [(x, y) for x, y, _ in annotation.get("points") or () if np.isfinite([x, y]).all()]
    if not points:
        return None
    x, y = np.array(points).T
    return _Reach((float(x.min()), float(y.min())), (float(x.max()), float(y.max())))
