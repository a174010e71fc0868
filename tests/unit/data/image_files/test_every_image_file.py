"""Image files of every suffix and of none, and files that are no images."""

import io
import sys

import numpy as np
import pytest
from PIL import Image, features

from ray_wsss.config.decode import DecodeConfig
from ray_wsss.data.folder import list_images, read_folder
from ray_wsss.data.image_files import opening
from ray_wsss.data.image_files.convert import convert_image, decode_upright
from ray_wsss.data.image_files.formats import HEAD_BYTES, find_format, is_image_by_name
from ray_wsss.data.images import ImageError, choose_orientation, decode_image, probe_image
from ray_wsss.data.schema import SourceRow
from ray_wsss.stages.ingest import IngestShard

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A smooth picture, which every format keeps nearly as it is."""
    y, x = np.mgrid[:64, :96]
    return Image.fromarray(np.stack([x * 2, y * 3, 255 - x * 2], axis=-1).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options) -> bytes:
    if format == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_told_and_read_by_its_content(picture, format):
    if format == "AVIF" and "avif" not in features.get_supported():
        pytest.skip("this build of Pillow has no AVIF")
    data = encoded(picture, format)
    assert find_format(data[:HEAD_BYTES]) == format
    assert convert_image(data, DecodeConfig()).data == data
    difference = np.abs(decode_upright(data).astype(int) - np.asarray(picture.convert("RGB")))
    assert difference.mean() < (20 if format == "GIF" else 3)


def test_exif_does_not_turn_a_heic(picture):
    """A HEIC is turned by properties of its own, which its decoder applies; viewers ignore its EXIF."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(picture, "HEIF", exif=exif)
    assert choose_orientation(probe_image(data), None) == 1
    assert np.abs(decode_upright(data).astype(int) - np.asarray(picture)).mean() < 3


def test_what_a_missing_package_would_read_is_named(picture, monkeypatch):
    heic, avif = encoded(picture, "HEIF"), b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf" + bytes(50)
    opening._why_unreadable.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(features, "get_supported", lambda: ["webp"])
    try:
        with pytest.raises(ImageError, match=r"^HEIC; pip install -e '\.\[heif\]' reads it$"):
            decode_image(heic)
        with pytest.raises(ImageError, match=r"^AVIF; this build of Pillow \(.*\) lacks it"):
            decode_image(avif)
    finally:
        opening._why_unreadable.cache_clear()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        *[(f"a/b{suffix}", True) for suffix in (".JFIF", ".jpe", ".avif", ".webp", ".heic", ".jp2", ".tif")],
        *[(name, False) for name in ("a.txt", "b.csv", "c.PDF", "d.mp4", "e.tar.gz", "f.dng", "g.json")],
        *[(name, None) for name in ("IMG_0001", "scan.2019", "x.bin", "logo.svg", "a.backup")],
    ],
)
def test_suffixes(name, told):
    assert is_image_by_name(name) is told


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"BM is no bitmap, but a text",
        b"P5",
        b"P7 none",
        b"II*\1",
        b"\0\0\0\x18ftypmp42",
        b"RIFF1234WAVE",
    ],
)
def test_what_only_resembles_an_image(head):
    assert find_format(head) is None


def test_a_folder_as_people_have_it(tmp_path, picture):
    files = {
        "cat/IMG_0001": encoded(picture, "JPEG"),
        "cat/scan.2019": encoded(picture, "PNG"),
        "cat/phone.HEIC": encoded(picture, "HEIF"),
        "cat/text.jpg": b"not a picture",
        "dog/readme": b"two dogs",
        "dog/labels.csv": b"a,b",
        "dog/raw.dng": b"II*\0" + bytes(100),
        "dog/empty": b"",
        "dog/.DS_Store": b"x",
        "dog/a.webp": encoded(picture, "WEBP"),
        "notes.txt": b"",
        "NOTES.TXT": b"",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    source = read_folder(tmp_path)
    images = {"cat/IMG_0001", "cat/scan.2019", "cat/phone.HEIC", "cat/text.jpg", "dog/a.webp"}
    assert {row.image_id for row in source.rows} == images
    assert source.passed_over == {"": 2, ".csv": 1, ".dng": 1, ".txt": 2, "hidden": 1}
    assert set(list_images(tmp_path).images) == images
    summary = IngestShard(tmp_path / "out")(source.rows, 0)
    assert summary.images == 4
    assert [(error[0], error[2][:12]) for error in summary.errors] == [("cat/text.jpg", "not an image")]


def test_only_the_first_page_is_read_and_that_is_said(picture):
    others = [Image.new("RGB", (96, 64), "red"), Image.new("RGB", (96, 64), "blue")]
    for format in ("GIF", "TIFF", "WEBP", "PNG"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = encoded(others[0], format, save_all=True, append_images=[others[1], picture], **options)
        converted = convert_image(data, DecodeConfig())
        assert converted.remarks == [("first of several pages or frames", "1 of 3")]
        assert decode_image(converted.data)[0, 0].tolist() == [255, 0, 0]


def test_previews_in_photographs_of_phones_are_no_pages(picture):
    data = encoded(picture, "MPO", save_all=True, append_images=[picture.resize((48, 32))])
    assert convert_image(data, DecodeConfig()).remarks == []


def test_duplicates_are_counted(tmp_path, picture):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(encoded(picture, "PNG"))
    (tmp_path / "d").write_bytes(encoded(picture, "BMP"))
    rows = [SourceRow(image_id=name, path=str(tmp_path / name)) for name in "abcd"]
    assert IngestShard(tmp_path / "out")(rows, 0).duplicates == 2


def test_equal_files_of_a_folder_are_merged_and_listed(tmp_path, picture):
    for name in ("cat/a.png", "dog/b.png", "dog/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encoded(picture, "PNG"))
    (row,) = read_folder(tmp_path).rows
    assert (row.image_id, row.image_labels) == ("cat/a.png", (0, 1))
    merged = "duplicate of another, merged"
    assert row.remarks == ((merged, "dog/b.png"), (merged, "dog/c"))
