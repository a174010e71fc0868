"""Everything a run's result depends on, for its manifest: settings, SAM, networks and data set."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from ray_wsss.config import EncoderPrecision, Recipe
from ray_wsss.config.overrides import flatten
from ray_wsss.data.embeddings import open_embeddings
from ray_wsss.data.image_files.near_duplicates import find_near_duplicates
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.models.promptable.build import weights_sha256
from ray_wsss.models.promptable.precision import precision_on
from ray_wsss.models.store import read_class_names
from ray_wsss.runs.manifest import dataset_hash, file_hash, read_manifest, require_finished
from ray_wsss.storage import parse_path

log = logging.getLogger(__name__)

# Settings that change a result by rounding at most; a resumed run may have other values of them.
_INCIDENTAL = (
    *("loader_workers", "log_every", "checkpoint_every", "keep_checkpoints", "compile"),
    *("validate_every", "validate_images"),
    "min_iters",  # max_iters, which follows from it, decides
    *("batch_size", "cam_batch_size", "encode_batch_size", "decode_batch_size", "max_pixels_per_pass"),
)
_BEFORE = [
    *[("head_lr_factor", 1.0), ("correction_weight", 1.0), ("layer_decay", 1.0), ("layers", [-1])],
    *[("text_head", None), ("class_words", None)],
    *[("architecture", "deeplabv3"), ("weigh_by", "none"), ("ignore_rim_px", 0)],
    *[("affinity_steps", 0), ("affinity_power", 4.0), ("colour_steps", 0), ("reuse_pass", False)],
    ("mask_threshold", 0.0),
]

_OF_A_SLICE = ("slice", "dataset", "embeddings.dataset", "keep")
"""Settings in which the labels of a data set's parts may differ."""
_OF_OBJECTS = ("label.object_prompts", "label.object_mask")
"""Settings of annotated objects, which decide nothing where CAMs prompt SAM."""


def settings_of(recipe: Recipe, *sections: str) -> dict[str, Any]:
    """Settings of the given sections that decide a result, by dotted key.

    The weights of a backbone decide by their content, not by their path (`runs.manifest.KNOWN_BY_CONTENT`).

    Raises:
        UserError: a backbone's file of weights can't be read.
    """
    kept = {k: v for k, v in flatten(recipe).items() if k.split(".")[0] in sections}
    training = ("classifier.batch_size", "segmenter.batch_size")
    # Outputs made before these settings existed used these values (and no tiles), and lack the keys.
    kept = {k: v for k, v in kept.items() if (k.split(".")[-1], v) not in _BEFORE}
    kept = {k: v for k, v in kept.items() if k not in _OF_OBJECTS}
    untiled = tuple(f"{c.section}.tile_" for c in (recipe.label, recipe.predict) if c.tile_px is None)
    kept = {k: v for k, v in kept.items() if not k.startswith(untiled)}
    kept = {k: v for k, v in kept.items() if k in training or k.split(".")[-1] not in _INCIDENTAL}
    for config in (recipe.cpm, recipe.label):
        if (key := f"{config.section}.mask_output") in kept:
            kept[key] = recipe.mask_output(config)
    return kept | _backbone_hashes(recipe, kept)


def object_settings(recipe: Recipe) -> dict[str, Any]:
    """Settings that decide labels of annotated objects, by dotted key."""
    return {key: value for key, value in flatten(recipe).items() if key in _OF_OBJECTS}


def _backbone_hashes(recipe: Recipe, kept: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the backbones' ImageNet weights that are read from a file, by the key of their setting."""
    training = (recipe.classifier, recipe.segmenter)
    files = {f"{c.section}.backbone_checkpoint": c.backbone_checkpoint for c in training if c.pretrained}
    files["classifier.class_words"] = recipe.classifier.class_words
    return {
        f"{key}.sha256": file_hash(parse_path(path))
        for key, path in files.items()
        if path is not None and key in kept
    }


def sam_settings(recipe: Recipe, device: str | None = None) -> dict[str, str]:
    """SAM's name, the SHA-256 and licence of its weights, and its encoder's precision unless that is fp32.

    Args:
        device: type of torch device that the encoder runs on; None if the encoder does not run.
    """
    settings = {"sam.name": recipe.sam.name, "sam.sha256": weights_sha256(recipe.sam)}
    settings["sam.licence"] = recipe.sam.card.licence
    precision = precision_on(recipe.sam, device) if device is not None else "fp32"
    # Outputs made before this setting existed used fp32 and lack the key.
    return settings if precision == "fp32" else settings | {"sam.precision": precision}


def dataset_settings(dataset: Path) -> dict[str, str]:
    """Absolute path and SHA-256 of a data set. Raises UserError if ``dataset`` isn't one."""
    DatasetMetadata.load(dataset)
    return {"dataset": str(dataset.absolute()), "dataset.sha256": dataset_hash(dataset)}


def cache_settings(embeddings: Path | None, recipe: Recipe, dataset: Path) -> dict[str, str]:
    """Settings of the embeddings that a result is made from; empty without embeddings.

    Raises:
        UserError: the embeddings are unfinished, come from another SAM, or lack images of ``dataset``.
    """
    if embeddings is None:
        return {}
    settings = embeddings_settings(embeddings, recipe)
    open_embeddings(embeddings).require(ShardReader(dataset).image_ids, dataset)
    return settings


def segments_settings(segments: Path, dataset: Path) -> dict[str, str]:
    """SHA-256 of the manifest of the segment maps that a result is made from.

    Raises:
        UserError: the segment maps are unfinished, or lack images of ``dataset``.
    """
    require_finished(segments, "segment-everything")
    ShardReader(segments).require(ShardReader(dataset).image_ids, dataset, "segment-everything")
    return {"segments": file_hash(segments / "manifest.json")}


def label_settings(labels: Sequence[Path], dataset: Path) -> dict[str, str | list[str]]:
    """SHA-256 of the manifest of the labels that a result is made from; of several folders a sorted list.

    Several folders, such as those of `label --slice`, are read as one, in any order.

    Raises:
        UserError: labels are unfinished, an image is in two of the folders, or one of several folders has
            none of the images of ``dataset``.
    """
    made = [require_finished(folder, "label") for folder in labels]
    if len(labels) > 1:
        _check_apart(labels, set(ShardReader(dataset).image_ids), dataset)
    for folder, settings in zip(labels[1:], made[1:]):
        _warn_of_other_labels(labels[0], made[0], folder, settings)
    hashes = sorted(file_hash(folder / "manifest.json") for folder in labels)
    return {"labels": hashes[0] if len(hashes) == 1 else hashes}


def _check_apart(labels: Sequence[Path], wanted: set[str], dataset: Path) -> None:
    """Raise UserError if an image is in two folders, or one has none of the images ``wanted``."""
    folder_of: dict[str, Path] = {}
    for folder in labels:
        ours = ShardReader(folder).image_ids
        twice = [image_id for image_id in ours if image_id in folder_of]
        if twice:
            raise UserError(
                f"{folder_of[twice[0]]} and {folder} both have labels of {len(twice):,} images, the first is "
                f"{twice[0]}; expected each image in one folder"
            )
        if wanted.isdisjoint(ours):
            raise UserError(
                f"{folder} has labels for none of the images of {dataset}; expected labels of that data set"
            )
        folder_of |= dict.fromkeys(ours, folder)


def _warn_of_other_labels(
    folder: Path, settings: Mapping[str, Any], other: Path, theirs: Mapping[str, Any]
) -> None:
    """Warn if the labels of two folders were made with different settings or networks."""
    names = sorted(name for name in {*settings, *theirs} if not name.startswith(_OF_A_SLICE))
    for name in names:
        if settings.get(name) != theirs.get(name):
            log.warning(
                "%s and %s were labelled with another %s: %s and %s",
                *(folder, other, name, settings.get(name, "not set"), theirs.get(name, "not set")),
            )
            return


def embeddings_settings(embeddings: Path, recipe: Recipe) -> dict[str, str]:
    """Stored type, data set and encoder precision of embeddings.

    Raises:
        UserError: the embeddings are unfinished, or come from another SAM than the recipe's.
    """
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
    """Everything that training a classifier on ``device`` depends on, by dotted key.

    Raises:
        UserError: an input is missing or unfinished, or doesn't fit the others.
    """
    settings = dataset_settings(dataset) | settings_of(recipe, "classifier", "cpm")
    if recipe.cpm.reads_embeddings and embeddings is None:
        raise UserError("cpm.view is image, which needs --embeddings: the output of 'ray-wsss embed'")
    if recipe.cpm.enabled:
        settings |= sam_settings(recipe, device if recipe.cpm.encodes else None)
    if segments is not None:
        settings |= segments_settings(segments, dataset)
    if recipe.cpm.reads_embeddings:
        settings |= cache_settings(embeddings, recipe, dataset)
    return settings


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """``recipe`` with absolute paths, since workers have another working directory."""

    def absolute(path: str | None) -> str | None:
        return str(parse_path(path).absolute()) if path is not None else None

    sam, classifier, segmenter = recipe.sam, recipe.classifier, recipe.segmenter
    return replace(
        recipe,
        sam=replace(sam, checkpoint=absolute(sam.checkpoint)),
        classifier=replace(
            classifier,
            backbone_checkpoint=absolute(classifier.backbone_checkpoint),
            class_words=absolute(classifier.class_words),
            text_head=_absolute_folder(classifier.text_head),
        ),
        segmenter=replace(segmenter, backbone_checkpoint=absolute(segmenter.backbone_checkpoint)),
    )


def _absolute_folder(name: str | None) -> str | None:
    """A folder's absolute path; other names stay."""
    return str(Path(name).absolute()) if name is not None and Path(name).is_dir() else name


def settled(recipe: Recipe, precision: EncoderPrecision) -> Recipe:
    """``recipe`` with absolute paths and with this precision of SAM's encoder instead of "auto"."""
    recipe = with_absolute_paths(recipe)
    return replace(recipe, sam=replace(recipe.sam, precision=precision))


def noted_sam(out: Path, stage: str) -> dict[str, Any]:
    """SAM's settings in an output that was begun, as `sam_settings` notes them; empty without any.

    Raises:
        UserError: the manifest in ``out`` can't be read.
    """
    found = read_manifest(out)
    if found is None or found["stage"] != stage:
        return {}
    return {key: value for key, value in found["depends_on"].items() if key.startswith("sam.")}


def check_validation(validation: Path | None, dataset: Path) -> None:
    """Raise UserError if ``validation`` has no ground-truth masks, or other classes than ``dataset``."""
    if validation is None:
        return
    theirs, ours = DatasetMetadata.load(validation), DatasetMetadata.load(dataset)
    if not theirs.has_masks:
        raise UserError(f"--validation {validation} has no ground-truth masks; expected a data set with them")
    if theirs.class_names != ours.class_names:
        raise UserError(
            f"--validation {validation} has other classes than {dataset}, or another order; expected the "
            f"same in the same order, which 'ray-wsss ingest ... --classes FILE' fixes for both"
        )


def warn_of_near_duplicates(validation: Path | None, dataset: Path) -> None:
    """Warn if images of ``validation`` look like images that are trained on; once per process."""
    if validation is not None and validation.absolute() != dataset.absolute():
        _warn_of_near_duplicates(validation.absolute(), dataset.absolute())


@cache
def _warn_of_near_duplicates(validation: Path, dataset: Path) -> None:
    found = find_near_duplicates(validation, dataset)
    if found.count:
        pairs = "; ".join(f"{ours} and {theirs}" for ours, theirs in found.examples)
        log.warning(
            "%s images of %s look like images of %s, which is trained on, so scores will be too high: %s",
            *(f"{found.count:,}", validation, dataset, pairs),
        )


def warn_of_seen_images(dataset: Path, model: Path, kind: str) -> None:
    """Warn if images of ``dataset`` look like images that ``model`` was trained on, if those can be found.

    Args:
        kind: "classifier" or "segmenter".
    """
    trained_on = require_finished(model, f"train-{kind}").get("dataset")
    if trained_on is not None and (parse_path(trained_on) / "metadata.json").is_file():
        warn_of_near_duplicates(dataset, parse_path(trained_on))


def check_classes(dataset: Path, model: Path, kind: str) -> None:
    """Raise UserError unless ``model`` is a finished training on the classes of ``dataset``.

    Args:
        kind: "classifier" or "segmenter".
    """
    require_finished(model, f"train-{kind}")
    ours, theirs = DatasetMetadata.load(dataset).class_names, read_class_names(model, kind)
    if ours == theirs:
        return
    common = len(set(ours) & set(theirs))
    raise UserError(
        f"{dataset} has {len(ours)} classes ({', '.join(ours[:3])}, ...), the {kind} {model} has "
        f"{len(theirs)} ({', '.join(theirs[:3])}, ...), {common or 'none'} in common; "
        "expected the same in the same order, which 'ray-wsss ingest ... --classes FILE' fixes"
    )
