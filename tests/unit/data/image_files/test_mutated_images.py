"""Damaged files of every format end as an image or as an error row, never as an exception of another kind.

The default run tries 10 cases a format; 2,000 in all: ``pytest -m slow tests/unit/data/image_files``.
"""

import io
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

from ray_wsss.config.decode import DecodeConfig
from ray_wsss.data.image_files.convert import convert_image
from ray_wsss.data.images import ImageError, decode_image, probe_image
from ray_wsss.data.schema import SourceRow
from ray_wsss.stages.ingest import IngestShard

FORMATS = (
    "JPEG",
    "PNG",
    "TIFF",
    "WEBP",
    "BMP",
    "GIF",
    "PPM",
    "JPEG2000",
    "AVIF",
    "HEIF",
    "DEEP_PNG",
    "STACK",
)
CONFIGS = (DecodeConfig(), DecodeConfig(intensity="full"), DecodeConfig(channels=(2, 0, 1)))


@cache
def original(format: str) -> bytes:
    y, x = np.mgrid[:24, :40]
    pixels = np.stack([x * 6, y * 10, (x * y) % 256], axis=-1).astype(np.uint8)
    buffer = io.BytesIO()
    if format == "AVIF" and "avif" not in features.get_supported():
        pytest.skip("this build of Pillow has no AVIF")
    if format == "STACK":
        values = np.stack([pixels[..., 0]] * 5).astype(np.uint16) * 20
        tifffile.imwrite(
            buffer, values, planarconfig="separate", photometric="minisblack", compression="zlib"
        )
    elif format == "DEEP_PNG":
        import cv2

        return cv2.imencode(".png", pixels.astype(np.uint16) * 20)[1].tobytes()
    else:
        if format == "HEIF":
            import pillow_heif

            pillow_heif.register_heif_opener()
        Image.fromarray(pixels).save(buffer, format)
    return buffer.getvalue()


@st.composite
def mutated(draw: st.DrawFn, format: str) -> bytes:
    """The file with a few bytes changed, inserted or removed, or cut off."""
    data = bytearray(original(format))
    for _ in range(draw(st.integers(1, 4))):
        # Headers are short, and are where a change does most.
        at = draw(st.one_of(st.integers(0, 200), st.integers(0, len(data)))) % max(1, len(data))
        kind = draw(st.sampled_from(("flip", "insert", "remove", "cut")))
        if kind == "flip":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif kind == "remove":
            del data[at : at + draw(st.integers(1, 8))]
        else:
            del data[at:]
    return bytes(data)


def check(data: bytes, config: DecodeConfig) -> None:
    for read in (probe_image, decode_image, lambda file: convert_image(file, config)):
        with suppress(ImageError):
            read(data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(data)
        summary = IngestShard(Path(folder) / "out", decode=config)(
            [SourceRow(image_id="a", path=str(path))], 0
        )
    assert summary.images + len(summary.errors) == 1


FEW = settings(max_examples=10, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(FEW, max_examples=2000 // len(FORMATS) + 1)


@pytest.mark.parametrize("format", FORMATS)
@FEW
@given(st.data())
def test_damaged_files(format, data):
    check(data.draw(mutated(format)), data.draw(st.sampled_from(CONFIGS)))


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@MANY
@given(st.data())
def test_2000_damaged_files(format, data):
    check(data.draw(mutated(format)), data.draw(st.sampled_from(CONFIGS)))
