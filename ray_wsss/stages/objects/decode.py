"""SAM's masks for annotated objects of many images: one decoder call for prompts of one shape."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ray_wsss.config.sam import ObjectMask, ObjectPrompts
from ray_wsss.data.objects import AnnotatedObject, BoxXyxy
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.models.promptable.interface import Embeddings, PromptableModel
from ray_wsss.ops.device import upload
from ray_wsss.ops.prompt_batches import batch_by_shape
from ray_wsss.stages.point_prompts import choose_masks, no_masks

_SINGLE = 0
"""Index of the mask output for prompts that leave no doubt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectPrompt:
    """Prompt of SAM for one object; coordinates are pixels of the image, as `SamPredictor` takes them."""

    image_index: int
    object_index: int
    """Index among the image's objects."""
    class_index: int
    box_xyxy: BoxXyxy | None
    points_xy: tuple[tuple[float, float], ...]
    point_labels: tuple[int, ...]

    @property
    def is_lone_point(self) -> bool:
        """True if one click is all there is, which may mean a part of an object as well as the whole."""
        return self.box_xyxy is None and len(self.points_xy) == 1

    @property
    def count(self) -> int:
        """Number of points and boxes."""
        return len(self.points_xy) + (self.box_xyxy is not None)


def prompts_of(
    objects: Sequence[AnnotatedObject], image_index: int, kind: ObjectPrompts = "all"
) -> list[ObjectPrompt]:
    """Prompts of an image's objects; regions of many objects have none.

    Args:
        kind: which of an object's prompts to take (`config.LabelConfig.object_prompts`).
    """
    return [_prompt_of(each, image_index, at, kind) for at, each in enumerate(objects) if not each.iscrowd]


def _prompt_of(each: AnnotatedObject, image_index: int, at: int, kind: ObjectPrompts) -> ObjectPrompt:
    with_box = each.box_xyxy is not None and (kind != "points" or 1 not in each.point_labels)
    with_points = kind == "all" or not with_box
    return ObjectPrompt(
        image_index=image_index,
        object_index=at,
        class_index=each.class_index,
        box_xyxy=each.box_xyxy if with_box else None,
        points_xy=each.points_xy if with_points else (),
        point_labels=each.point_labels if with_points else (),
    )


@torch.no_grad()
def decode_objects(
    sam: PromptableModel,
    embeddings: Embeddings,
    images_hw: Sequence[tuple[int, int]],
    prompts: Sequence[ObjectPrompt],
    mask_output: ObjectMask,
    batch_size: int,
) -> tuple[Float[Tensor, "N a b"], Float[Tensor, " N"]]:
    """SAM's mask of each object, as low-resolution logits, and its predicted IoU.

    Prompts with equally many points, and with or without a box, go together, whichever images they belong to.

    Args:
        images_hw: height and width in pixels of the images, to which the prompts refer.
        mask_output: which of SAM's mask outputs to take (`config.LabelConfig.object_mask`).
        batch_size: objects per decoder call.
    """
    logits, predicted_iou = no_masks(sam, embeddings, len(prompts))
    shapes = [(len(prompt.points_xy), prompt.box_xyxy is not None) for prompt in prompts]
    for chosen in batch_by_shape(shapes, batch_size):
        some = [prompts[k] for k in chosen]
        sizes_hw = [images_hw[prompt.image_index] for prompt in some]
        points, labels, boxes = (_upload(part, logits) for part in _arrays(sam.frame, some, sizes_hw))
        shown, image_of = torch.tensor([prompt.image_index for prompt in some]).unique(return_inverse=True)
        shown, image_of = (upload(values, embeddings.device) for values in (shown, image_of))
        outputs = sam.decode(embeddings[shown], points, labels, boxes, image_index=image_of)
        at = upload(torch.tensor(chosen), embeddings.device)
        logits[at], predicted_iou[at] = _choose(sam, *outputs, some[0], mask_output)
    return logits, predicted_iou


def _arrays(
    frame: InputFrame, prompts: Sequence[ObjectPrompt], images_hw: Sequence[tuple[int, int]]
) -> list[np.ndarray | None]:
    """Points (N, P, 2), their labels (N, P) and boxes (N, 4), of one shape, in SAM's frame; None without."""
    points = labels = boxes = None
    if prompts[0].points_xy:
        points = np.stack(
            [frame.place_points(np.array(p.points_xy, float), hw) for p, hw in zip(prompts, images_hw)]
        )
        labels = np.array([prompt.point_labels for prompt in prompts])
    if prompts[0].box_xyxy is not None:
        corners = [np.reshape(np.array(prompt.box_xyxy, float), (2, 2)) for prompt in prompts]
        boxes = np.stack([frame.place_points(xy, hw).ravel() for xy, hw in zip(corners, images_hw)])
    return [points, labels, boxes]


def _upload(values: np.ndarray | None, like: Tensor) -> Tensor | None:
    return None if values is None else upload(torch.from_numpy(values.astype(np.float32)), like.device)


def _choose(
    sam: PromptableModel, masks: Tensor, iou: Tensor, like: ObjectPrompt, mask_output: ObjectMask
) -> tuple[Tensor, Tensor]:
    """The outputs that count, of prompts that all have the shape of ``like``."""
    if mask_output == "auto":
        mask_output = "best_iou" if like.is_lone_point else "single"
    if mask_output == "single":
        return masks[:, _SINGLE], iou[:, _SINGLE]
    return choose_masks(sam, masks, iou, mask_output)
