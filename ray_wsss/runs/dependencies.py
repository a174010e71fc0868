"""What a run's result depends on: its settings, SAM, networks and data set."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ray_wsss.config import Recipe
from ray_wsss.config.overrides import flatten
from ray_wsss.data.embeddings import open_embeddings
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.models.sam.build import resolve_checkpoint
from ray_wsss.models.sam.encoder import precision_on
from ray_wsss.models.store import read_class_names
from ray_wsss.runs.manifest import dataset_hash, file_hash, require_finished
from ray_wsss.storage import parse_path

# What does not change a result beyond rounding: it may differ when a run is resumed.
_INCIDENTAL = (
    *("loader_workers", "log_every", "checkpoint_every", "keep_checkpoints", "compile"),
    *("validate_every", "validate_images"),
    *("batch_size", "cam_batch_size", "encode_batch_size", "decode_batch_size"),
)


def settings_of(recipe: Recipe, *sections: str) -> dict[str, Any]:
    """The settings of some sections by dotted key, as far as they decide a result."""
    kept = {k: v for k, v in flatten(recipe).items() if k.split(".")[0] in sections}
    training = ("classifier.batch_size", "segmenter.batch_size")
    return {k: v for k, v in kept.items() if k in training or k.split(".")[-1] not in _INCIDENTAL}


def sam_settings(recipe: Recipe, device: str | None = None) -> dict[str, str]:
    """SAM's name, the hash of its weights, and the precision of its encoder on a device.

    Args:
        device: None where the encoder does not run.
    """
    settings = {"sam.name": recipe.sam.name, "sam.sha256": file_hash(resolve_checkpoint(recipe.sam))}
    precision = precision_on(recipe.sam, device) if device is not None else "fp32"
    # Outputs that are older than this setting were made in fp32, and don't have it.
    return settings if precision == "fp32" else settings | {"sam.precision": precision}


def dataset_settings(dataset: Path) -> dict[str, str]:
    """A data set's path and hash. Raises UserError where it isn't one."""
    DatasetMetadata.load(dataset)
    return {"dataset": str(dataset.absolute()), "dataset.sha256": dataset_hash(dataset)}


def cache_settings(embeddings: Path | None, recipe: Recipe, dataset: Path) -> dict[str, str]:
    """What a result depends on through the embeddings it is made from; nothing without them.

    Raises:
        UserError: they are another SAM's, unfinished, or lack images of ``dataset``.
    """
    if embeddings is None:
        return {}
    settings = embeddings_settings(embeddings, recipe)
    open_embeddings(embeddings).require(ShardReader(dataset).image_ids, dataset)
    return settings


def segments_settings(segments: Path, dataset: Path) -> dict[str, str]:
    """What a result depends on through segment maps.

    Raises:
        UserError: they are unfinished, or lack images of ``dataset``.
    """
    require_finished(segments, "segment-everything")
    ShardReader(segments).require(ShardReader(dataset).image_ids, dataset, "segment-everything")
    return {"segments": file_hash(segments / "manifest.json")}


def embeddings_settings(embeddings: Path, recipe: Recipe) -> dict[str, str]:
    """How embeddings are stored. Raises UserError unless they are finished and of the recipe's SAM."""
    theirs, ours = require_finished(embeddings, "embed"), sam_settings(recipe)
    if theirs["sam.name"] != ours["sam.name"]:
        raise UserError(
            f"{embeddings} holds embeddings of SAM {theirs['sam.name']}; "
            f"expected those of SAM {ours['sam.name']} (sam.name)"
        )
    if theirs["sam.sha256"] != ours["sam.sha256"]:
        raise UserError(
            f"{embeddings} holds embeddings of SAM {theirs['sam.name']} with other weights "
            f"(SHA-256 {theirs['sam.sha256'][:12]}, sam.checkpoint has {ours['sam.sha256'][:12]})"
        )
    settings = {
        "embeddings.dtype": theirs["embed.dtype"],
        "embeddings.dataset.sha256": theirs["dataset.sha256"],
    }
    precision = theirs.get("sam.precision")
    return settings if precision is None else settings | {"embeddings.precision": precision}


def classifier_settings(
    recipe: Recipe, dataset: Path, segments: Path | None, embeddings: Path | None, device: str
) -> dict[str, Any]:
    """What a classifier's training on a device depends on.

    Raises:
        UserError: inputs that don't fit together.
    """
    settings = dataset_settings(dataset) | settings_of(recipe, "classifier", "cpm")
    if recipe.cpm.enabled:
        settings |= sam_settings(recipe, device if recipe.cpm.view == "crop" else None)
    if segments is not None:
        settings |= segments_settings(segments, dataset)
    if recipe.cpm.enabled and recipe.cpm.view == "image":
        if embeddings is None:
            raise UserError("cpm.view is image, which needs --embeddings: the output of 'ray-wsss embed'")
        settings |= cache_settings(embeddings, recipe, dataset)
    return settings


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """Workers have a working directory of their own."""

    def absolute(path: str | None) -> str | None:
        return str(parse_path(path).absolute()) if path is not None else None

    sam, classifier, segmenter = recipe.sam, recipe.classifier, recipe.segmenter
    return replace(
        recipe,
        sam=replace(sam, checkpoint=absolute(sam.checkpoint)),
        classifier=replace(classifier, backbone_checkpoint=absolute(classifier.backbone_checkpoint)),
        segmenter=replace(segmenter, backbone_checkpoint=absolute(segmenter.backbone_checkpoint)),
    )


def settled(recipe: Recipe, device: str) -> Recipe:
    """What a recipe means on every machine: absolute paths, and SAM's precision on a type of device."""
    recipe = with_absolute_paths(recipe)
    return replace(recipe, sam=replace(recipe.sam, precision=precision_on(recipe.sam, device)))


def check_validation(validation: Path | None, dataset: Path) -> None:
    """Raise UserError where ``validation`` has no ground truth, or other classes than ``dataset``."""
    if validation is None:
        return
    theirs, ours = DatasetMetadata.load(validation), DatasetMetadata.load(dataset)
    if not theirs.has_masks:
        raise UserError(f"--validation {validation} has no ground-truth masks; expected a data set with them")
    if theirs.class_names != ours.class_names:
        raise UserError(
            f"--validation {validation} has other classes than {dataset}; expected the same in the same order"
        )


def check_classes(dataset: Path, model: Path, kind: str) -> None:
    """Raise UserError where a trained network and a data set have different classes."""
    require_finished(model, f"train-{kind}")
    ours, theirs = DatasetMetadata.load(dataset).class_names, read_class_names(model, kind)
    if ours == theirs:
        return
    common = len(set(ours) & set(theirs))
    raise UserError(
        f"{dataset} has {len(ours)} classes ({', '.join(ours[:3])}, ...), the {kind} {model} {len(theirs)} "
        f"({', '.join(theirs[:3])}, ...), {common or 'none'} in common; expected the same in the same order"
    )
