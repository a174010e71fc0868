"""Segment maps of a data set, made on Ray."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from ray_wsss.cluster.run_chunks import RunOptions, run_chunks
from ray_wsss.cluster.stages.sam import sam_stage, settle_stage
from ray_wsss.config import Recipe
from ray_wsss.runs.dependencies import cache_settings, dataset_settings, sam_settings, settings_of
from ray_wsss.runs.manifest import Output
from ray_wsss.runs.run_report import RunReport
from ray_wsss.stages.segment_everything import SegmentEverything

log = logging.getLogger(__name__)


def run_segment_everything(
    recipe: Recipe,
    *,
    dataset: Path,
    out: Path,
    embeddings: Path | None = None,
    **run: Unpack[RunOptions],
) -> RunReport:
    """Prompt SAM with a grid of points on every image of ``dataset``: one segment map per image.

    Args:
        embeddings: output of `run_embed`, read instead of running SAM's encoder.

    Raises:
        UserError: the embeddings come from another SAM or lack images, or as `run_chunks`.
    """
    resources = run["resources"]
    recipe = settle_stage(recipe, out, "segment-everything", run, embeddings)
    segments = recipe.segments.suiting(recipe.sam.card)
    if segments != recipe.segments:
        log.info(
            "masks are kept above a predicted IoU of %g and from a stability of %g, which suits %s",
            *(*segments.thresholds, recipe.sam.name),
        )
        recipe = replace(recipe, segments=segments)
    encoder = resources.device if embeddings is None else None
    depends_on = settings_of(recipe, "segments") | sam_settings(recipe, encoder) | dataset_settings(dataset)
    depends_on |= cache_settings(embeddings, recipe, dataset)
    stage = sam_stage(
        SegmentEverything,
        recipe,
        dataset=dataset,
        resources=resources,
        embeddings=embeddings,
        config=recipe.segments,
    )
    return run_chunks(Output(out, "segment-everything", depends_on), stage, dataset=dataset, **run)
