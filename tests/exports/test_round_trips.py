"""What we write, read by tools that others trust: the masks come back equal, pixel by pixel."""

import json
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from skimage.measure import label as find_components
from torchvision.datasets import VOCSegmentation

from ray_wsss.data.images import voc_palette
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.sources.yolo import read_yolo
from ray_wsss.stages.ingest import IngestShard

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # on import, of code that is not ours
    import supervision as sv

# pycocotools' own code does not know NumPy 2's rules for copies yet.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


def components(label_map: NDArray[np.uint8]) -> list[tuple[int, bytes]]:
    """Class and pixels of every connected component, sorted: what instances have to be."""
    inside = np.where(label_map == 255, 0, label_map)
    regions = np.asarray(find_components(inside, background=0, connectivity=2))
    masks = [regions == k for k in range(1, regions.max() + 1)]
    return sorted((int(label_map[m][0]) - 1, m.tobytes()) for m in masks)


def same_pixels(path: Path, expected: NDArray[np.uint8]) -> None:
    """Whether a file shows these pixels to a reader that knows nothing of EXIF, up to JPEG's losses."""
    with Image.open(path) as image:
        seen = np.asarray(image.convert("RGB")).astype(int)
        assert image.getexif().get(0x0112, 1) == 1
    assert seen.shape == expected.shape
    # A labelled image with noise in it: turned another way it would differ by some 80.
    assert np.abs(seen - expected).mean() < 20


@pytest.mark.parametrize("polygons", [False, True], ids=["rle", "polygons"])
def test_coco_with_pycocotools(export, labelled, polygons: bool) -> None:
    out = export("coco", "--split", "val", *(["--polygons"] if polygons else []))
    coco: Any = COCO(out / "annotations" / "instances_val.json")
    assert len(coco.imgs) == len(labelled.label_maps)
    assert len({a["id"] for a in coco.dataset["annotations"]}) == len(coco.anns) > 50
    for image in coco.dataset["images"]:
        label_map = labelled.label_maps[image["ray_wsss_id"]]
        assert (image["height"], image["width"]) == label_map.shape
        same_pixels(out / "images" / "val" / image["file_name"], labelled.pixels[image["ray_wsss_id"]])
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        masks = [coco.annToMask(a).astype(bool) for a in annotations]
        found = sorted((a["category_id"] - 1, m.tobytes()) for a, m in zip(annotations, masks))
        assert found == components(label_map)
        for annotation, mask in zip(annotations, masks):
            rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
            assert annotation["area"] == coco_mask.area(rle)
            assert annotation["bbox"] == coco_mask.toBbox(rle).tolist()
            assert isinstance(annotation["segmentation"], list if polygons else dict)


def test_coco_has_scores_and_points(export, labelled) -> None:
    out = export("coco", "--instances", "class")
    content = json.loads((out / "annotations" / "instances_train.json").read_text())
    by_image = {image["id"]: image["ray_wsss_id"] for image in content["images"]}
    for annotation in content["annotations"]:
        assert annotation["predicted_iou"] == pytest.approx(1 - annotation["category_id"] / 10)
        assert annotation["score"] == pytest.approx(annotation["predicted_iou"] / 2)
        assert (annotation["stability_score"], annotation["cam_mean"]) == (0.75, 0.5)
        label_map = labelled.label_maps[by_image[annotation["image_id"]]]
        ((x, y),) = annotation["point_coords"]
        assert label_map[int(y), int(x)] == annotation["category_id"]
    per_image = [len(np.setdiff1d(m, [0, 255])) for m in labelled.label_maps.values()]
    assert len(content["annotations"]) == sum(per_image)


@pytest.mark.parametrize("polygons", [False, True], ids=["rle", "polygons"])
def test_coco_with_supervision(export, labelled, polygons: bool) -> None:
    out = export("coco", *(["--polygons"] if polygons else []))
    path = out / "annotations" / "instances_train.json"
    images = {i["file_name"]: i["ray_wsss_id"] for i in json.loads(path.read_text())["images"]}
    found = sv.DetectionDataset.from_coco(str(out / "images" / "train"), str(path), force_masks=True)
    assert found.classes == ["cat", "traffic light", "Ünïcode: <x> & 'y'"]
    inside, outside = 0, 0
    for image_path, detections in found.annotations.items():
        label_map = labelled.label_maps[images[Path(image_path).name]]
        masks = _masks(detections)
        if polygons:  # it also paints the pixels on the right and lower edge of an outline
            for class_index in range(3):
                seen = np.any([m for c, m in masks if c == class_index] or [np.zeros_like(label_map)], axis=0)
                true = label_map == class_index + 1
                assert not (true & ~seen).any()
                inside, outside = inside + true.sum(), outside + (seen & ~true).sum()
        else:
            assert sorted((c, m.tobytes()) for c, m in masks) == components(label_map)
    # Specks of a pixel become four: an IoU of these maps, which are full of them.
    assert not polygons or inside / (inside + outside) > 0.6


def test_yolo_with_supervision(export, labelled, names_of) -> None:
    out = export("yolo", "--split", "val")
    names = names_of(out)
    folder, labels = out / "images" / "val", out / "labels" / "val"
    found = sv.DetectionDataset.from_yolo(
        str(folder), str(labels), str(out / "data.yaml"), force_masks=True, is_obb=False
    )
    assert found.classes == ["cat", "traffic light", "Ünïcode: <x> & 'y'"]
    annotations = {Path(path).stem: detections for path, detections in found.annotations.items()}
    assert {path.stem for path in labels.iterdir()} == set(names.values())
    for image_id, label_map in labelled.label_maps.items():
        (picture,) = folder.glob(f"{names[image_id]}.*")
        same_pixels(picture, labelled.pixels[image_id])
        if picture.suffix in (".jpg", ".png"):  # supervision looks for no others
            masks = _masks(annotations[names[image_id]])
            assert sorted((c, m.tobytes()) for c, m in masks) == components(label_map)
    assert (labels / f"{names['empty.jpg']}.txt").read_text() == ""


def test_yolo_ingested_again(export, labelled, names_of, tmp_path: Path) -> None:
    """Masks and labels come back, except that ignored pixels, which YOLO can't hold, are background."""
    out = export("yolo", "--split", "val")
    image_ids = {name: image_id for image_id, name in names_of(out).items()}
    source = read_yolo(out / "data.yaml", "val")
    assert source.class_names == ["cat", "traffic light", "Ünïcode: <x> & 'y'"]
    summary = IngestShard(tmp_path / "again", len(source.class_names))(source.rows, 0)
    assert (summary.errors, summary.remarks) == ([], [])
    again = ShardReader(tmp_path / "again")
    assert len(again) == len(labelled.label_maps)
    for row in map(again.read, range(len(again))):
        expected = labelled.label_maps[image_ids[Path(row["image_id"]).stem]]
        expected = np.where(expected == 255, 0, expected)
        assert row["image_labels"] == (np.unique(expected[expected > 0]) - 1).tolist()
        if row["mask"] is not None:
            np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(row["mask"]))), expected)
        else:
            assert not expected.any()


def _masks(detections: Any) -> list[tuple[int, NDArray[np.bool_]]]:
    if detections.mask is None:
        return []
    return [(int(c), np.asarray(m, bool)) for c, m in zip(detections.class_id, detections.mask)]


def test_voc_with_torchvision(export, labelled, names_of, tmp_path: Path) -> None:
    out = export("voc", out="VOCdevkit/VOC2012")
    names = {name: image_id for image_id, name in names_of(out).items()}
    voc = VOCSegmentation(str(tmp_path), year="2012", image_set="train")
    assert len(voc) == len(labelled.label_maps)
    for at in range(len(voc)):
        image, mask = voc[at]
        image_id = names[Path(voc.images[at]).stem]
        np.testing.assert_array_equal(np.array(mask), labelled.label_maps[image_id])
        assert image.size == mask.size
        same_pixels(Path(voc.images[at]), labelled.pixels[image_id])
        palette = np.array(mask.getpalette()).reshape(-1, 3)
        np.testing.assert_array_equal(palette, voc_palette())
        objects = np.array(Image.open(out / "SegmentationObject" / Path(voc.masks[at]).name))
        expected = [m for _, m in components(labelled.label_maps[image_id])]
        found = [(objects == n).tobytes() for n in np.unique(objects) if 0 < n < 255]
        assert sorted(found) == sorted(expected)
        np.testing.assert_array_equal(objects == 255, np.array(mask) == 255)


def test_voc_boundaries_are_ignored(export, labelled, names_of) -> None:
    out = export("voc", "--boundary-px", "1")
    name = names_of(out)["a/b.jpg"]
    label_map = labelled.label_maps["a/b.jpg"]
    mask = np.array(Image.open(out / "SegmentationClass" / f"{name}.png"))
    differs = np.zeros(label_map.shape, bool)
    for dy, dx in ((0, 1), (1, 0)):
        a, b = label_map[: -dy or None, : -dx or None], label_map[dy:, dx:]
        edge = (a != b) & (np.maximum(a, b) < 255)
        differs[: -dy or None, : -dx or None] |= edge
        differs[dy:, dx:] |= edge
    assert (mask[differs] == 255).all()
    kept = mask != 255
    np.testing.assert_array_equal(mask[kept], label_map[kept])
    assert kept.mean() > 0.2
