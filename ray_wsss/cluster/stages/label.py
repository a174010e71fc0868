"""Pseudo labels for a data set, on Ray."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from ray_wsss.cluster.run_chunks import RunOptions, run_chunks
from ray_wsss.cluster.stages.sam import sam_stage, settle_stage
from ray_wsss.config import Recipe
from ray_wsss.config.sam import PromptsFrom
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.label_format import label_format
from ray_wsss.runs.classifier_side import warn_of_large_views, with_classifier_side
from ray_wsss.runs.curation.masks import hand_masks_settings, open_hand_masks
from ray_wsss.runs.dependencies import (
    cache_settings,
    check_classes,
    dataset_settings,
    object_settings,
    sam_settings,
    settings_of,
)
from ray_wsss.runs.manifest import Output, file_hash
from ray_wsss.runs.run_report import RunReport
from ray_wsss.runs.small_views import warn_of_small_views
from ray_wsss.stages.curation.keep import KeepMasks
from ray_wsss.stages.label import SamLabeller
from ray_wsss.stages.objects.label import MixedLabeller, ObjectLabeller

log = logging.getLogger(__name__)


def run_label(
    recipe: Recipe,
    *,
    dataset: Path,
    classifier: Path | None,
    out: Path,
    embeddings: Path | None = None,
    keep: Path | None = None,
    prompts_from: PromptsFrom = "cams",
    **run: Unpack[RunOptions],
) -> RunReport:
    """Make pseudo labels for every image of ``dataset`` with SAM.

    Images whose labels are unknown get label maps of ignored pixels, and a warning tells how many there are.
    Another tells how many images the classifier sees at less than half their size.

    Args:
        classifier: output of train-classifier; None with ``prompts_from="annotations"``.
        embeddings: output of `run_embed`, read instead of running SAM's encoder.
        keep: data set with masks, which become the labels of their images; SAM labels the others.

    Raises:
        UserError: the classifier is missing or has other classes than the data set, the data set has no
            objects to prompt with, the embeddings come from another SAM or lack images or are given although
            there are tiles, or as `open_hand_masks` and `run_chunks`.
    """
    _check(recipe, dataset, classifier, embeddings, prompts_from)
    if classifier is not None:
        check_classes(dataset, classifier, "classifier")
    device = run["resources"].device
    recipe = settle_stage(recipe, out, "label", run, embeddings)
    depends_on: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    if classifier is not None:
        recipe = replace(recipe, label=with_classifier_side(recipe.label, classifier))
        warn_of_large_views(recipe.label, classifier)
        warn_of_small_views(recipe.label, dataset)
        depends_on = settings_of(recipe, "label")
        depends_on["classifier"] = file_hash(classifier / "model.safetensors")
        arguments["classifier"] = classifier.absolute()
    else:
        arguments["num_classes"] = len(DatasetMetadata.load(dataset).class_names)
    if prompts_from != "cams":
        depends_on |= {"prompts_from": prompts_from, **object_settings(recipe)}
    depends_on |= sam_settings(recipe, device if embeddings is None else None) | dataset_settings(dataset)
    depends_on |= {"slice": str(part)} if (part := run.get("part")) is not None else {}
    depends_on |= cache_settings(embeddings, recipe, dataset) | hand_masks_settings("keep", keep)
    if keep is not None:
        masks = open_hand_masks("--keep", keep, dataset)
        arguments |= {"labeller": _STAGES[prompts_from], "masks": masks}
    stage = sam_stage(
        _STAGES[prompts_from] if keep is None else KeepMasks,
        recipe,
        dataset=dataset,
        resources=run["resources"],
        embeddings=embeddings,
        # Objects are labelled at the size of their image; only a classifier sees it smaller.
        max_side_px=None if classifier is None else recipe.label.max_side_px,
        tile_px=recipe.label.tile_px,
        objects=prompts_from != "cams",
        config=recipe.label,
        **arguments,
    )
    report = run_chunks(Output(out, "label", depends_on), stage, dataset=dataset, **run)
    if report.total.unknown:
        ignore = label_format(len(DatasetMetadata.load(dataset).class_names)).ignore
        told = "the labels of %s of %s images are unknown: their label maps are %s (ignore) everywhere"
        log.warning(told, f"{report.total.unknown:,}", f"{report.total.images:,}", ignore)
    return report


_STAGES: dict[PromptsFrom, type] = {
    "cams": SamLabeller,
    "annotations": ObjectLabeller,
    "both": MixedLabeller,
}


def _check(
    recipe: Recipe,
    dataset: Path,
    classifier: Path | None,
    embeddings: Path | None,
    prompts_from: PromptsFrom,
) -> None:
    """Raise UserError for inputs that don't go together."""
    tile_px = recipe.label.tile_px
    if embeddings is not None and tile_px is not None:
        raise UserError(
            f"--embeddings {embeddings} holds embeddings of whole images; "
            "expected none with label.tile_px, since SAM encodes the tiles"
        )
    if classifier is None and prompts_from != "annotations":
        raise UserError(
            f"--classifier is missing, whose CAMs prompt SAM with --prompts-from {prompts_from}; "
            "expected the output of train-classifier, or --prompts-from annotations"
        )
    if prompts_from == "cams":
        return
    if classifier is not None and prompts_from == "annotations":
        raise UserError(
            f"--classifier {classifier} would not be used with --prompts-from annotations; expected none, or "
            "--prompts-from both"
        )
    if tile_px is not None:
        raise UserError(
            f"label.tile_px is {tile_px}; expected None with --prompts-from {prompts_from}, since boxes and "
            "points prompt SAM on whole images"
        )
    if not DatasetMetadata.load(dataset).objects:
        raise UserError(
            f"{dataset} has no boxes or points that could prompt SAM; expected a data set that this version "
            "of ray-wsss ingested from annotations with some"
        )
