"""Labels of the images of a chunk from the boxes and points of their annotated objects; no classifier."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ray_wsss.config import LabelConfig, SamConfig
from ray_wsss.data.rle import encode_rles, rle_areas
from ray_wsss.data.schema import ROWS_PER_GROUP
from ray_wsss.label_format import LabelMap, label_format, labels_to_array
from ray_wsss.models.promptable.encoder import SamEncoder, load_encoder
from ray_wsss.ops.pseudo_label import LabelContest, stability_score
from ray_wsss.ops.resize import slices_of
from ray_wsss.runs.prepared_images import PreparedImage
from ray_wsss.runs.tally import Tally
from ray_wsss.stages.embed import embeddings_of
from ray_wsss.stages.label import LABEL_SCHEMA, SamLabeller, by_own_size, describe
from ray_wsss.stages.objects.decode import ObjectPrompt, decode_objects, prompts_of


class ObjectLabeller:
    """Labels images with SAM's mask of each annotated object, at the image's own size.

    Where masks overlap, the pixel gets the class of the mask with the higher predicted IoU. A pixel that no
    mask covers is background, unless the image has a class of which no object has a prompt: then it is
    ignored, since nobody knows where that class is. So are pixels in the box of a crowd region, and all
    pixels of an image whose labels are unknown.

    Args:
        num_classes: number of the data set's classes.
        images: approximate number of images to encode in total (`models.promptable.encoder.load_encoder`).
        encoder: SAM's encoder, if another stage has loaded it.
    """

    rows_per_group = ROWS_PER_GROUP

    def __init__(
        self,
        config: LabelConfig,
        sam: SamConfig,
        num_classes: int,
        device: str = "cpu",
        images: int = 0,
        encoder: SamEncoder | None = None,
    ) -> None:
        self.config, self.sam_config, self.num_classes = config, sam, num_classes
        self.device = torch.device(device)
        self.encoder = encoder or load_encoder(sam, self.device, images)
        self.sam, self.format = self.encoder.sam, label_format(num_classes)

    def __call__(self, images: Sequence[PreparedImage]) -> tuple[pa.Table, Tally]:
        """Label images: rows of `stages.label.LABEL_SCHEMA`, in order, and counts and times."""
        rows: list[dict[str, Any]] = []
        for image in images:
            error = image.error if image.error is not None else self._beyond(image)
            rows.append({"image_id": image.image_id, "error": error})
        good = [at for at, row in enumerate(rows) if row["error"] is None]
        unknown = sum(images[at].image_labels is None and not images[at].objects for at in good)
        tally = Tally(images=len(good), errors=len(rows) - len(good), unknown=unknown)
        prompted = [at for at in good if prompts_of(images[at].objects or (), 0)]
        for start in range(0, len(prompted), self.config.batch_size):
            batch = prompted[start : start + self.config.batch_size]
            for at, columns in zip(batch, self._label([images[at] for at in batch], tally)):
                rows[at] |= columns
        with tally.phase("write"):
            for at in set(good) - set(prompted):
                labels = np.zeros(images[at].image_hw, self.format.dtype)
                rows[at] |= self._describe(images[at], labels, [])
            return pa.Table.from_pylist(rows, schema=LABEL_SCHEMA), tally

    def _beyond(self, image: PreparedImage) -> str | None:
        classes = [*(image.image_labels or ()), *(each.class_index for each in image.objects or ())]
        beyond = [c for c in classes if not 0 <= c < self.num_classes]
        return f"image label is {beyond[0]}; expected 0 to {self.num_classes - 1}" if beyond else None

    @torch.no_grad()
    def _label(self, images: Sequence[PreparedImage], tally: Tally) -> list[dict[str, Any]]:
        """Columns of images that all have prompts, in order."""
        with tally.phase("encode", self.device):
            embeddings = embeddings_of(self.encoder, images)
        prompts = [
            prompt
            for k, image in enumerate(images)
            for prompt in prompts_of(image.objects or (), k, self.config.object_prompts)
        ]
        with tally.phase("prompt", self.device):
            logits, predicted_iou = decode_objects(
                self.sam,
                embeddings,
                [image.image_hw for image in images],
                prompts,
                self.config.object_mask,
                self.sam_config.decode_batch_size,
            )
        columns: dict[int, dict[str, Any]] = {}
        for image_hw, of_size in by_own_size(images).items():
            for part in slices_of(len(of_size), math.prod(image_hw), self.config.max_map_pixels):
                found = self._masks_of(images, of_size[part], prompts, logits, predicted_iou, tally)
                for k, labels, segments in found:
                    with tally.phase("write"):
                        columns[k] = self._describe(images[k], labels, segments)
        tally.masks += len(prompts)
        tally.prompts += sum(prompt.count for prompt in prompts)
        return [columns[k] for k in range(len(images))]

    def _masks_of(
        self,
        images: Sequence[PreparedImage],
        members: Sequence[int],
        prompts: Sequence[ObjectPrompt],
        logits: Tensor,
        predicted_iou: Tensor,
        tally: Tally,
    ) -> Iterator[tuple[int, LabelMap, list[dict[str, Any]]]]:
        """Label map and segments of each image of one size; maps of a few objects are in memory at a time."""
        image_hw = images[members[0]].image_hw
        frame_hw = self.sam.frame.inner_hw(image_hw)
        place = {k: n for n, k in enumerate(members)}
        own = [n for n, prompt in enumerate(prompts) if prompt.image_index in place]
        of_object = max(image_hw[0] * image_hw[1], frame_hw[0] * frame_hw[1])
        segments: dict[int, list[dict[str, Any]]] = {k: [] for k in members}
        contest = LabelContest(len(members), image_hw, logits, self.num_classes)
        for part in slices_of(len(own), of_object, self.config.max_map_pixels):
            some = [prompts[n] for n in own[part]]
            with tally.phase("prompt", self.device):
                at = torch.tensor(own[part], device=logits.device)
                maps = self.sam.upscale(logits[at][:, None], frame_hw, image_hw)[:, 0]
                masks = maps > self.sam.mask_threshold
                scores = torch.stack([predicted_iou[at], stability_score(maps)], dim=1)
                contest.add(
                    predicted_iou[at, None, None].expand_as(maps).masked_fill(~masks, -torch.inf),
                    torch.tensor([place[prompt.image_index] for prompt in some]),
                    torch.tensor([prompt.class_index for prompt in some]),
                )
            with tally.phase("write"):
                rles = encode_rles(masks)
                found = zip(some, scores.tolist(), rles, rle_areas(rles, image_hw), strict=True)
                for prompt, pair, rle, area in found:
                    segments[prompt.image_index].append(_segment(prompt, pair, rle, area))
        for k, labels in zip(members, labels_to_array(contest.labels)):
            yield k, labels, segments[k]

    def _describe(
        self, image: PreparedImage, labels: LabelMap, segments: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """One image's columns of `LABEL_SCHEMA`; ignored pixels are added to its label map."""
        segments = sorted(segments, key=lambda segment: segment["object_index"])
        return describe(self._with_ignored(labels, image), segments)

    def _with_ignored(self, labels: LabelMap, image: PreparedImage) -> LabelMap:
        labels, objects, classes = labels.copy(), image.objects or (), image.image_labels
        placed = {each.class_index for each in objects}
        if not objects if classes is None else set(classes) - placed:
            labels[labels == 0] = self.format.ignore
        for each in objects:
            if each.iscrowd and each.box_xyxy is not None:
                left, top, right, bottom = each.box_xyxy
                box = labels[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
                box[box == 0] = self.format.ignore
        return labels


class MixedLabeller:
    """Labels images by their annotated objects where they have any, and by the peaks of CAMs elsewhere.

    Args:
        classifier, images: as for `stages.label.SamLabeller`.
    """

    rows_per_group = ROWS_PER_GROUP

    def __init__(
        self, config: LabelConfig, sam: SamConfig, classifier: Path, device: str = "cpu", images: int = 0
    ) -> None:
        self.by_cams = SamLabeller(config, sam, classifier, device, images)
        num_classes = len(self.by_cams.spec.class_names)
        self.by_objects = ObjectLabeller(config, sam, num_classes, device, encoder=self.by_cams.encoder)

    def __call__(self, images: Sequence[PreparedImage]) -> tuple[pa.Table, Tally]:
        """Label images: rows of `stages.label.LABEL_SCHEMA`, in order, and counts and times."""
        prompted = [bool(image.error is None and prompts_of(image.objects or (), 0)) for image in images]
        tables, order, total = [], [], Tally()
        for stage, wanted in ((self.by_objects, True), (self.by_cams, False)):
            chosen = [at for at, has in enumerate(prompted) if has is wanted]
            if chosen or (not images and not wanted):
                table, tally = stage([images[at] for at in chosen])
                tables.append(table)
                order += chosen
                total.add(tally)
        return pa.concat_tables(tables).take(pa.array(np.argsort(order))).combine_chunks(), total


def _segment(prompt: ObjectPrompt, scores: Sequence[float], rle: str, area: int) -> dict[str, Any]:
    """Fields of `stages.label.SEGMENT` of an object."""
    return {
        "class_index": prompt.class_index,
        "points_xy": [list(point) for point in prompt.points_xy],
        "sam_score": scores[0],
        "stability_score": scores[1],
        "cam_mean": None,
        "area": area,
        "rle": rle,
        "object_index": prompt.object_index,
        "point_labels": list(prompt.point_labels),
        "box_xyxy": prompt.box_xyxy,
    }
