"""Boxes of genuine COCO images, and points made from their masks: SAM's masks, exported and read back.

pytest -m slow -s tests/integration/test_genuine_objects.py
"""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from scipy.ndimage import distance_transform_edt
from segment_anything import SamPredictor

from ray_wsss.cli import main
from ray_wsss.cluster.stages.label import run_label
from ray_wsss.config import LabelConfig, Recipe, SamConfig
from ray_wsss.config.resources import Cluster, Resources
from ray_wsss.data.coco import decode_rle, read_coco
from ray_wsss.data.images import decode_image
from ray_wsss.data.objects import read_objects
from ray_wsss.data.reader import ShardReader
from ray_wsss.models.sam.build import build_sam
from ray_wsss.stages.ingest import ingest_here

SAM = SamConfig(name="tiny", precision="fp32")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def annotations(genuine_data: Path, tmp_path_factory) -> Path:
    """The instances JSON with a keypoint in the middle of each object's mask."""
    path = genuine_data / "coco/annotations/instances_val.json"
    content, coco = json.loads(path.read_text()), COCO(str(path))
    for annotation in content["annotations"]:
        if not annotation["iscrowd"]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # pycocotools under NumPy 2
                mask = np.pad(coco.annToMask(annotation), 1)
            depth = np.asarray(distance_transform_edt(mask))[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            annotation["keypoints"] = [int(x), int(y), 2]
    out = tmp_path_factory.mktemp("coco") / "instances.json"
    out.write_text(json.dumps(content))
    return out


@pytest.fixture(scope="module")
def dataset(genuine_data: Path, annotations: Path) -> Path:
    out = annotations.parent / "data"
    ingest_here(read_coco(genuine_data / "coco/images", annotations), out=out, max_errors=0)
    return out


@pytest.mark.parametrize("kind", ["boxes", "points"])
def test_masks_equal_those_of_sam_predictor(dataset: Path, tmp_path: Path, kind: Any):
    labels = tmp_path / "labels"
    run_label(
        Recipe(label=LabelConfig(object_prompts=kind), sam=SAM),
        dataset=dataset,
        classifier=None,
        prompts_from="annotations",
        out=labels,
        resources=Resources(actors=0),
        cluster=Cluster(),
    )
    predictor, rows, found = SamPredictor(build_sam(SAM)), ShardReader(dataset), ShardReader(labels)
    masks = equal = differing = pixels = 0
    for at in range(len(rows)):
        row, segments = rows.read(at), found.read(at)["segments"]
        image = decode_image(row["image"], row["orientation"])
        if segments:
            predictor.set_image(image)
        objects = list(read_objects(row["objects"]) or ())
        assert len(segments) == sum(not each.iscrowd for each in objects)
        for segment in segments:
            each = objects[segment["object_index"]]
            box = np.array(each.box_xyxy) if kind == "boxes" else None
            point = np.array(each.points_xy) if kind == "points" else None
            several, iou, _ = predictor.predict(
                point, None if point is None else np.ones(1), box, multimask_output=kind == "points"
            )
            unequal = int((decode_rle(segment["rle"], image.shape[:2]) != several[iou.argmax()]).sum())
            masks, equal = masks + 1, equal + (unequal == 0)
            differing, pixels = differing + unequal, pixels + image[..., 0].size
    print(f"{kind}: {equal} of {masks} masks equal, {differing} of {pixels} pixels differ")
    assert masks > 1000
    assert differing < 1e-6 * pixels
    _check_export(labels, dataset, tmp_path)


def _check_export(labels: Path, dataset: Path, tmp_path: Path) -> None:
    inputs = ["--labels", str(labels), "--dataset", str(dataset), "--out", str(tmp_path / "export")]
    assert main(["export", "coco", *inputs, "--skip-images"]) == 0
    coco = COCO(str(tmp_path / "export/annotations/instances_train.json"))
    rows, found = ShardReader(dataset), ShardReader(labels)
    count = 0
    for at in range(len(rows)):
        row = found.read(at)
        segments = [segment for segment in row["segments"] if segment["area"]]
        exported = coco.loadAnns(coco.getAnnIds(imgIds=[int(row["image_id"])]))
        assert [a["category_id"] - 1 for a in exported] == [s["class_index"] for s in segments]
        for annotation, segment in zip(exported, segments):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                mask = coco.annToMask(annotation).astype(bool)
            assert np.array_equal(mask, decode_rle(segment["rle"], (row["height"], row["width"])))
            count += 1
    print(f"{count} instances exported and read back by pycocotools")
