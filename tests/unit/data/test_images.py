"""Every kind of odd and bad image, generated here."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from ray_wsss.data.images import (
    ImageError,
    ImageInfo,
    apply_orientation,
    choose_orientation,
    decode_image,
    decode_mask,
    decode_segments,
    encode_mask,
    encode_segments,
    probe_image,
    voc_palette,
)


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_colour_comes_back_unchanged(rgb, format):
    decoded = decode_image(encoded(Image.fromarray(rgb), format))
    assert decoded.dtype == np.uint8
    assert decoded.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(decoded, rgb)


def test_grey_is_repeated(rgb):
    decoded = decode_image(encoded(Image.fromarray(rgb[..., 0])))
    np.testing.assert_array_equal(decoded, np.repeat(rgb[..., :1], 3, axis=-1))


@pytest.mark.parametrize(("format", "tolerance"), [("TIFF", 1), ("JPEG", 6)])
def test_cmyk_has_the_right_colours(format, tolerance):
    orange = np.full((16, 16, 3), (230, 120, 20), np.uint8)
    cmyk = Image.fromarray(orange).convert("CMYK")
    decoded = decode_image(encoded(cmyk, format))
    assert np.abs(decoded.astype(int) - orange).max() <= tolerance


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(format):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    decoded = decode_image(encoded(Image.fromarray(ramp), format))
    np.testing.assert_allclose(decoded[..., 0], ramp / 257, atol=1)
    assert decoded.max() == 255
    assert decoded[..., 0].std() > 60  # clipped, nearly all would be 255


def test_float_and_32_bit_pixels_are_refused():
    with pytest.raises(ImageError, match="floating-point"):
        decode_image(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))
    with pytest.raises(ImageError, match="65535"):
        decode_image(encoded(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"))


def test_palette(rgb):
    image = Image.fromarray(rgb).quantize(16)
    np.testing.assert_array_equal(decode_image(encoded(image)), np.asarray(image.convert("RGB")))


def test_palette_transparency_becomes_white():
    image = Image.new("P", (4, 2), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((0, 0), 0)
    for transparency in (0, b"\x00\xff"):
        decoded = decode_image(encoded(image, transparency=transparency))
        assert decoded[0, 0].tolist() == [255, 255, 255]
        assert decoded[1, 1].tolist() == [40, 50, 60]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_alpha_is_composited_on_white(mode, format):
    image = Image.new(mode, (3, 1), (100, 100, 100, 255) if mode == "RGBA" else (100, 255))
    alpha = Image.new("L", (3, 1))
    alpha.putdata([0, 128, 255])
    image.putalpha(alpha)
    decoded = decode_image(encoded(image, format)).astype(int)
    np.testing.assert_allclose(decoded[0, :, 0], [255, 177, 100], atol=1)
    assert decoded.shape == (1, 3, 3)


def test_bilevel_and_first_frame_of_an_animation():
    bilevel = Image.new("1", (2, 1))
    bilevel.putpixel((1, 0), 1)
    assert decode_image(encoded(bilevel))[0].tolist() == [[0] * 3, [255] * 3]
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(animation)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation_equals_pillow(rgb, format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if format == "WEBP" else {}
    data = encoded(Image.fromarray(rgb), format, exif=exif, **lossless)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    info = probe_image(data)
    assert info.exif_orientation == (1 if format == "TIFF" else orientation)
    upright = decode_image(data, choose_orientation(info, None))
    np.testing.assert_array_equal(upright, expected)
    assert decode_image(data).shape[:2] == (info.height, info.width)


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_meaningless_orientation_counts_as_none(rgb, value):
    exif = Image.Exif()
    exif[0x0112] = value
    assert probe_image(encoded(Image.fromarray(rgb), "JPEG", exif=exif)).exif_orientation == 1


def test_orientation_argument_is_checked(rgb):
    with pytest.raises(ValueError, match="from 1 to 8"):
        apply_orientation(rgb, 9)


def test_choose_orientation():
    rotated = ImageInfo(height=30, width=50, exif_orientation=6)
    assert choose_orientation(rotated, None) == 6
    assert choose_orientation(rotated, (50, 30)) == 6
    assert choose_orientation(rotated, (30, 50)) == 1
    for orientation in range(1, 9):
        upright_hw = apply_orientation(np.zeros((30, 50), np.uint8), orientation).shape
        assert choose_orientation(ImageInfo(30, 50, orientation), upright_hw) == orientation
    square = ImageInfo(height=30, width=30, exif_orientation=8)
    assert choose_orientation(square, (30, 30)) == 8
    assert choose_orientation(ImageInfo(30, 50, 3), (30, 50)) == 3
    with pytest.raises(ImageError, match="50x30 pixels, its annotations state 51x30"):
        choose_orientation(rotated, (30, 51))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("kept", [0.05, 0.3, 0.6, 0.9])
def test_truncated_images_are_refused(rgb, format, kept):
    data = encoded(Image.fromarray(np.tile(rgb, (4, 4, 1))), format)
    decode_image(data)
    with pytest.raises(ImageError):
        decode_image(data[: int(len(data) * kept)])


def test_reasons_are_plain(rgb):
    jpeg = encoded(Image.fromarray(rgb), "JPEG", quality=95)
    for data, reason in [
        (b"", "empty file"),
        (b"this is no picture\n" * 50, "not an image"),
        (jpeg[: len(jpeg) // 2], "truncated JPEG"),
        (jpeg[:20], "truncated JPEG"),
        (encoded(Image.fromarray(rgb))[:200], "truncated PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ]:
        with pytest.raises(ImageError, match=f"^{reason}"):
            decode_image(data)


def test_altered_bytes_raise_nothing_but_image_error(rgb):
    rng = np.random.default_rng(1)
    for format in ("JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "PPM"):
        original = encoded(Image.fromarray(rgb), format)
        for _ in range(60):
            data = bytearray(original)
            for place in rng.integers(0, min(len(data), 400), 4):
                data[place] = rng.integers(256)
            try:
                probe_image(bytes(data))
                decode_image(bytes(data))
            except ImageError:
                pass


def test_50_megapixels():
    image = Image.new("L", (8660, 5780), 77)
    assert decode_image(encoded(image, "JPEG"), 6).shape == (8660, 5780, 3)


def test_pillows_size_guard_neither_warns_nor_changes():
    guard = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert probe_image(encoded(Image.new("1", (10_000, 10_000)))).width == 10_000
        with pytest.raises(ImageError, match="limit is 500 megapixels"):
            probe_image(encoded(Image.new("1", (25_000, 20_001))))
    assert guard == Image.MAX_IMAGE_PIXELS


def test_mask_round_trip_in_vocs_colours():
    mask = np.arange(256, dtype=np.uint8).reshape(8, 32)
    png = encode_mask(mask)
    np.testing.assert_array_equal(decode_mask(png), mask)
    with Image.open(io.BytesIO(png)) as image:
        assert image.mode == "P"
        colours = np.asarray(image.convert("RGB")).reshape(-1, 3)
    np.testing.assert_array_equal(colours, voc_palette())
    # aeroplane, bicycle, tvmonitor and the border, as in VOC's own development kit
    assert colours[[0, 1, 2, 20, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [0, 64, 128],
        [224, 224, 192],
    ]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_masks_of_few_bits(depth):
    mask = (np.arange(32) % 2**depth).astype(np.uint8).reshape(4, 8)
    image = Image.fromarray(mask)
    image.putpalette(voc_palette()[: 2**depth].tobytes())
    np.testing.assert_array_equal(decode_mask(encoded(image, bits=depth)), mask)


def test_grey_masks():
    mask = np.array([[0, 1, 255]], np.uint8)
    np.testing.assert_array_equal(decode_mask(encoded(Image.fromarray(mask))), mask)
    np.testing.assert_array_equal(decode_mask(encoded(Image.fromarray(mask.astype(np.uint16)))), mask)
    np.testing.assert_array_equal(decode_mask(encoded(Image.fromarray(mask == 1))), mask == 1)
    # Pillow writes no 4-bit grey, so the file is put together here: one row, pixels 1 and 15.
    np.testing.assert_array_equal(decode_mask(four_bit_grey(b"\x1f", width=2)), [[1, 15]])


def four_bit_grey(row: bytes, width: int) -> bytes:
    import struct
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, 1, 4, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def test_bad_masks(rgb):
    with pytest.raises(ImageError, match="expected a palette or grey PNG"):
        decode_mask(encoded(Image.fromarray(rgb)))
    with pytest.raises(ImageError, match="not an image"):
        decode_mask(encoded(Image.fromarray(rgb), "JPEG"))
    with pytest.raises(ImageError, match="label 300"):
        decode_mask(encoded(Image.fromarray(np.full((2, 2), 300, np.uint16))))
    with pytest.raises(ValueError, match="expected uint8"):
        encode_mask(np.zeros((2, 2), np.int64))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("dtype", [np.uint16, np.int64])
def test_segments_round_trip(dtype):
    segments = np.arange(65_536).astype(dtype).reshape(256, 256)
    for some in (segments, segments.T, segments[::-1, ::2], segments[:1]):
        png = encode_segments(some)
        assert png[24:26] == b"\x10\0"  # 16 bits, grey: also where 8 bits would do
        assert decode_segments(png).dtype == np.int32
        np.testing.assert_array_equal(decode_segments(png), some)


def test_segments_that_dont_fit_are_refused():
    for segments, reason in [
        (np.array([[0, 65_536]]), r"span 0\.\.65536; expected 0\.\.65535"),
        (np.array([[-1, 3]], np.int32), r"span -1\.\.3"),
        (np.zeros((2, 2)), "float64 of shape"),
        (np.zeros((1, 2, 2), np.int32), r"shape \(1, 2, 2\)"),
    ]:
        with pytest.raises(ValueError, match=reason):
            encode_segments(segments)


def test_bad_segment_maps(rgb):
    png = encode_segments(np.arange(6000).reshape(60, 100))
    for data, reason in [
        (png[: len(png) // 2], "truncated PNG"),
        (encode_mask(rgb[..., 0]), "pixels are P; expected a PNG of 16-bit grey"),
        (encoded(Image.fromarray(rgb[..., 0])), "pixels are L"),
        (encoded(Image.fromarray(rgb[..., 0].astype(np.uint16)), "TIFF"), "not an image"),
    ]:
        with pytest.raises(ImageError, match=reason):
            decode_segments(data)
