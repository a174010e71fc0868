"""Generated scenes as a COCO data set on disk: JPEGs and an instances JSON."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.ndimage import distance_transform_edt

from ray_wsss.console import tell_progress
from ray_wsss.data.coco import encode_rle
from ray_wsss.data.scenes import CLASS_NAMES, Scene, make_scene


def write_scene_coco(folder: Path, name: str, seeds: range, size_px: int = 96) -> tuple[Path, Path]:
    """Write the scenes of ``seeds`` as ``folder/name/*.jpg`` and ``folder/instances_name.json``.

    Returns:
        The folder of images and the annotation file, for `data.coco.read_coco`.
    """
    images_dir = folder / name
    images_dir.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for done, seed in enumerate(seeds, 1):
        scene = make_scene(seed, size_px, size_px)
        file_name = f"{seed:012d}.jpg"
        Image.fromarray(scene.image).save(images_dir / file_name, quality=95, subsampling=0)
        images.append({"id": seed, "file_name": file_name, "height": size_px, "width": size_px})
        annotations += _annotations(scene, seed, len(annotations) + 1)
        tell_progress(done, len(seeds))
    content = {
        "info": {"description": "ray_wsss generated scenes"},
        "categories": [
            {"id": k + 1, "name": class_name, "keypoints": ["middle"], "skeleton": []}
            for k, class_name in enumerate(CLASS_NAMES)
        ],
        "images": images,
        "annotations": annotations,
    }
    path = folder / f"instances_{name}.json"
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return images_dir, path


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    """COCO annotations of the objects whose emblem is visible; a keypoint is in the middle of each."""
    found = []
    for thing in scene.objects:
        if not thing.emblem.any():
            continue
        rle: Any = encode_rle(thing.body)
        found.append(
            {
                "id": first_id + len(found),
                "image_id": image_id,
                "category_id": thing.class_index + 1,
                "segmentation": rle,
                "area": int(thing.body.sum()),
                "bbox": coco_mask.toBbox(rle).tolist(),
                "iscrowd": 0,
                "keypoints": [*_middle(thing.body), 2],
                "num_keypoints": 1,
            }
        )
    return found


def _middle(body: NDArray[np.bool_]) -> tuple[int, int]:
    """The pixel (x, y) of a mask that is farthest from its edge."""
    depth = np.asarray(distance_transform_edt(np.pad(body, 1)))[1:-1, 1:-1]
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y)
