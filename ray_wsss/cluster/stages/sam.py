"""What the stages that host SAM have in common: label, embed and segment-everything."""

from pathlib import Path
from typing import Any

from ray_wsss.cluster.run_chunks import Stage
from ray_wsss.config import Recipe
from ray_wsss.config.resources import Resources
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.models.sam.build import sam_side_px
from ray_wsss.runs.prepared_images import PrepareImages


def sam_stage(
    stage_class: type,
    recipe: Recipe,
    *,
    dataset: Path,
    resources: Resources,
    embeddings: Path | None = None,
    max_side_px: int | None = None,
    **arguments: Any,
) -> Stage:
    """A stage that hosts SAM, and how its images are prepared.

    Args:
        stage_class: takes ``sam``, ``device``, ``images`` (how many an actor gets, about) and ``arguments``.
        embeddings: output of embed, read instead of making SAM's input.
        max_side_px: longest side of what the classifier sees; None where only SAM sees the images.
    """
    images = DatasetMetadata.load(dataset).images // resources.actors
    return Stage(
        stage_class=stage_class,
        arguments={"sam": recipe.sam, "device": resources.device, "images": images, **arguments},
        prepare=PrepareImages(
            max_side_px=max_side_px,
            sam_side_px=sam_side_px(recipe.sam),
            embeddings=embeddings,
            resize=resources.device == "cpu",  # a GPU resizes for itself
        ),
    )
