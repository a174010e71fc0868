"""Pseudo labels from one classifier with points, boxes and masks as prompts, side by side."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray_wsss.cluster.connect import ray_session
from ray_wsss.cluster.stages.embed import run_embed
from ray_wsss.cluster.stages.label import run_label
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.resources import Cluster, Resources
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.figures.prompt_figure import TITLES, save_prompt_figure
from ray_wsss.stages.compare_prompts import (
    ExampleMaker,
    Pair,
    annotated_kinds,
    choose_examples,
    measure_pairs,
    summarise,
)
from ray_wsss.stages.evaluate import measure_labels
from ray_wsss.storage import make_folder, write_json

log = logging.getLogger(__name__)

METRICS = "metrics.json"
FIGURE = "figure.png"


def compare_prompts(
    recipe: Recipe,
    *,
    dataset: Path,
    classifier: Path,
    out: Path,
    resources: Resources,
    cluster: Cluster,
    embeddings: Path | None = None,
    images: Sequence[str] = (),
    examples: int = 2,
) -> dict[str, Any]:
    """Label ``dataset`` with each kind of prompt, measure the labels and draw examples.

    If the data set has annotated objects, their points and boxes are compared too.

    Running it again resumes it.

    Args:
        dataset: data set with ground truth.
        embeddings: output of `run_embed`. None: embeddings are made in ``out``, so that SAM's encoder runs
            only once.
        images: ids of the images to draw, each with all of its classes.
        examples: number of examples to draw of each case in `stages.compare_prompts.CASES`, if ``images`` is
            empty.

    Returns:
        ``miou``: mIoU of the pseudo labels by kind of prompt. ``cases``: for each case its number of pairs of
        image and class, and the mean IoU of SAM's masks. Both are also written to ``out/metrics.json``.

    Raises:
        UserError: as the stages; ``dataset`` has no ground truth, tiles are asked for, or an id of ``images``
            is unknown.
    """
    metadata = DatasetMetadata.load(dataset)
    if not metadata.has_masks:
        raise UserError(f"{dataset} has no ground-truth masks; expected a data set with them to compare on")
    if recipe.label.tile_px is not None:
        raise UserError(
            f"label.tile_px is {recipe.label.tile_px}; expected None: prompts are compared without tiles"
        )
    run: Any = {"resources": resources, "cluster": cluster}
    of_objects = annotated_kinds(dataset)
    labels = {kind: out / kind for kind in TITLES if kind in of_objects or not kind.startswith("annotated")}
    make_folder(out)
    with ray_session(cluster.address, verbose=cluster.verbose):
        if embeddings is None:
            embeddings = out / "embeddings"
            run_embed(recipe, dataset=dataset, out=embeddings, **run)
        for kind, folder in labels.items():
            log.info("%s:", TITLES[kind])
            inputs: Any = {"dataset": dataset, "embeddings": embeddings, "out": folder, **run}
            if kind in of_objects:
                asked = override(recipe, {"label.object_prompts": kind.removeprefix("annotated_")})
                run_label(asked, classifier=None, prompts_from="annotations", **inputs)
            else:
                run_label(override(recipe, {"label.prompts": kind}), classifier=classifier, **inputs)
    num_labels = 1 + len(metadata.class_names)
    miou = {kind: measure_labels(dataset, folder, num_labels).miou() for kind, folder in labels.items()}
    pairs = list(measure_pairs(dataset, labels, num_labels))
    metrics = {"miou": miou, "cases": summarise(pairs, list(labels))}
    write_json(metrics, out / METRICS)
    drawn = _named(pairs, images) if images else choose_examples(pairs, examples)
    if drawn:
        make = ExampleMaker(recipe.label, dataset=dataset, classifier=classifier, labels=labels)
        save_prompt_figure([make(pair) for pair in drawn], out / FIGURE)
    return metrics


def _named(pairs: Sequence[Pair], images: Sequence[str]) -> list[Pair]:
    known = {pair.image_id for pair in pairs}
    for image_id in images:
        if image_id not in known:
            raise UserError(
                f"--images {image_id} is not an image with ground truth and pseudo labels in the data set"
            )
    return [pair for image_id in images for pair in pairs if pair.image_id == image_id]
