"""Masks of annotated boxes two ways: one box per decoder call, and batches of the boxes of many images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor

from ray_wsss.config import Recipe
from ray_wsss.data.coco import decode_rle, encode_rle
from ray_wsss.data.images import decode_mask
from ray_wsss.data.objects import AnnotatedObject
from ray_wsss.data.scenes import CLASS_NAMES, make_scene
from ray_wsss.models.promptable.build import input_frame
from ray_wsss.models.sam.build import build_sam
from ray_wsss.ops.regions import box_around
from ray_wsss.runs.prepared_images import PreparedImage, PrepareImages
from ray_wsss.runs.tally import Tally
from ray_wsss.stages.objects.label import ObjectLabeller

_FIRST_SEED = 20_000_000
_CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class ObjectBenchmark:
    """Labels scenes of 96 px with boxes in both ways, and compares their speed, masks and labels."""

    recipe: Recipe
    images: int
    boxes: int
    """Boxes per image: those of its objects, and jittered copies of them."""
    device: Literal["cpu", "cuda"]

    def run(self) -> dict[str, Any]:
        """Measure; returns the figures.

        ``prompting_speedup`` compares SAM's decoder, the resizing of its masks and the contest for pixels.
        """
        labeller = ObjectLabeller(self.recipe.label, self.recipe.sam, len(CLASS_NAMES), self.device)
        predictor = SamPredictor(build_sam(self.recipe.sam).to(self.device))
        ours, naive = Tally(), Tally()
        differing = pixels = equal = masks = label_pixels = 0
        for first in range(0, self.images, _CHUNK):
            seeds = range(_FIRST_SEED + first, _FIRST_SEED + min(first + _CHUNK, self.images))
            images = [_prepare(self.recipe, seed, self.boxes) for seed in seeds]
            table, tally = labeller(images)
            ours.add(tally)
            for image, row in zip(images, table.to_pylist()):
                found, label = _label_naively(predictor, image, naive, self.device)
                label_pixels += int((decode_mask(row["pseudo_label"]) != label).sum())
                for segment, mask in zip(row["segments"], found, strict=True):
                    unequal = int((decode_rle(segment["rle"], image.image_hw) != mask).sum())
                    masks, equal = masks + 1, equal + (unequal == 0)
                    differing, pixels = differing + unequal, pixels + mask.size
        seconds = {"naive": naive.seconds, "engine": ours.seconds}
        return {
            "images": self.images,
            "boxes": masks,
            "images_per_s": {way: self.images / sum(of.values()) for way, of in seconds.items()},
            "prompting_images_per_s": {way: self.images / of["prompt"] for way, of in seconds.items()},
            "prompting_speedup": naive.seconds["prompt"] / ours.seconds["prompt"],
            "phase_seconds": seconds,
            "equal_masks": equal,
            "differing_pixels": differing,
            "pixels": pixels,
            "differing_label_pixels": label_pixels,
        }


def _prepare(recipe: Recipe, seed: int, boxes: int) -> PreparedImage:
    scene, rng = make_scene(seed), np.random.default_rng(seed)
    objects: list[AnnotatedObject] = []
    for k in range(boxes):
        thing = scene.objects[k % len(scene.objects)]
        tight = np.array(box_around(thing.body), float)
        box = tight + (rng.uniform(-4, 4, 4) if k >= len(scene.objects) else 0)
        left, top = np.clip(box[:2], 0, 90).tolist()
        right, bottom = np.clip(box[2:], [left + 2, top + 2], 96).tolist()
        objects.append(AnnotatedObject(class_index=thing.class_index, box_xyxy=(left, top, right, bottom)))
    prepare = PrepareImages(frame=input_frame(recipe.sam))
    labels = tuple(sorted({each.class_index for each in objects}))
    return replace(prepare.prepare(str(seed), scene.image, labels), objects=tuple(objects))


def _label_naively(
    predictor: SamPredictor, image: PreparedImage, tally: Tally, device: str
) -> tuple[Sequence[NDArray[np.bool_]], NDArray[np.uint8]]:
    """Masks of an image's boxes, one after the other, and its label map."""
    on = torch.device(device)
    with tally.phase("encode", on):
        predictor.set_image(image.for_sam)
        # SAM's input was resized before, which the predictor must know to place boxes and masks.
        predictor.original_size = image.image_hw
    masks: list[NDArray[np.bool_]] = []
    label, best = np.zeros(image.image_hw, np.uint8), np.full(image.image_hw, -np.inf)
    with tally.phase("prompt", on):
        for each in image.objects or ():
            found, iou, _ = predictor.predict(box=np.array(each.box_xyxy), multimask_output=False)
            mask = np.asarray(found[0])
            better = mask & (iou[0] > best)
            label[better], best[better] = each.class_index + 1, iou[0]
            masks.append(mask)
    with tally.phase("write"):
        for mask in masks:
            encode_rle(mask)
    return masks, label
