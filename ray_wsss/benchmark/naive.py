"""Labelling as the released S2C code does it: one image, one class, one decoder call at a time.

segment_anything's own predictor and scikit-image, no batching: what the engine is measured against, and an
independent account of what a label is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from skimage.feature import peak_local_max
from torch.nn import functional as F

from ray_wsss.config import LabelConfig, SamConfig
from ray_wsss.data.coco import encode_rle
from ray_wsss.data.images import decode_image, encode_mask
from ray_wsss.models.sam.build import build_sam
from ray_wsss.models.store import load_classifier
from ray_wsss.stages.chunks import IMAGE_COLUMNS, Chunk, read_chunk
from ray_wsss.stages.label import LABEL_SCHEMA
from ray_wsss.stages.tally import Tally


@dataclass
class _Mask:
    logits: NDArray[np.float32]  # (H, W)
    score: float
    cam: NDArray[np.float32]
    points_yx: NDArray[np.int64]


class NaiveLabeller:
    """The labels of `stages.label.SamLabeller`, for images no longer than ``max_side_px``."""

    def __init__(self, config: LabelConfig, sam: SamConfig, classifier: Path, device: str) -> None:
        self.config, self.device = config, torch.device(device)
        self.model = load_classifier(classifier)[0].to(self.device).eval()
        self.predictor = SamPredictor(build_sam(sam).to(self.device))

    def __call__(self, chunk: Chunk) -> tuple[pa.Table, Tally]:
        """The rows of a chunk to rows of `LABEL_SCHEMA`, and what it took."""
        tally = Tally()
        rows = [self._label(row, tally) for row in read_chunk(chunk, IMAGE_COLUMNS).to_pylist()]
        with tally.phase("write"):
            return pa.Table.from_pylist(rows, schema=LABEL_SCHEMA), tally

    @torch.no_grad()
    def _label(self, row: dict[str, Any], tally: Tally) -> dict[str, Any]:
        with tally.phase("decode"):
            image = decode_image(row["image"], row["orientation"])
        classes = row["image_labels"]
        with tally.phase("cam", self.device):
            cams, ranking = self._cams(image, classes)
        with tally.phase("encode", self.device):
            self.predictor.set_image(image)
        with tally.phase("prompt", self.device):
            masks = [self._mask(cam, raw) for cam, raw in zip(cams, ranking)]
            label = self._compete(masks, classes, image.shape[:2])
        tally.images += 1
        tally.masks += len(masks)
        tally.prompts += sum(len(mask.points_yx) for mask in masks)
        with tally.phase("write"):
            return self._describe(row["image_id"], label, masks, classes)

    def _cams(
        self, image: NDArray[np.uint8], classes: Sequence[int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """CAMs (C, H, W), and what their global maxima are taken of."""
        hw = image.shape[:2]
        pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None].float().div_(255)
        cam = raw = torch.zeros(len(classes), *hw, device=self.device)
        for scale in self.config.scales:
            size = [max(32, round(side * scale)) for side in hw]
            view = F.interpolate(pixels, size, mode="bilinear", antialias=scale < 1) if scale != 1 else pixels
            for flip in (False, True) if self.config.flip else (False,):
                maps = self.model(view.flip(-1) if flip else view).class_maps[:, list(classes)]
                maps = maps.flip(-1) if flip else maps
                cam = cam + F.interpolate(maps.relu(), hw, mode="bilinear")[0]
                raw = raw + F.interpolate(maps, hw, mode="bilinear")[0]
        peak = cam.amax((1, 2), keepdim=True)
        cam = cam / (peak + 1e-5)
        return cam.cpu().numpy(), torch.where(peak > 0, cam, raw).cpu().numpy()

    def _mask(self, cam: NDArray[np.float32], ranking: NDArray[np.float32]) -> _Mask:
        distance = self.config.min_distance_px
        border: Any = distance  # declared as a flag, a width as well
        points_yx = peak_local_max(
            cam, min_distance=distance, threshold_abs=self.config.tau, exclude_border=border
        )
        highest = np.array([np.unravel_index(ranking.argmax(), ranking.shape)])
        keep = self.config.keep_global_max
        if keep == "always" or (keep == "if_empty" and not len(points_yx)):
            points_yx = np.unique(np.concatenate([points_yx, highest]), axis=0)
        points_yx = points_yx[np.lexsort(points_yx.T[::-1])]
        size: Any = cam.shape
        points = self.predictor.transform.apply_coords(points_yx[:, ::-1], size)
        points_xy = torch.tensor(points, dtype=torch.float32, device=self.device)
        ones = torch.ones(1, len(points_xy), device=self.device)
        logits, iou, _ = self.predictor.predict_torch(points_xy[None], ones, return_logits=True)
        which = 2 if self.config.mask_output == "whole" else int(iou[0].argmax())
        return _Mask(logits[0, which].cpu().numpy(), float(iou[0, which]), cam, points_yx)

    def _compete(
        self, masks: Sequence[_Mask], classes: Sequence[int], image_hw: tuple[int, ...]
    ) -> NDArray[np.uint8]:
        label, best = np.zeros(image_hw, np.uint8), np.full(image_hw, -np.inf, np.float32)
        for class_index, mask in zip(classes, masks):
            inside = mask.logits > 0
            if not inside.any():
                continue
            score = np.where(inside, self._confidence(mask) * mask.cam[inside].mean(), -np.inf)
            label[score > best] = class_index + 1
            best = np.maximum(best, score)
        return label

    def _confidence(self, mask: _Mask) -> Any:
        if self.config.confidence == "logit":
            return mask.logits
        if self.config.confidence == "iou":
            return mask.score
        return (mask.logits > 1).sum() / max((mask.logits > -1).sum(), 1)

    def _describe(
        self, image_id: str, label: NDArray[np.uint8], masks: Sequence[_Mask], classes: Sequence[int]
    ) -> dict[str, Any]:
        segments = []
        for class_index, mask in zip(classes, masks):
            inside = mask.logits > 0
            cam_mean = float(mask.cam[inside].mean()) if inside.any() else 0.0
            points_xy = (mask.points_yx[:, ::-1] + 0.5).tolist()
            columns = {"class_index": class_index, "points_xy": points_xy, "sam_score": mask.score}
            columns |= {"cam_mean": cam_mean, "area": int(inside.sum()), "rle": encode_rle(inside)["counts"]}
            segments.append(columns)
        height, width = label.shape
        pseudo_label = encode_mask(label)
        size = {"height": height, "width": width}
        return {"image_id": image_id, "pseudo_label": pseudo_label, "segments": segments, **size}
