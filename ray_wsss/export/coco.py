"""COCO's instances JSON, which pycocotools, detectron2, MMDetection, FiftyOne and others read.

OUT/annotations/instances_SPLIT.json   its "file_name" entries are relative to OUT/images/SPLIT
OUT/images/SPLIT/NAME.jpg
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ray_wsss.data.coco import encode_rle
from ray_wsss.export.files import JsonList, StreamedFile, write_picture
from ray_wsss.export.outlines import edge_ring
from ray_wsss.export.record import ExportedImage, Instance, find_parts


class CocoFormat:
    """Writes COCO, streaming images and annotations to disk.

    An annotation has COCO's own fields, and the scores and points that are known, under the names that
    segment_anything's mask generator uses. That of an annotated object has ``prompt_box`` and
    ``point_labels``, and its mask may overlap others.

    Args:
        polygons: write outlines instead of RLE, one per connected part. pycocotools decodes them to the same
            pixels.
    """

    def __init__(
        self,
        out: Path,
        class_names: Sequence[str],
        *,
        split: str,
        polygons: bool = False,
        skip_images: bool = False,
    ) -> None:
        self.folder, self.polygons, self.skip_images = out / "images" / split, polygons, skip_images
        self.file = StreamedFile(out / "annotations" / f"instances_{split}.json")
        self.rest = StreamedFile(out / "annotations" / f"instances_{split}.rest")
        categories = [{"id": k, "name": n, "supercategory": ""} for k, n in enumerate(class_names, 1)]
        self.file.write('{"info": {"description": "pseudo labels by ray-wsss"},\n"licenses": [],\n')
        self.file.write(f'"categories": {json.dumps(categories)},\n"images": [')
        self.images, self.annotations = JsonList(self.file), JsonList(self.rest)

    def add(self, image: ExportedImage) -> None:
        height, width = image.image_hw
        file_name = write_picture(self.folder, image, skip=self.skip_images)
        entry = {"id": image.number, "file_name": file_name, "height": height, "width": width}
        self.images.add(entry | {"ray_wsss_id": image.image_id})
        for instance in image.instances:
            number = self.annotations.count + 1
            self.annotations.add({"id": number, "image_id": image.number} | self._describe(instance, image))

    def finish(self) -> None:
        self.file.write('\n],\n"annotations": [')
        self.file.append(self.rest)
        self.file.write("\n]}\n")
        self.file.finish()

    def _describe(self, instance: Instance, image: ExportedImage) -> dict[str, Any]:
        height, width = instance.crop.shape
        if self.polygons:
            segmentation: Any = [_polygon(part) for part in find_parts(instance)]
        else:
            segmentation = encode_rle(instance.mask(image.image_hw))
        return {
            "category_id": instance.class_index + 1,
            "bbox": [instance.left, instance.top, width, height],
            "area": instance.area,
            "iscrowd": 0,
            "segmentation": segmentation,
        } | _known(instance)


def _polygon(part: Instance) -> list[int]:
    return (edge_ring(part.crop) + np.array([part.left, part.top])).ravel().tolist()


def _known(instance: Instance) -> dict[str, Any]:
    scores = instance.scores
    if scores.score is None:
        return {}
    of_prompt: dict[str, Any] = {"cam_mean": scores.cam_mean}
    if scores.cam_mean is None:  # an annotated object
        box = scores.box_xyxy
        of_prompt = {
            "point_labels": list(scores.point_labels),
            "prompt_box": box and [box[0], box[1], box[2] - box[0], box[3] - box[1]],
        }
    return {
        "score": scores.score,
        "predicted_iou": scores.predicted_iou,
        "stability_score": scores.stability_score,
        "point_coords": [list(point) for point in scores.points_xy],
        **of_prompt,
    }
