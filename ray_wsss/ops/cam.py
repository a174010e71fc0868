"""Class activation maps (CAMs): turn a classifier's raw class maps into maps in [0, 1] at image size.

S2C's classifier ends in a 1x1 convolution and a spatial mean, so its class maps are the CAM already: these
functions need neither gradients nor weights.
"""

from collections.abc import Sequence

from jaxtyping import Bool, Float, Int
from torch import Tensor

from ray_wsss.ops.resize import resize_maps

EPSILON = 1e-5
"""Added to a map's maximum before dividing: a class without activation gives 0, not NaN (released code)."""


def list_classes(
    image_labels: Float[Tensor, "B C"],
) -> tuple[Int[Tensor, "B M"], Bool[Tensor, "B M"]]:
    """List the classes of each image, so that maps are made of these alone.

    Args:
        image_labels: 1 for a class that is present, else 0. On a GPU, the host waits for it.

    Returns:
        classes: the M lowest class indices of each image, its own before others; M is the largest number of
            classes that an image has, at least 1.
        present: which of them are the image's own.
    """
    has = image_labels > 0
    most = max([1, *has.sum(1).tolist()])
    classes = has.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    return classes, has.gather(1, classes)


def normalise_cam(
    activation: Float[Tensor, "B C H W"], image_labels: Float[Tensor, "B C"]
) -> Float[Tensor, "B C H W"]:
    """Divide each map by its own maximum, and set the maps of absent classes to 0.

    The gradient also flows through the maximum, as in the released code.

    Args:
        activation: non-negative class maps.
        image_labels: 1 for a class that is present, else 0.

    Returns:
        CAM in [0, 1): the maximum of a present class is max / (max + EPSILON).
    """
    peak = activation.amax(dim=(-2, -1), keepdim=True)
    return activation / (peak + EPSILON) * image_labels[:, :, None, None]


def make_cam(
    class_maps: Float[Tensor, "B C h w"], image_labels: Float[Tensor, "B C"], size_hw: tuple[int, int]
) -> Float[Tensor, "B C H W"]:
    """Make the single-scale, differentiable CAM that the CPM loss supervises.

    The maps are normalised first and resized afterwards (released code), so a resized maximum may be a
    little below 1.

    Args:
        class_maps: raw output of the last 1x1 convolution, any sign.
        image_labels: 1 for a class that is present, else 0.
        size_hw: height and width of the result, in pixels.

    Returns:
        CAM in [0, 1), zero for absent classes.
    """
    return resize_maps(normalise_cam(class_maps.relu(), image_labels), size_hw)


def merge_scales(
    class_maps: Sequence[Float[Tensor, "B C _h _w"]],
    image_labels: Float[Tensor, "B C"],
    size_hw: tuple[int, int],
) -> Float[Tensor, "B C H W"]:
    """Merge the class maps of one batch seen at several scales into one CAM, for prompts and inference.

    The maps are resized, summed and normalised last, so a scale with weak activations contributes little.
    The caller must mirror back the maps of mirrored images.

    Args:
        class_maps: one raw class map per view; their sizes may differ.
        image_labels: 1 for a class that is present, else 0.
        size_hw: height and width of the result, in pixels.

    Returns:
        CAM in [0, 1), zero for absent classes.

    Raises:
        ValueError: `class_maps` is empty.
    """
    if not class_maps:
        raise ValueError("class_maps is empty; expected the class maps of at least one scale")
    merged = resize_maps(class_maps[0].relu(), size_hw)
    for maps in class_maps[1:]:
        merged = merged + resize_maps(maps.relu(), size_hw)
    return normalise_cam(merged, image_labels)
