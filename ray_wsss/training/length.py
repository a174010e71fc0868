"""How long a training is: its epochs as iterations."""

from fractions import Fraction
from math import ceil
from typing import Any, Literal

from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override


def iterations_of(epochs: float, images: int, batch_size: int) -> int:
    """Iterations of ``batch_size`` images that make ``epochs`` epochs of ``images`` images, rounded up."""
    # As the decimal number that was written: 0.07 * 100 is above 7 in floating point, and would become 8.
    return ceil(Fraction(str(epochs)) * images / batch_size)


def resolve_epochs(recipe: Recipe, network: Literal["classifier", "segmenter"], images: int) -> Recipe:
    """``recipe`` with the iterations that its epochs stand for; without epochs the iterations stay.

    ``max_iters`` follows from ``epochs`` of the network's section, and is ``min_iters`` or more. For the
    classifier, ``cpm.warmup_iters`` also follows from ``cpm.warmup_epochs``, and keeps its share of a
    training that ``min_iters`` stretches. Resolving again changes nothing, as long as the epochs, the batch
    size and the number of images are the same.

    Args:
        images: number of images that the network is trained on.
    """
    config = recipe.classifier if network == "classifier" else recipe.segmenter
    changes: dict[str, Any] = {}
    stretch = Fraction(1)
    if config.epochs is not None:
        iterations = iterations_of(config.epochs, images, config.batch_size)
        stretch = max(stretch, Fraction(config.min_iters, max(1, iterations)))
        changes[f"{network}.max_iters"] = max(iterations, config.min_iters)
    if network == "classifier" and recipe.cpm.warmup_epochs is not None:
        warm_up = iterations_of(recipe.cpm.warmup_epochs, images, config.batch_size)
        changes["cpm.warmup_iters"] = round(stretch * warm_up)
    return override(recipe, changes)


def describe_length(name: str, iterations: int, batch_size: int, images: int) -> str:
    """``classifier: 52,880 iterations of 8 images, 40.0 epochs of 10,582 images``."""
    epochs = iterations * batch_size / images
    length = f"{iterations:,} iterations of {batch_size:,} images"
    return f"{name}: {length}, {epochs:,.1f} epochs of {images:,} images"
