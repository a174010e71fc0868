"""Pseudo labels for a data set, on Ray."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from ray_wsss.cluster.run_chunks import RunOptions, run_chunks
from ray_wsss.cluster.stages.sam import sam_stage, settle_stage
from ray_wsss.config import Recipe
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.label_format import label_format
from ray_wsss.runs.classifier_side import warn_of_large_views, with_classifier_side
from ray_wsss.runs.curation.masks import hand_masks_settings, open_hand_masks
from ray_wsss.runs.dependencies import (
    cache_settings,
    check_classes,
    dataset_settings,
    sam_settings,
    settings_of,
)
from ray_wsss.runs.manifest import Output, file_hash
from ray_wsss.runs.run_report import RunReport
from ray_wsss.runs.small_views import warn_of_small_views
from ray_wsss.stages.curation.keep import KeepMasks
from ray_wsss.stages.label import SamLabeller

log = logging.getLogger(__name__)


def run_label(
    recipe: Recipe,
    *,
    dataset: Path,
    classifier: Path,
    out: Path,
    embeddings: Path | None = None,
    keep: Path | None = None,
    **run: Unpack[RunOptions],
) -> RunReport:
    """Make pseudo labels for every image of ``dataset`` with a trained classifier and SAM.

    Images whose labels are unknown get label maps of ignored pixels, and a warning tells how many there are.
    Another tells how many images the classifier sees at less than half their size.

    Args:
        embeddings: output of `run_embed`, read instead of running SAM's encoder.
        keep: data set with masks, which become the labels of their images; SAM labels the others.

    Raises:
        UserError: the classifier has other classes than the data set, the embeddings come from another SAM or
            lack images or are given although there are tiles, or as `open_hand_masks` and `run_chunks`.
    """
    if embeddings is not None and recipe.label.tile_px is not None:
        raise UserError(
            f"--embeddings {embeddings} holds embeddings of whole images; "
            "expected none with label.tile_px, since SAM encodes the tiles"
        )
    check_classes(dataset, classifier, "classifier")
    device = run["resources"].device
    recipe = settle_stage(recipe, out, "label", run, encodes=embeddings is None)
    recipe = replace(recipe, label=with_classifier_side(recipe.label, classifier))
    warn_of_large_views(recipe.label, classifier)
    warn_of_small_views(recipe.label, dataset)
    encoder = device if embeddings is None else None
    depends_on = settings_of(recipe, "label") | sam_settings(recipe, encoder) | dataset_settings(dataset)
    depends_on["classifier"] = file_hash(classifier / "model.safetensors")
    depends_on |= cache_settings(embeddings, recipe, dataset) | hand_masks_settings("keep", keep)
    kept: dict[str, Any] = {}
    if keep is not None:
        kept = {"labeller": SamLabeller, "masks": open_hand_masks("--keep", keep, dataset)}
    stage = sam_stage(
        KeepMasks if kept else SamLabeller,
        recipe,
        dataset=dataset,
        resources=run["resources"],
        embeddings=embeddings,
        max_side_px=recipe.label.max_side_px,
        tile_px=recipe.label.tile_px,
        config=recipe.label,
        classifier=classifier.absolute(),
        **kept,
    )
    report = run_chunks(Output(out, "label", depends_on), stage, dataset=dataset, **run)
    if report.total.unknown:
        ignore = label_format(len(DatasetMetadata.load(dataset).class_names)).ignore
        told = "the labels of %s of %s images are unknown: their label maps are %s (ignore) everywhere"
        log.warning(told, f"{report.total.unknown:,}", f"{report.total.images:,}", ignore)
    return report
