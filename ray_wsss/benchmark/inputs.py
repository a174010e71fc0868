"""Inputs of the benchmarks: generated scenes, a briefly trained classifier, SAM and its embeddings."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from segment_anything import sam_model_registry

from ray_wsss.config import Recipe, SamConfig, SamName
from ray_wsss.config.overrides import override
from ray_wsss.data.coco import read_coco
from ray_wsss.data.scene_coco import write_scene_coco
from ray_wsss.models.promptable.build import input_frame
from ray_wsss.runs.chunk_run import ChunkRun
from ray_wsss.runs.dependencies import dataset_settings, sam_settings, settings_of
from ray_wsss.runs.manifest import Output
from ray_wsss.runs.prepared_images import PrepareImages
from ray_wsss.stages.embed import SamEmbedder
from ray_wsss.stages.ingest import ORDER_SEED, IngestShard, begin_ingest, finish_ingest, plan_shards
from ray_wsss.training.checkpoints import export_model
from ray_wsss.training.classifier import train_classifier
from ray_wsss.training.local_session import LocalSession

_FIRST_SEED = 20_000_000


def make_dataset(out: Path, images: int) -> Path:
    """A data set of generated scenes: 96 x 96 px JPEG, 1 to 3 objects of 6 classes. An existing one stays."""
    if not (out / "metadata.json").exists():
        seeds = range(_FIRST_SEED, _FIRST_SEED + images)
        source = read_coco(*write_scene_coco(out.with_name("scenes"), "scenes", seeds))
        begin_ingest(out)
        ingest = IngestShard(out, len(source.class_names))
        summaries = [ingest(shard, k) for k, shard in enumerate(plan_shards(source.rows))]
        finish_ingest(out, source, summaries, order_seed=ORDER_SEED)
    return out


def make_classifier(recipe: Recipe, dataset: Path, out: Path, iterations: int = 200) -> Path:
    """A classifier trained briefly, without CPM, so that its CAMs have peaks where objects are."""
    recipe = override(recipe, {"cpm.enabled": False, "classifier.max_iters": iterations})
    output = Output(out, "train-classifier", {"benchmark": iterations})
    if output.begin() != "finished":
        session = LocalSession(out)
        train_classifier(recipe, dataset, session)
        checkpoint = session.latest_checkpoint()
        assert checkpoint is not None
        export_model(checkpoint, out)
        output.finish()
    return out


def make_random_sam(name: SamName, out: Path) -> SamConfig:
    """SAM with random weights, which run as fast as trained ones."""
    if not out.exists():
        torch.manual_seed(0)
        out.parent.mkdir(parents=True, exist_ok=True)
        sam = sam_model_registry[name]()
        for key, parameter in sam.image_encoder.named_parameters():
            if "rel_pos" in key or "pos_embed" in key:  # zeros by default, which hide errors
                torch.nn.init.normal_(parameter, std=0.02)
        save_file(sam.state_dict(), out)
    return SamConfig(name=name, checkpoint=str(out))


def make_embeddings(recipe: Recipe, dataset: Path, out: Path, device: str) -> Path:
    """SAM's embeddings of a data set, in a subfolder of ``out`` of its own for each set of settings."""
    depends_on = settings_of(recipe, "embed") | sam_settings(recipe) | dataset_settings(dataset)
    output = Output(out, "embed", depends_on)
    run = ChunkRun.start(replace(output, out=out / output.fingerprint[:12]), dataset)
    if run.missing:
        prepare = PrepareImages(frame=input_frame(recipe.sam))
        embed = SamEmbedder(recipe.embed, recipe.sam, device)
        for chunk in run.missing:
            run.parts.write(chunk, *embed(prepare(chunk)), embed.rows_per_group)
        run.finish()
    return run.output.out
