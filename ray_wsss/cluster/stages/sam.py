"""Set-up that the stages with SAM share: label, embed and segment-everything."""

from pathlib import Path
from typing import Any

from ray_wsss.cluster.run_chunks import RunOptions, Stage
from ray_wsss.cluster.settle_sam import settle_sam
from ray_wsss.config import Recipe
from ray_wsss.config.resources import Resources
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.models.promptable.build import input_frame
from ray_wsss.runs.prepared_images import PrepareImages


def settle_stage(
    recipe: Recipe, out: Path, stage: str, run: RunOptions, embeddings: Path | None = None
) -> Recipe:
    """`cluster.settle_sam` with the actors, cluster and overwrite of ``run``."""
    return settle_sam(
        recipe,
        out,
        stage,
        processes=run["resources"],
        cluster=run["cluster"],
        overwrite=run.get("overwrite"),
        encodes=embeddings is None,
        embeddings=embeddings,
    )


def sam_stage(
    stage_class: type,
    recipe: Recipe,
    *,
    dataset: Path,
    resources: Resources,
    embeddings: Path | None = None,
    max_side_px: int | None = None,
    tile_px: int | None = None,
    objects: bool = False,
    **arguments: Any,
) -> Stage:
    """A stage with SAM, and the preparation of its images.

    Args:
        stage_class: class that takes ``sam``, ``device``, ``images`` (about how many an actor gets) and
            ``arguments``.
        embeddings: output of `run_embed`, read instead of preparing SAM's input.
        max_side_px: longest side at which images are labelled; None if only SAM sees the images.
        tile_px: side of the tiles in which larger images are labelled; None: no tiles.
        objects: whether the annotated objects of the images prompt SAM.
    """
    images = DatasetMetadata.load(dataset).images // max(1, resources.actors)
    return Stage(
        stage_class=stage_class,
        arguments={"sam": recipe.sam, "device": resources.device, "images": images, **arguments},
        prepare=PrepareImages(
            max_side_px=max_side_px,
            tile_px=tile_px,
            frame=input_frame(recipe.sam),
            embeddings=embeddings,
            objects=objects,
            resize=resources.device == "cpu",  # with a GPU, the actor resizes
        ),
    )
