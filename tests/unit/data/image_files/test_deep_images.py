"""Images of more than 8 bits, and of other channels than red, green, blue and alpha."""

import io
import sys
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from ray_wsss.config.decode import DecodeConfig
from ray_wsss.data.image_files.convert import convert_image, decode_upright
from ray_wsss.data.images import ImageError, decode_image
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import SourceRow
from ray_wsss.errors import UserError
from ray_wsss.stages.ingest import IngestShard

FULL = DecodeConfig(intensity="full")
AUTO = DecodeConfig()


def tiff(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def png(values: np.ndarray) -> bytes:
    """A PNG of uint16 grey, RGB or RGBA; Pillow writes no deep colour."""
    import cv2

    order = [2, 1, 0, 3][: values.shape[2]] if values.ndim == 3 else slice(None)
    return cv2.imencode(".png", values[..., order] if values.ndim == 3 else values)[1].tobytes()


def disc(inside: float, outside: float, dtype: Any = np.uint16) -> np.ndarray:
    """(40, 60) image of a disc of one value on another."""
    y, x = np.mgrid[:40, :60]
    return np.where((y - 20) ** 2 + (x - 30) ** 2 < 100, inside, outside).astype(dtype)


INSIDE = disc(1, 0, bool)
NOISE = np.random.default_rng(0).integers(0, 65536, (40, 60, 6)).astype(np.uint16)


@pytest.mark.parametrize("encode", [tiff, png])
def test_a_disc_of_1200_on_800_is_white_on_black(encode):
    data = encode(disc(1200, 800))
    assert np.unique(decode_upright(data, FULL)).tolist() == [3, 4]  # all that is left of it at full scale
    converted = convert_image(data, AUTO)
    assert converted.remarks == [("intensity stretched", "800 to 1200 became 0 to 255")]
    pixels = decode_image(converted.data)
    np.testing.assert_array_equal(pixels, np.where(INSIDE, 255, 0)[..., None].repeat(3, axis=2))


def test_pictures_that_use_the_scale_stay_as_they_are():
    for data in (tiff(NOISE[..., 0]), png(NOISE[..., 0]), tiff(NOISE[..., :3]), png(NOISE[..., :3])):
        for config in (AUTO, FULL):
            converted = convert_image(data, config)
            assert (converted.data, converted.remarks) == (data, [])
    np.testing.assert_array_equal(decode_upright(png(NOISE[..., :3])), NOISE[..., :3] >> 8)


def test_images_of_8_bits_are_never_stretched():
    dark = Image.fromarray(disc(12, 8, np.uint8))
    buffer = io.BytesIO()
    dark.save(buffer, "PNG")
    for config in (AUTO, DecodeConfig(intensity=("percentile", 1, 99))):
        assert convert_image(buffer.getvalue(), config).data == buffer.getvalue()


def test_hot_pixels_and_even_pictures():
    hot = disc(1200, 800)
    hot[3, 4] = 65535
    pixels = decode_upright(tiff(hot))
    assert (pixels[INSIDE].min(), pixels[39].max()) == (255, 0)
    even = np.full((40, 60), 800, np.uint16)
    assert convert_image(tiff(even), AUTO).remarks == []
    even[3, 4] = 900  # the only thing there is, although it is less than 0.1 % of the picture
    assert decode_upright(tiff(even))[3, 4].tolist() == [255] * 3


def test_percentiles_equal_numpys():
    config = DecodeConfig(intensity=("percentile", 10, 90))
    values = NOISE[..., 0] // 4 + 1000
    low, high = np.percentile(values, (10, 90))
    expected = np.clip((values - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(decode_upright(tiff(values), config)[..., 0], expected, atol=0.51)


def test_colour_keeps_its_hue_and_channels_have_their_own_scale():
    """The channels of a photograph share a scale, those of a microscope don't."""
    photograph = np.stack([disc(1200, 800), disc(999, 800), disc(800, 800)], axis=-1)
    for data in (tiff(photograph, photometric="rgb"), png(photograph)):
        assert decode_upright(data)[20, 30].tolist() == [255, 127, 0]
    stack = np.stack([disc(1200, 800), disc(1000, 800), disc(60000, 0)])
    apart = convert_image(tiff(stack, imagej=True, metadata={"axes": "CYX"}), AUTO)
    assert decode_image(apart.data)[20, 30].tolist() == [255, 255, 233]  # 60000 of 65535
    assert apart.remarks == [("intensity stretched", "800 to 1200, 800 to 1000 became 0 to 255")]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats(dtype):
    share = np.linspace(0, 1, 2400).reshape(40, 60).astype(dtype)
    expected = np.rint(share.astype(np.float64) * 255)
    np.testing.assert_array_equal(decode_upright(tiff(share), FULL)[..., 0], expected)
    assert np.abs(decode_upright(tiff(share), AUTO)[..., 0] - expected).max() <= 1
    for values in (disc(1200, -800, dtype), disc(0.51, 0.5, dtype)):
        np.testing.assert_array_equal(decode_upright(tiff(values), AUTO)[..., 0], INSIDE * 255)
    with pytest.raises(ImageError, match="values from -800 to 1200; --intensity full takes 0 to 1"):
        convert_image(tiff(disc(1200, -800, dtype)), FULL)


def test_values_that_are_no_numbers():
    values = disc(5, 2, np.float32)
    values[0, 0], values[0, 1] = np.nan, np.inf
    pixels = decode_upright(tiff(values))
    assert pixels[0, 0, 0] == 0
    assert pixels[0, 1, 0] == 255
    assert pixels[20, 30, 0] == 255
    with pytest.raises(ImageError, match="none of the values is a number"):
        convert_image(tiff(np.full((4, 4), np.nan, np.float32)), AUTO)
    with pytest.raises(ImageError, match="--intensity full takes 0 to 1"):
        convert_image(tiff(values), FULL)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32])
def test_wide_and_signed_integers(dtype):
    values = disc(30_000, 10, dtype)
    np.testing.assert_array_equal(decode_upright(tiff(values))[..., 0], values >> 8)
    values = (
        disc(30_000, -30_000, dtype) if np.issubdtype(dtype, np.signedinteger) else disc(9**9, 8**9, dtype)
    )
    np.testing.assert_array_equal(decode_upright(tiff(values))[..., 0], INSIDE * 255)


def test_white_is_zero():
    values = disc(1200, 800)
    np.testing.assert_array_equal(
        decode_upright(tiff(values, photometric="miniswhite"))[..., 0], ~INSIDE * 255
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "write",
    [
        lambda values: tiff(values, photometric="minisblack", planarconfig="contig"),
        lambda values: tiff(values.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate"),
        lambda values: tiff(values.transpose(2, 0, 1), imagej=True, metadata={"axes": "CYX"}),
        lambda values: tiff(values.transpose(2, 0, 1), ome=True, metadata={"axes": "CYX"}),
        lambda values: tiff(values, photometric="minisblack", planarconfig="contig", compression="lzw"),
    ],
    ids=["contiguous", "planar", "ImageJ", "OME", "LZW"],
)
def test_many_channels(write, dtype):
    values = (NOISE >> (8 if dtype == np.uint8 else 0)).astype(dtype)
    shift = 0 if dtype == np.uint8 else 8
    data = write(values)
    first = convert_image(data, AUTO)
    np.testing.assert_array_equal(decode_image(first.data), values[..., :3] >> shift)
    assert first.remarks == [("channels left out", "the first 3 of 6 became red, green and blue")]
    chosen = convert_image(data, DecodeConfig(channels=(5, 0, 3)))
    np.testing.assert_array_equal(decode_image(chosen.data), values[..., [5, 0, 3]] >> shift)
    assert chosen.remarks == []
    grey = decode_image(convert_image(data, DecodeConfig(channels=(4,))).data)
    np.testing.assert_array_equal(grey, values[..., [4, 4, 4]] >> shift)
    with pytest.raises(ImageError, match="the image has 6 channels; --channels asks for number 6"):
        convert_image(data, DecodeConfig(channels=(0, 1, 6)))


@pytest.mark.parametrize("values", [NOISE[..., :3], (NOISE[..., :3] >> 8).astype(np.uint8), NOISE[..., 0]])
def test_compressions_and_layouts_that_pillow_lacks(values):
    shift = 8 if values.dtype == np.uint16 else 0
    expected = values >> shift if values.ndim == 3 else (values >> shift)[..., None].repeat(3, axis=2)
    photometric = "rgb" if values.ndim == 3 else "minisblack"
    files = [tiff(values, photometric=photometric, compression="jpeg2000")]
    if values.ndim == 3:
        files.append(tiff(values.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"))
    for data in files:
        np.testing.assert_array_equal(decode_upright(data), expected)


def test_two_channels_and_a_choice_among_three():
    two = convert_image(tiff(NOISE[..., :2], photometric="minisblack", planarconfig="contig"), AUTO)
    expected = np.concatenate((NOISE[..., :2] >> 8, np.zeros((40, 60, 1), int)), axis=-1)
    np.testing.assert_array_equal(decode_image(two.data), expected)
    assert two.remarks == [("two channels as red and green", "no blue")]
    turned = decode_upright(tiff(NOISE[..., :3], photometric="rgb"), DecodeConfig(channels=(2, 1, 0)))
    np.testing.assert_array_equal(turned, NOISE[..., [2, 1, 0]] >> 8)
    grey = tiff(NOISE[..., 0])
    assert convert_image(grey, DecodeConfig(channels=(2, 1, 0))).remarks == []  # there is nothing to choose


def test_deep_alpha_lies_on_white():
    values = np.stack([disc(1200, 800)] * 3 + [disc(65535, 0)], axis=-1)
    expected = np.full((40, 60), 255)  # white inside, and nothing outside
    for data in (tiff(values, photometric="rgb", extrasamples=["unassalpha"]), png(values)):
        np.testing.assert_array_equal(decode_upright(data)[..., 0], expected)
        chosen = DecodeConfig(channels=(3,))
        if data.startswith(b"II"):  # asked for by number, alpha is a channel as others
            np.testing.assert_array_equal(decode_upright(data, chosen)[..., 0], INSIDE * 255)


def test_stretched_pictures_keep_their_orientation(tmp_path):
    image = Image.fromarray(disc(1200, 800))
    exif = Image.Exif()
    exif[0x0112] = 6
    for format in ("PNG", "TIFF"):
        path = tmp_path / f"a.{format}"
        image.save(path, format, exif=exif)
        assert decode_upright(path.read_bytes()).shape == (60, 40, 3)
    deep = tiff(disc(1.5, 0.5, np.float64), extratags=[(274, 3, 1, 6, True)])
    assert decode_upright(deep).shape == (60, 40, 3)


def test_a_data_set_needs_neither_settings_nor_packages_to_decode(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(tiff(disc(1200, 800)))
    summary = IngestShard(tmp_path / "out")([SourceRow(image_id="a", path=str(path))], 0)
    assert summary.remarks == [("a", str(path), "intensity stretched", "800 to 1200 became 0 to 255")]
    row = ShardReader(tmp_path / "out").read(0)
    with Image.open(io.BytesIO(row["image"])) as stored:
        np.testing.assert_array_equal(np.asarray(stored), INSIDE * 255)
    assert (row["height"], row["width"], row["orientation"]) == (40, 60, 1)


def test_without_the_package_imagecodecs(monkeypatch):
    """What Pillow can read is read with 8 bits, which is said; for the rest, the error names the package."""
    rgb = tiff(NOISE[..., :3] // 60, photometric="rgb", compression="lzw")
    many = tiff(NOISE, photometric="minisblack", planarconfig="contig", compression="lzw")

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(tifffile.TiffPage, "asarray", refuse)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    for data in (rgb, png(NOISE[..., :3] // 60)):
        converted = convert_image(data, AUTO)
        assert converted.data == data
        (remark,) = converted.remarks
        assert remark == ("16 bits read as 8", "pip install -e '.[deep]' reads them, for --intensity")
        assert convert_image(data, FULL).remarks == []
    for data, config in ((many, AUTO), (rgb, DecodeConfig(channels=(0,)))):
        with pytest.raises(ImageError, match=r"pip install -e '\.\[deep\]' reads it"):
            convert_image(data, config)


def test_truncated_and_huge_files():
    data = tiff(NOISE, photometric="minisblack", planarconfig="contig")
    with pytest.raises(ImageError, match="truncated TIFF"):
        convert_image(data[: len(data) // 2], AUTO)
    wide = bytearray(tiff(np.zeros((4, 4), np.float64)))
    with tifffile.TiffFile(io.BytesIO(bytes(wide))) as file:
        tag = file.pages.first.tags["ImageWidth"]
        wide[tag.valueoffset : tag.valueoffset + 4] = (10**9).to_bytes(4, "little")
    with pytest.raises(ImageError, match="the limit is 500 megapixels"):
        convert_image(bytes(wide), AUTO)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"intensity": ("percentile", 50, 10)}, "percentile is 50 10"),
        ({"intensity": ("percentile", 0, 101)}, "LOW < HIGH <= 100"),
        ({"channels": (0, 1)}, "expected one channel, or three"),
        ({"channels": (-1,)}, "channels is -1"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(UserError, match=message):
        DecodeConfig(**settings)


@pytest.mark.parametrize(
    "config", [AUTO, FULL, DecodeConfig(intensity=("percentile", 1, 99.5), channels=(2,))]
)
def test_settings_survive_a_manifest(config):
    assert DecodeConfig.from_noted(config.noted() | {"predict.flip": True}) == config
