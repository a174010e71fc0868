"""From images to their CAMs: every stage that looks at a CAM makes it here."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ray_wsss.models.classifier import Classifier
from ray_wsss.ops.cam import merge_scales
from ray_wsss.ops.device import upload
from ray_wsss.ops.resize import scale_images, to_tensor


@dataclass(frozen=True, eq=False)
class PairCams:
    """CAMs of the (image, class) pairs that are present in images of one size."""

    cam: Float[Tensor, "N H W"]
    """In [0, 1]."""
    image_index: Tensor
    """(N,) which image of the batch, ascending; on the CPU, as the number of pairs decides shapes."""
    class_index: Tensor
    """(N,) which class, from 0; likewise."""
    class_maps: Sequence[Float[Tensor, "N 1 _h _w"]]
    """The class maps, before ReLU, that the CAM is the sum of."""


@torch.no_grad()
def find_cams(
    model: Classifier,
    images: Float[Tensor, "B 3 H W"],
    image_labels: Float[Tensor, "B C"],
    *,
    scales: Sequence[float],
    flip: bool,
) -> PairCams:
    """Multi-scale CAMs in eval mode; the model's mode is restored.

    Args:
        images: RGB in [0, 1], of one size.
        image_labels: which classes an image has. Where these are on the CPU, the host waits for no GPU.
        scales: image scales whose activations are summed.
        flip: add the mirrored image at every scale.
    """
    was_training = model.training
    model.eval()
    pairs = image_labels.cpu().nonzero()
    at = upload(pairs, images.device).unbind(1)
    size_hw = (images.shape[-2], images.shape[-1])
    maps = []
    for scale in scales:
        scaled = scale_images(images, scale)
        maps.append(model(scaled).class_maps.float()[*at, None])
        if flip:
            maps.append(model(scaled.flip(-1)).class_maps.float()[*at, None].flip(-1))
    model.train(was_training)
    cam = merge_scales(maps, images.new_ones(len(pairs), 1), size_hw)[:, 0]
    return PairCams(cam, pairs[:, 0], pairs[:, 1], maps)


def cams_of(
    model: Classifier,
    images: Sequence[NDArray[np.uint8]],
    image_labels: Sequence[Sequence[int]],
    *,
    scales: Sequence[float],
    flip: bool,
) -> PairCams:
    """`find_cams` of decoded images, on the model's device.

    Args:
        images: (H, W, 3) RGB, of one size.
        image_labels: class indices of each image.
        scales, flip: as for `find_cams`.
    """
    present = torch.zeros(len(images), model.num_classes)
    for k, classes in enumerate(image_labels):
        present[k, list(classes)] = 1
    return find_cams(model, to_tensor(images, model.device), present, scales=scales, flip=flip)
