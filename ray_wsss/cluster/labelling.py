"""Labelling, embedding and segmenting everything on Ray; what the command line and the jobs call."""

from pathlib import Path
from typing import Any, Unpack

from ray_wsss.cluster.chunks import RunOptions, RunReport, Stage, run_chunks
from ray_wsss.cluster.map import Resources
from ray_wsss.config import Recipe
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.models.sam.build import sam_side_px
from ray_wsss.stages.chunks import PrepareImages
from ray_wsss.stages.embed import SamEmbedder
from ray_wsss.stages.label import SamLabeller
from ray_wsss.stages.manifest import Output, file_hash
from ray_wsss.stages.provenance import (
    cache_settings,
    check_classes,
    dataset_settings,
    sam_settings,
    settings_of,
    settled,
)
from ray_wsss.stages.segment import SegmentEverything


def run_label(
    recipe: Recipe,
    *,
    dataset: Path,
    classifier: Path,
    out: Path,
    embeddings: Path | None = None,
    **run: Unpack[RunOptions],
) -> RunReport:
    """Make pseudo labels for all of ``dataset`` with a trained classifier and SAM.

    Args:
        embeddings: output of `run_embed`, read instead of running SAM's encoder.

    Raises:
        UserError: the classifier has other classes than the data set, the embeddings are of another SAM or
            lack images, or as `run_chunks`.
    """
    check_classes(dataset, classifier, "classifier")
    device = run["resources"].device
    recipe = settled(recipe, device)
    encoder = device if embeddings is None else None
    depends_on = settings_of(recipe, "label") | sam_settings(recipe, encoder) | dataset_settings(dataset)
    depends_on["classifier"] = file_hash(classifier / "model.safetensors")
    depends_on |= cache_settings(embeddings, recipe, dataset)
    stage = Stage(
        stage_class=SamLabeller,
        arguments={
            "config": recipe.label,
            "classifier": classifier.absolute(),
            **_sam_arguments(recipe, dataset, run["resources"]),
        },
        prepare=PrepareImages(
            max_side_px=recipe.label.max_side_px,
            sam_side_px=sam_side_px(recipe.sam),
            embeddings=embeddings,
            resize=device == "cpu",
        ),
    )
    return run_chunks(Output(out, "label", depends_on), stage, dataset=dataset, **run)


def run_embed(
    recipe: Recipe,
    *,
    dataset: Path,
    out: Path,
    **run: Unpack[RunOptions],
) -> RunReport:
    """Run SAM's image encoder once over ``dataset`` and keep what it gives.

    Raises:
        UserError: as `run_chunks`.
    """
    device = run["resources"].device
    recipe = settled(recipe, device)
    depends_on = settings_of(recipe, "embed") | sam_settings(recipe, device) | dataset_settings(dataset)
    stage = Stage(
        stage_class=SamEmbedder,
        arguments={"config": recipe.embed, **_sam_arguments(recipe, dataset, run["resources"])},
        prepare=PrepareImages(sam_side_px=sam_side_px(recipe.sam), resize=device == "cpu"),
    )
    return run_chunks(Output(out, "embed", depends_on), stage, dataset=dataset, **run)


def run_segment_everything(
    recipe: Recipe,
    *,
    dataset: Path,
    out: Path,
    embeddings: Path | None = None,
    **run: Unpack[RunOptions],
) -> RunReport:
    """Prompt SAM with a grid of points on every image of ``dataset``: one segment map per image.

    Raises:
        UserError: as `run_label`.
    """
    device = run["resources"].device
    recipe = settled(recipe, device)
    encoder = device if embeddings is None else None
    depends_on = settings_of(recipe, "segments") | sam_settings(recipe, encoder) | dataset_settings(dataset)
    depends_on |= cache_settings(embeddings, recipe, dataset)
    stage = Stage(
        stage_class=SegmentEverything,
        arguments={"config": recipe.segments, **_sam_arguments(recipe, dataset, run["resources"])},
        prepare=PrepareImages(
            sam_side_px=sam_side_px(recipe.sam),
            embeddings=embeddings,
            resize=device == "cpu",
        ),
    )
    return run_chunks(Output(out, "segment-everything", depends_on), stage, dataset=dataset, **run)


def _sam_arguments(recipe: Recipe, dataset: Path, resources: Resources) -> dict[str, Any]:
    """What every stage that hosts SAM is told of it; an actor has about ``images`` images."""
    images = DatasetMetadata.load(dataset).images // resources.actors
    return {"sam": recipe.sam, "device": resources.device, "images": images}
