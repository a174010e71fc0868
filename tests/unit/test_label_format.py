"""Label maps of few and of many classes: one rule, and files that other programs read."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ray_wsss.data.coco import rasterise
from ray_wsss.data.images import ImageError, decode_mask, describe_labels, encode_mask, voc_palette
from ray_wsss.data.schema import check_class_names
from ray_wsss.errors import UserError
from ray_wsss.figures.overview import paint_labels
from ray_wsss.label_format import ignore_label, label_format, labels_to_array, labels_to_tensor
from ray_wsss.ops.pseudo_label import assign_labels
from ray_wsss.ops.resize import resize_map
from ray_wsss.stages.ingest import IngestShard

FEW = np.arange(256, dtype=np.uint8).reshape(8, 32)
MANY = np.array([[0, 1, 254, 255, 256], [300, 1000, 65_534, 65_535, 7]], np.uint16)


def png_of(labels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("num_classes", "dtype", "tensor", "ignore"),
    [
        (1, np.uint8, torch.uint8, 255),
        (254, np.uint8, torch.uint8, 255),
        (255, np.uint16, torch.int32, 65_535),
        (65_534, np.uint16, torch.int32, 65_535),
    ],
)
def test_the_form_follows_from_the_number_of_classes(num_classes, dtype, tensor, ignore):
    form = label_format(num_classes)
    assert (form.dtype, form.ignore, form.tensor_dtype()) == (np.dtype(dtype), ignore, tensor)
    labels = np.array([[0, num_classes, ignore]], dtype)
    there = labels_to_tensor(labels)
    assert there.dtype == tensor
    assert there.tolist() == labels.tolist()
    assert ignore_label(labels) == ignore_label(there) == ignore
    back = labels_to_array(there)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, labels)


def test_other_types_and_more_classes_are_refused():
    with pytest.raises(ValueError, match="65535 classes; expected at most 65,534"):
        label_format(65_535)
    with pytest.raises(ValueError, match="labels are int64"):
        ignore_label(torch.zeros(1, dtype=torch.int64))
    check_class_names([str(k) for k in range(65_534)], Path("classes"))
    with pytest.raises(UserError, match="65535 classes; expected 1 to 65,534"):
        check_class_names([str(k) for k in range(65_535)], Path("classes"))


def test_files_of_few_classes_are_the_bytes_they_were():
    png = encode_mask(FEW)
    image = Image.fromarray(FEW)
    image.putpalette(voc_palette().tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    assert png == buffer.getvalue()
    assert hashlib.sha256(voc_palette().tobytes()).hexdigest().startswith(PALETTE)
    np.testing.assert_array_equal(decode_mask(png, 254), FEW)


PALETTE = "ec76f86cfddd0f4c"
"""Start of the SHA-256 of the palette that version 0.1 wrote."""


def test_files_of_many_classes_are_16_bit_grey():
    png = encode_mask(MANY)
    image = Image.open(io.BytesIO(png))
    assert image.mode == "I;16"
    np.testing.assert_array_equal(np.asarray(image), MANY)
    found = decode_mask(png, 65_534)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, MANY)
    with pytest.raises(ImageError, match="holds label 65535; expected labels from 0 to 255"):
        decode_mask(png, 254)


def test_masks_of_8_bits_serve_many_classes_unless_they_are_ambiguous():
    low = np.array([[0, 7, 254]], np.uint8)
    found = decode_mask(png_of(low), 300)
    assert found.dtype == np.uint16
    assert found.tolist() == low.tolist()
    with pytest.raises(ImageError, match="may mean ignored pixels or the 255th of 300 classes"):
        decode_mask(png_of(np.array([[0, 255]], np.uint8)), 300)
    # 16 bits say nothing of the number of classes: 255 is ignored where there are few.
    assert decode_mask(png_of(np.array([[0, 255]], np.uint16)), 254).dtype == np.uint8
    assert decode_mask(png_of(np.array([[0, 255]], np.uint16)), 300).tolist() == [[0, 255]]


def test_every_label_has_a_colour_of_its_own():
    palette = voc_palette(65_536)
    assert len(np.unique(palette, axis=0)) == 65_536
    np.testing.assert_array_equal(palette[:256], voc_palette())
    described = describe_labels([str(k) for k in range(300)])
    assert described[300] == {"index": 300, "name": "299", "colour": palette[300].tolist()}


def square(class_index: int, top: int, **fields: Any) -> dict[str, Any]:
    corners = [0, top, 4, top, 4, top + 2, 0, top + 2]
    return {"id": 1, "class_index": class_index, "segmentation": [corners]} | fields


def test_annotations_of_many_classes():
    """The class 254 has the label that is ignored where there are few classes."""
    painted = rasterise([square(254, 0), square(299, 2), square(3, 3, iscrowd=1)], 6, 4, num_classes=300)
    assert painted is not None
    assert painted.dtype == np.uint16
    assert painted[:, 0].tolist() == [255, 255, 300, 65_535, 65_535, 0]


@pytest.mark.parametrize(
    ("classes", "label", "fits"), [(300, 300, True), (300, 301, False), (300, 65_535, True)]
)
def test_ingest_checks_the_labels_of_masks(tmp_path, classes, label, fits):
    path, ingest = tmp_path / "mask.png", IngestShard(tmp_path, 300)
    path.write_bytes(png_of(np.array([[0, label]], np.uint16)))
    if fits:
        png, label_map = ingest._read_mask(str(path))
        assert png == path.read_bytes()
        assert label_map.tolist() == [[0, label]]
    else:
        with pytest.raises(ImageError, match="holds label 301; expected 0 to 300, or 65535"):
            ingest._read_mask(str(path))


def test_the_contest_of_many_classes():
    classes, scores = torch.tensor([299, 254]), torch.tensor([[[2.0, 0.0]], [[1.0, 3.0]]])
    labels = assign_labels(scores, torch.tensor([0, 0]), classes, 1, 300)
    assert labels.dtype == torch.int32
    assert labels.tolist() == [[[300, 255]]]
    with pytest.raises(ValueError, match=r"class_index spans 254\.\.299; expected 0\.\.253"):
        assign_labels(scores, torch.tensor([0, 0]), classes, 1)


def test_resizing_keeps_every_label():
    found = resize_map(MANY, (4, 10))
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, MANY.repeat(2, 0).repeat(2, 1))


def test_painting_many_classes():
    """Ignored pixels are white, the 255th class is not."""
    grey = np.full((*MANY.shape, 3), 100, np.uint8)
    painted = paint_labels(grey, MANY, voc_palette(65_535))
    assert (painted[1, 3] == painted.max((0, 1))).all()
    assert len({tuple(colour) for colour in painted.reshape(-1, 3).tolist()}) == MANY.size
