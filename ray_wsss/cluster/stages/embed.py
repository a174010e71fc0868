"""SAM's embeddings of a data set, made on Ray."""

from pathlib import Path
from typing import Unpack

from ray_wsss.cluster.run_chunks import RunOptions, run_chunks
from ray_wsss.cluster.stages.sam import sam_stage, settle_stage
from ray_wsss.config import Recipe
from ray_wsss.runs.dependencies import dataset_settings, sam_settings, settings_of
from ray_wsss.runs.manifest import Output
from ray_wsss.runs.run_report import RunReport
from ray_wsss.stages.embed import SamEmbedder


def run_embed(
    recipe: Recipe,
    *,
    dataset: Path,
    out: Path,
    **run: Unpack[RunOptions],
) -> RunReport:
    """Run SAM's image encoder over ``dataset`` and store the embeddings in ``out``.

    Raises:
        UserError: as `run_chunks`.
    """
    resources = run["resources"]
    recipe = settle_stage(recipe, out, "embed", run)
    depends_on = settings_of(recipe, "embed") | sam_settings(recipe, resources.device)
    depends_on |= dataset_settings(dataset)
    stage = sam_stage(SamEmbedder, recipe, dataset=dataset, resources=resources, config=recipe.embed)
    return run_chunks(Output(out, "embed", depends_on), stage, dataset=dataset, **run)
