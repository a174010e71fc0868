"""Compute the CAMs of images, for every stage and training step that needs them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ray_wsss.config import LabelConfig, PromptingConfig
from ray_wsss.label_format import MAX_BYTE_CLASSES
from ray_wsss.models.classifier import Classifier
from ray_wsss.models.modes import eval_mode
from ray_wsss.ops.cam import list_classes, merge_scales
from ray_wsss.ops.device import upload
from ray_wsss.ops.refine_maps.colours import refine_by_colour
from ray_wsss.ops.refine_maps.features import spread_by_features
from ray_wsss.ops.resize import resize_images, scale_images, slices_of, to_tensor


@dataclass(frozen=True, eq=False)
class PairCams:
    """CAMs of a batch of images of one size: one per (image, class) pair, for the classes an image has."""

    cam: Float[Tensor, "N H W"]
    """CAM of each pair, in [0, 1], at the size of the images."""
    image_index: Tensor
    """(N,) index of each pair's image in the batch, ascending; on the CPU, since shapes depend on it."""
    class_index: Tensor
    """(N,) index of each pair's class, from 0; on the CPU too."""
    class_maps: Sequence[Float[Tensor, "N 1 _h _w"]]
    """The class maps before ReLU that the CAM sums up: one per scale, and one per mirrored scale."""
    num_classes: int = MAX_BYTE_CLASSES
    """Number of the classifier's classes, which decides the form of labels (`label_format`)."""

    def part(self, pairs: slice) -> "PairCams":
        """Some of the pairs, as views; ``image_index`` still counts over the whole batch."""
        return replace(
            self,
            cam=self.cam[pairs],
            image_index=self.image_index[pairs],
            class_index=self.class_index[pairs],
            class_maps=[of_scale[pairs] for of_scale in self.class_maps],
        )


@torch.no_grad()
def find_cams(
    model: Classifier,
    images: Float[Tensor, "B 3 H W"],
    image_labels: Float[Tensor, "B C"],
    *,
    scales: Sequence[float],
    flip: bool,
    refine: PromptingConfig | None = None,
    max_pixels: int | None = None,
) -> PairCams:
    """Multi-scale CAMs of a batch of images. The model runs in eval mode; its modules' modes are restored.

    Args:
        images: RGB in [0, 1], all of one size.
        image_labels: 1 for each class that an image has, else 0. If on the CPU, the host doesn't wait for the
            GPU.
        scales: image scales whose activations are summed.
        flip: also add the mirrored image at every scale.
        refine: how each view's class maps are refined; None: not at all.
        max_pixels: most pixels of CAMs that are resized and summed at a time; None: all at once.
    """
    pairs, maps = class_maps_of(model, images, image_labels, scales=scales, flip=flip, refine=refine)
    cam = _merge(maps, (images.shape[-2], images.shape[-1]), max_pixels)
    return PairCams(cam, pairs[:, 0], pairs[:, 1], maps, model.num_classes)


@torch.no_grad()
def class_maps_of(
    model: Classifier,
    images: Float[Tensor, "B 3 H W"],
    image_labels: Float[Tensor, "B C"],
    *,
    scales: Sequence[float],
    flip: bool,
    refine: PromptingConfig | None = None,
) -> tuple[Tensor, list[Float[Tensor, "N 1 _h _w"]]]:
    """Pairs (N, 2) of image and class, on the CPU, and their class maps before ReLU, one for each view.

    The arguments are those of `find_cams`. Maps of mirrored views are mirrored back.
    """
    pairs, at, seen = _list_pairs(image_labels, images.device)
    maps: list[Tensor] = []

    def see(view: Tensor) -> Tensor:
        output = model(view, seen)
        found = output.class_maps
        return (_refine(found, output.cells, view, refine) if refine is not None else found)[*at, None]

    with eval_mode(model):
        for scale in scales:
            scaled = scale_images(images, scale, model.backbone.multiple)
            maps.append(see(scaled))
            if flip:
                maps.append(see(scaled.flip(-1)).flip(-1))
    return pairs, maps


@torch.no_grad()
def find_cams_of_cells(
    model: Classifier,
    cells: Float[Tensor, "B E h w"],
    image_labels: Float[Tensor, "B C"],
    size_hw: tuple[int, int],
    *,
    images: Float[Tensor, "B 3 H W"] | None = None,
    refine: PromptingConfig | None = None,
) -> PairCams:
    """CAMs of images whose feature maps were computed before, as `find_cams` makes them of one view.

    Args:
        cells: the backbone's feature maps.
        size_hw: height and width of the CAMs, in pixels.
        images: RGB in [0, 1]; only ``colour_steps`` need it.
        refine: how the class maps are refined; None: not at all.
    """
    pairs, at, seen = _list_pairs(image_labels, cells.device)
    with eval_mode(model):
        found = model(None, seen, cells=cells).class_maps
    if refine is not None:
        found = _refine(found, cells, images, refine)
    maps = [found[*at, None]]
    return PairCams(_merge(maps, size_hw, None), pairs[:, 0], pairs[:, 1], maps, model.num_classes)


def _list_pairs(image_labels: Tensor, device: torch.device) -> tuple[Tensor, Sequence[Tensor], Tensor]:
    """Pairs (N, 2) of image and class, on the CPU; where their maps are; classes (B, M) to make maps of."""
    classes, present = list_classes(image_labels.cpu())
    places = present.nonzero()
    pairs = torch.stack([places[:, 0], classes[present]], dim=1)
    return pairs, upload(places, device).unbind(1), upload(classes, device)


def _refine(maps: Tensor, cells: Tensor, images: Tensor | None, config: PromptingConfig) -> Tensor:
    """Class maps (B, M, h, w) of a view, refined; one without activation stays as it is.

    Args:
        images: the view's pixels, which ``colour_steps`` need.
    """
    if not (config.affinity_steps or config.colour_steps):
        return maps
    refined = spread_by_features(maps.relu(), cells, steps=config.affinity_steps, power=config.affinity_power)
    if config.colour_steps:
        assert images is not None, "colour_steps need pixels"
        quarter_hw = (max(1, images.shape[-2] // 4), max(1, images.shape[-1] // 4))
        maps, refined = resize_images(maps, quarter_hw), resize_images(refined, quarter_hw)
        colours = resize_images(images, quarter_hw)
        refined = refine_by_colour(refined, colours, steps=config.colour_steps)
    return torch.where(refined.amax((2, 3), keepdim=True) > 0, refined, maps)


def _merge(maps: Sequence[Tensor], size_hw: tuple[int, int], max_pixels: int | None) -> Tensor:
    """CAMs (N, H, W) of N pairs from their class maps (N, 1, h, w), a few pairs at a time."""
    count, pixels = len(maps[0]), size_hw[0] * size_hw[1]
    if max_pixels is None or count * pixels <= max_pixels:
        return merge_scales(maps, maps[0].new_ones(count, 1), size_hw)[:, 0]
    cam = maps[0].new_empty(count, *size_hw)
    for part in slices_of(count, pixels, max_pixels):
        cam[part] = _merge([of_scale[part] for of_scale in maps], size_hw, None)
    return cam


def cams_of(
    model: Classifier,
    images: Sequence[NDArray[np.uint8]],
    image_labels: Sequence[Sequence[int] | None],
    config: LabelConfig,
) -> PairCams:
    """Multi-scale CAMs of decoded images, on the model's device (`find_cams`), as labelling makes them.

    Args:
        images: (H, W, 3) RGB, all of one size, at most ``config.max_side_px``; the CAMs have the same size.
        image_labels: indices of the classes that each image has. Without any, or with None for unknown
            labels, an image has no CAM.
        config: scales, flip, pixels at a time, and the long side for the classifier: None is no limit here
            (`runs.classifier_side.with_classifier_side` finds the classifier's own).
    """
    present = torch.zeros(len(images), model.num_classes)
    for k, classes in enumerate(image_labels):
        present[k, list(classes or ())] = 1
    shrink = scale_for_classifier((images[0].shape[0], images[0].shape[1]), config)
    scales = [scale * shrink for scale in config.scales]
    on_device = to_tensor(images, model.device)
    return find_cams(
        model,
        on_device,
        present,
        scales=scales,
        flip=config.flip,
        refine=config,
        max_pixels=config.max_map_pixels,
    )


def scale_for_classifier(image_hw: tuple[int, int], config: LabelConfig) -> float:
    """Factor, at most 1, that brings an image's long side to ``config.classifier_side_px``."""
    return min(1.0, (config.classifier_side_px or math.inf) / max(image_hw))
