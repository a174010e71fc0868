"""Brush regions of Label Studio: thi.ng's rle-pack of an RGBA image.

The bit stream holds the number of bytes of the image (32 bits), the width of a value less one (5 bits), and
four widths of run lengths less one (4 bits each). Then follow runs: whether it has one value for all (1 bit),
the index of the width of its length (2 bits), its length less one (in that width), and its value, or a value
for each byte (8 bits each).
"""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_wsss.data.coco import encode_rle
from ray_wsss.data.coco.rasterise import UNUSABLE

_RUN_BITS = (3, 4, 8, 16)
"""The four widths of run lengths that are written, in bits, ascending."""
_CHANNELS = 4
_VALUE_BITS = 8


def encode_brush(mask: NDArray[np.bool_]) -> bytes:
    """Encode a mask (H, W) as a brush region, in which all four channels are 255 inside and 0 outside."""
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = np.diff(starts, append=len(flat)) * _CHANNELS
    head = f"{len(flat) * _CHANNELS:032b}{_VALUE_BITS - 1:05b}"
    bits = [head, *[f"{width - 1:04b}" for width in _RUN_BITS]]
    longest = 1 << _RUN_BITS[-1]
    for start, length in zip(starts.tolist(), lengths.tolist()):
        value = "11111111" if flat[start] else "00000000"
        for done in range(0, length, longest):
            count = min(longest, length - done) - 1
            which = next(k for k, width in enumerate(_RUN_BITS) if count < 1 << width)
            bits.append(f"1{which:02b}{count:0{_RUN_BITS[which]}b}{value}")
    packed = "".join(bits)
    size = -(-len(packed) // 8)
    return int(packed.ljust(8 * size, "0"), 2).to_bytes(size, "big")


def decode_brush(packed: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """Mask (H, W) of a brush region: where the fourth channel, the opacity, is above 0.

    Raises:
        ValueError: the region is malformed or not of an image of this size.
    """
    bits = _Bits(packed)
    size, value_bits = bits.read(32), bits.read(5) + 1
    run_bits = [bits.read(4) + 1 for _ in range(4)]
    if size != height * width * _CHANNELS:
        pixels = f"{size / _CHANNELS:g} pixels"
        raise ValueError(f"a brush region of {pixels}; expected those of {width}x{height}")
    if value_bits != _VALUE_BITS:
        raise ValueError(f"a brush region with values of {value_bits} bits; expected {_VALUE_BITS}")
    mask = np.zeros(height * width, np.bool_)
    at = 0
    while at < size:
        repeated = bits.read(1)
        end = at + bits.read(run_bits[bits.read(2)]) + 1
        if end > size:
            raise ValueError("a brush region with more values than its image")
        # Of the bytes from `at` to `end`, the opacities are those of these pixels.
        pixels = slice(at // _CHANNELS, end // _CHANNELS)
        if repeated:
            mask[pixels] = bits.read(_VALUE_BITS) > 0
        else:
            first = (_CHANNELS - 1 - at) % _CHANNELS
            mask[pixels] = bits.read_bytes(end - at)[first::_CHANNELS] > 0
        at = end
    return mask.reshape(height, width)


def decode_brushes(
    annotations: list[dict[str, Any]], height: int, width: int, remarks: list[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Annotations whose ``brush`` is decoded, as `data.coco.rasterise` takes them.

    Args:
        remarks: receives (remark, detail) for a brush region that can't be decoded.
    """
    return [_decoded(a, height, width, remarks) if "brush" in a else a for a in annotations]


def brush_text(values: Sequence[Any]) -> str:
    """A brush region's list of bytes as an annotation keeps it. Raises ValueError if they aren't bytes."""
    try:
        return base64.b64encode(bytes(values)).decode("ascii")
    except (TypeError, ValueError):
        raise ValueError("a brush region that is no list of bytes") from None


def _decoded(
    annotation: dict[str, Any], height: int, width: int, remarks: list[tuple[str, str]]
) -> dict[str, Any]:
    try:
        mask = decode_brush(base64.b64decode(annotation["brush"]), height, width)
    except ValueError as error:
        remarks.append((UNUSABLE, f"annotation {annotation['id']}: {error}"))
        return annotation
    return {**annotation, "segmentation": encode_rle(mask)}


class _Bits:
    """Reads a stream of bits, the highest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def read(self, count: int) -> int:
        """The next ``count`` bits as a number. Raises ValueError at the end of the stream."""
        end = self.at + count
        if end > 8 * len(self.data):
            raise ValueError("a brush region that ends too early")
        last = -(-end // 8)
        value = int.from_bytes(self.data[self.at // 8 : last], "big") >> (8 * last - end)
        self.at = end
        return value & ((1 << count) - 1)

    def read_bytes(self, count: int) -> NDArray[np.uint8]:
        return np.frombuffer(self.read(8 * count).to_bytes(count, "big"), np.uint8)
