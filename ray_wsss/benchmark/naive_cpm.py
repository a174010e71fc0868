"""CPM as the released S2C code does it: SAM's predictor on every crop, one class at a time."""

from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from segment_anything.modeling import Sam
from torch import Tensor

from ray_wsss.benchmark.naive_prompter import NaivePrompter
from ray_wsss.config import CpmConfig
from ray_wsss.models.classifier import Classifier
from ray_wsss.stages.cams import find_cams, find_cams_of_cells


class NaiveCpm:
    """Makes the pseudo labels of `training.cpm.Cpm` with ``view=crop``.

    As in the released code, the CAMs are made for the whole batch, and the masks one class at a time.
    """

    def __init__(self, sam: Sam, config: CpmConfig) -> None:
        self.config = config
        self.prompter = NaivePrompter(sam, config, guess=False)

    @torch.no_grad()
    def __call__(
        self, model: Classifier, batch: dict[str, Any], cells: Tensor | None = None
    ) -> UInt8[Tensor, "B P P"]:
        """Make the pseudo labels (B, P, P) of a batch of `training.crops.TrainingCrops`.

        Args:
            cells: feature maps of the training pass, which ``cpm.reuse_pass`` makes the CAMs of.
        """
        images = batch["image"]
        if cells is not None and self.config.reuses_pass:
            size_hw = (images.shape[-2], images.shape[-1])
            cams = find_cams_of_cells(model, cells, batch["image_labels"], size_hw)
        else:
            cams = find_cams(model, images, batch["image_labels"], scales=self.config.scales, flip=False)
        maps = cams.cam.cpu().numpy()
        image_of, classes = cams.image_index.tolist(), cams.class_index.tolist()
        crops = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        labels = []
        for b, crop in enumerate(crops):
            self.prompter.set_image(crop)
            pairs = [n for n, image in enumerate(image_of) if image == b]
            masks = [self.prompter.mask(maps[n], maps[n]) for n in pairs]
            labels.append(self.prompter.compete(masks, [classes[n] for n in pairs], crop.shape[:2]))
        return torch.from_numpy(np.stack(labels)).to(images.device)
