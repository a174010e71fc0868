"""Labelling as the released S2C code does it: one image, one class, one decoder call at a time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ray_wsss.benchmark.naive_prompter import NaiveMask, NaivePrompter
from ray_wsss.config import LabelConfig, SamConfig
from ray_wsss.data.coco import encode_rle
from ray_wsss.data.images import decode_image, encode_mask
from ray_wsss.models.sam.build import build_sam
from ray_wsss.models.store import load_classifier
from ray_wsss.runs.classifier_side import with_classifier_side
from ray_wsss.runs.read_chunks import IMAGE_COLUMNS, Chunk, read_chunk
from ray_wsss.runs.tally import Tally
from ray_wsss.stages.cams import scale_for_classifier
from ray_wsss.stages.label import LABEL_SCHEMA


class NaiveLabeller:
    """Makes the labels of `stages.label.SamLabeller`, for images no longer than ``max_side_px``."""

    def __init__(self, config: LabelConfig, sam: SamConfig, classifier: Path, device: str) -> None:
        self.config, self.device = with_classifier_side(config, classifier), torch.device(device)
        self.model = load_classifier(classifier)[0].to(self.device).eval()
        self.prompter = NaivePrompter(build_sam(sam).to(self.device), config, guess=True)

    def __call__(self, chunk: Chunk) -> tuple[pa.Table, Tally]:
        """Label the images of a chunk; returns rows of `LABEL_SCHEMA` and a tally."""
        tally = Tally()
        rows = [self._label(row, tally) for row in read_chunk(chunk, IMAGE_COLUMNS).to_pylist()]
        with tally.phase("write"):
            return pa.Table.from_pylist(rows, schema=LABEL_SCHEMA), tally

    @torch.no_grad()
    def _label(self, row: dict[str, Any], tally: Tally) -> dict[str, Any]:
        with tally.phase("decode"):
            image = decode_image(row["image"], row["orientation"])
        tally.images += 1
        classes = row["image_labels"]
        if not classes:
            tally.unknown += classes is None
            label = np.full(image.shape[:2], 255 if classes is None else 0, np.uint8)
            return self._describe(row["image_id"], label, [], [])
        with tally.phase("cam", self.device):
            cams, ranking = self._cams(image, classes)
        with tally.phase("encode", self.device):
            self.prompter.set_image(image)
        with tally.phase("prompt", self.device):
            masks = [self.prompter.mask(cam, raw) for cam, raw in zip(cams, ranking)]
            label = self.prompter.compete(masks, classes, image.shape[:2])
        tally.masks += len(masks)
        tally.prompts += sum(len(mask.points_yx) for mask in masks)
        with tally.phase("write"):
            return self._describe(row["image_id"], label, masks, classes)

    def _cams(
        self, image: NDArray[np.uint8], classes: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The CAMs (C, H, W), and the maps (C, H, W) whose global maxima may become prompts."""
        hw = image.shape[:2]
        pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None].float().div_(255)
        cam = raw = torch.zeros(len(classes), *hw, device=self.device)
        for scale in self.config.scales:
            scale *= scale_for_classifier(hw, self.config)
            size = [max(32, round(side * scale)) for side in hw]
            view = F.interpolate(pixels, size, mode="bilinear", antialias=scale < 1) if scale != 1 else pixels
            for flip in (False, True) if self.config.flip else (False,):
                features = self.model(view.flip(-1) if flip else view).features
                maps = self.model.to_class_maps(features)[:, list(classes)]
                maps = maps.flip(-1) if flip else maps
                cam = cam + F.interpolate(maps.relu(), hw, mode="bilinear")[0]
                raw = raw + F.interpolate(maps, hw, mode="bilinear")[0]
        peak = cam.amax((1, 2), keepdim=True)
        cam = cam / (peak + 1e-5)
        return cam.cpu().numpy(), torch.where(peak > 0, cam, raw).cpu().numpy()

    def _describe(
        self, image_id: str, label: NDArray[np.uint8], masks: Sequence[NaiveMask], classes: Sequence[int]
    ) -> dict[str, Any]:
        segments = []
        for class_index, mask in zip(classes, masks):
            inside = mask.inside
            cam_mean = float(mask.cam[inside].mean()) if inside.any() else 0.0
            points_xy = (mask.points_yx[:, ::-1] + 0.5).tolist()
            columns = {"class_index": class_index, "points_xy": points_xy, "sam_score": mask.score}
            columns |= {"cam_mean": cam_mean, "area": int(inside.sum()), "rle": encode_rle(inside)["counts"]}
            segments.append(columns)
        height, width = label.shape
        pseudo_label = encode_mask(label)
        size = {"height": height, "width": width}
        return {"image_id": image_id, "pseudo_label": pseudo_label, "segments": segments, **size}
