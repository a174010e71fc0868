"""COCO's masks: run lengths (RLE), compressed or not, and polygons."""

from collections.abc import Mapping
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ray_wsss.data.coco.values import as_whole


class Rle(TypedDict):
    """A mask as COCO's compressed RLE, ready for JSON."""

    size: list[int]
    """Height and width in pixels."""
    counts: str
    """Run lengths, column by column, in COCO's compressed text form."""


def encode_rle(mask: NDArray[np.bool_] | NDArray[np.uint8]) -> Rle:
    """Encode a mask (H, W) of 0 and 1 as COCO's compressed RLE."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    # pycocotools' stubs declare str, but its C code returns bytes.
    return {"size": rle["size"], "counts": cast(bytes, rle["counts"]).decode("ascii")}


def decode_rle(counts: str, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode the counts of COCO's compressed RLE to a mask (H, W). Raises ValueError if malformed."""
    return fill_runs(read_rle({"size": list(image_hw), "counts": counts}, *image_hw), *image_hw)


def fill_runs(runs: list[int], height: int, width: int) -> NDArray[np.bool_]:
    """Mask (H, W) of run lengths, column by column, of which the first is outside."""
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return inside.reshape(width, height).T


def read_rle(rle: Mapping[str, Any], height: int, width: int) -> list[int]:
    """Run lengths of an RLE {size, counts}, as `fill_runs` takes them.

    The counts are a list of numbers, COCO's compressed text, or that text as Python shows bytes (``b'...'``),
    which is what ``str()`` of pycocotools' own result leaves in a JSON file.

    RLE is not decoded by pycocotools, because its C code doesn't check its input (a short RLE exposes
    uninitialised memory) and its ``decode`` warns under NumPy 2.

    Raises:
        ValueError: the RLE is malformed or of another size.
    """
    size = rle_size(rle)
    if size != (height, width):
        raise ValueError(f"RLE of size {rle.get('size')}; expected [{height}, {width}]")
    counts = rle.get("counts")
    if isinstance(counts, str):
        runs = _run_lengths(_without_bytes_marks(counts))
    elif isinstance(counts, list):
        runs = [-1 if (run := as_whole(count)) is None else run for count in counts]
    else:
        raise ValueError(f"RLE counts of type {type(counts).__name__}; expected a list of numbers or a text")
    if any(run < 0 for run in runs) or sum(runs) != height * width:
        raise ValueError(f"RLE counts that don't add up to {height} x {width} pixels")
    return runs


def rle_size(rle: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width in pixels that an RLE states, or None if it states none."""
    size = rle.get("size")
    whole = [as_whole(side) for side in size] if isinstance(size, list) and len(size) == 2 else []
    return (whole[0], whole[1]) if whole and whole[0] is not None and whole[1] is not None else None


def polygon_runs(polygons: list[NDArray[np.float64]], height: int, width: int) -> list[int]:
    """Run lengths of the union of polygons (N, 2) of x, y in pixels, clipped at the image's border."""
    outlines: Any = [polygon.ravel().tolist() for polygon in polygons]
    rle = coco_mask.merge(coco_mask.frPyObjects(outlines, height, width))
    return _run_lengths(cast(bytes, rle["counts"]).decode("ascii"))


def read_polygons(segmentation: list[Any]) -> tuple[list[NDArray[np.float64]], list[str]]:
    """Usable polygons (N, 2) of x, y in pixels, and what is wrong with each of the others.

    COCO has a list of polygons [x, y, x, y, ...]; a flat list of numbers is one polygon. Empty polygons are
    skipped.
    """
    flat = not any(isinstance(part, list) for part in segmentation)
    polygons: list[NDArray[np.float64]] = []
    problems: list[str] = []
    for part in [segmentation] if flat else segmentation:
        if part == []:
            continue
        try:
            polygons.append(_read_polygon(part))
        except (ValueError, TypeError, OverflowError) as error:
            problems.append(str(error))
    return polygons, problems


def _read_polygon(polygon: Any) -> NDArray[np.float64]:
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        size = f"{len(polygon)} numbers" if isinstance(polygon, list) else f"{polygon!r:.40}"
        raise ValueError(f"a polygon of {size}; expected x, y pairs, at least 6 numbers")
    coordinates = np.asarray(polygon, dtype=np.float64)
    # pycocotools' C code casts to int, which overflows for far-off and non-finite coordinates.
    if not (np.abs(coordinates) < 1e6).all():
        raise ValueError("a polygon with coordinates that are not finite pixels")
    return coordinates.reshape(-1, 2)


def _without_bytes_marks(counts: str) -> str:
    """Compressed counts without Python's marks of bytes, which escapes backslashes; no count has a quote."""
    return counts[2:-1].replace("\\\\", "\\") if counts[:2] == "b'" and counts[-1] == "'" else counts


def _run_lengths(text: str) -> list[int]:
    """Run lengths of COCO's compressed counts.

    A character holds 5 bits of a signed number, lowest bits first, and a bit that says whether more follow;
    it is offset by '0'. From the fourth on, a number is the difference from the run two before.
    """
    counts: list[int] = []
    value = shift = 0
    for code in text.encode("ascii"):
        group = code - 48
        if not 0 <= group < 64:
            raise ValueError("RLE counts with a character outside COCO's alphabet")
        value |= (group & 0x1F) << shift
        shift += 5
        if not group & 0x20:
            value -= (1 << shift) if group & 0x10 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("RLE counts that end too early")
    return counts
