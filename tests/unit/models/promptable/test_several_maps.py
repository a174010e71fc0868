"""The stages with a model of several feature maps, a small SAM 2.1 with random weights; without Ray."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import save_small
from torch.utils.data import default_collate

from ray_wsss.cluster.stages.embed import run_embed
from ray_wsss.cluster.stages.label import run_label
from ray_wsss.cluster.stages.segment_everything import run_segment_everything
from ray_wsss.config import AugmentConfig, Recipe
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.config.resources import Cluster, Resources
from ray_wsss.data.embeddings import StoredEmbedding, store_embeddings
from ray_wsss.data.folder import read_folder
from ray_wsss.data.images import decode_mask, decode_segments
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.scenes import make_scene
from ray_wsss.errors import UserError
from ray_wsss.models.promptable.encoder import SamEncoder, load_encoder
from ray_wsss.runs import chunk_run
from ray_wsss.runs.dependencies import settings_of
from ray_wsss.runs.read_chunks import plan_chunks
from ray_wsss.stages.embed import SamEmbedder, restore_embeddings
from ray_wsss.stages.ingest import IngestShard, begin_ingest, finish_ingest
from ray_wsss.stages.label_images import label_images
from ray_wsss.training.cpm import Cpm, masks_to_crop
from ray_wsss.training.crops import TrainingCrops
from ray_wsss.training.host_plan import unpack_geometry

HERE: dict[str, Any] = {"resources": Resources(actors=0), "cluster": Cluster()}
SETTINGS = {
    "sam.precision": "fp32",
    "label.scales": (1.0,),
    "label.tau": 0.3,
    "segments.points_per_side": 4,
    "segments.pred_iou_thresh": 0.3,
    "segments.stability_score_thresh": 0.3,
    "cpm.tau": 0.3,
    "cpm.min_distance_px": 4,
    "cpm.scales": (1.0,),
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    folder = save_small("sam2.1_tiny", tmp_path_factory.mktemp("sam2"))
    return override(PRESETS["demo"], SETTINGS | {"sam.name": "sam2.1_tiny", "sam.checkpoint": str(folder)})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """12 scenes of 60 x 90 pixels, in chunks of 5."""
    folder = tmp_path_factory.mktemp("scenes")
    for k in range(12):
        (folder / "images" / "abcdef"[k % 6]).mkdir(parents=True, exist_ok=True)
        scene = make_scene(300 + k, 60, 90)
        Image.fromarray(scene.image).save(folder / "images" / "abcdef"[k % 6] / f"{k}.png")
    source = read_folder(folder / "images")
    begin_ingest(folder / "dataset")
    shard = IngestShard(folder / "dataset")(source.rows, 0)
    finish_ingest(folder / "dataset", source, [shard])
    return folder / "dataset"


@pytest.fixture(scope="module")
def classifier(finish_classifier) -> Path:
    return finish_classifier(settings_of(PRESETS["demo"], "classifier"))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch) -> None:
    monkeypatch.setattr(chunk_run, "plan_chunks", partial(plan_chunks, rows=5))


@pytest.fixture(scope="module")
def embeddings(recipe, dataset, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("embedded") / "embeddings"
    assert run_embed(recipe, dataset=dataset, out=out, **HERE).total.images == 12
    return out


def rows(folder: Path, column: str) -> dict[str, Any]:
    reader = ShardReader(folder)
    return {row["image_id"]: row[column] for row in map(reader.read, range(len(reader)))}


def test_the_manifest_names_the_model_and_its_licence(embeddings):
    noted = json.loads((embeddings / "manifest.json").read_text())["depends_on"]
    assert (noted["sam.name"], noted["sam.licence"]) == ("sam2.1_tiny", "Apache-2.0")
    assert len(noted["sam.sha256"]) == 64


def test_the_cache_holds_all_maps(recipe, dataset, embeddings):
    sizes = {len(values) for values in rows(embeddings, "embedding").values()}
    assert sizes == {2 * (32 * 8 * 8 + 8 * 16 * 16 + 4 * 32 * 32)}
    assert set(map(tuple, rows(embeddings, "shape").values())) == {(32, 8, 8, 8, 16, 16, 4, 32, 32)}


def test_embedding_is_resumed_after_an_interruption(recipe, dataset, embeddings, tmp_path, monkeypatch):
    embed, calls = SamEmbedder.__call__, []

    def interrupted(stage: SamEmbedder, images: Any) -> Any:
        calls.append(len(images))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return embed(stage, images)

    monkeypatch.setattr(SamEmbedder, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_embed(recipe, dataset=dataset, out=tmp_path / "out", **HERE)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["state"] == "unfinished"
    run_embed(recipe, dataset=dataset, out=tmp_path / "out", **HERE)
    assert len(calls) == 4  # the first chunk is not embedded again
    assert rows(tmp_path / "out", "embedding") == rows(embeddings, "embedding")
    with pytest.raises(UserError, match=r"another sam\.name \(sam2\.1_tiny, now tiny\)|sam\.name"):
        run_embed(override(PRESETS["demo"], SETTINGS), dataset=dataset, out=tmp_path / "out", **HERE)


def test_labels_from_the_cache_are_the_live_ones(recipe, dataset, embeddings, classifier, tmp_path):
    inputs = {"dataset": dataset, "classifier": classifier}
    run_label(recipe, out=tmp_path / "live", **inputs, **HERE)
    run_label(recipe, out=tmp_path / "cached", embeddings=embeddings, **inputs, **HERE)
    live, cached = (rows(tmp_path / name, "pseudo_label") for name in ("live", "cached"))
    assert live.keys() == cached.keys()
    maps = [np.stack([decode_mask(found[key]) for key in live]) for found in (live, cached)]
    assert (maps[0] != maps[1]).mean() < 5e-3
    assert 0.05 < (maps[0] > 0).mean() < 0.999
    noted = json.loads((tmp_path / "live" / "manifest.json").read_text())["depends_on"]
    assert noted["label.mask_output"] == "best_iou"


def test_a_quick_look(recipe, classifier):
    """As `ray-wsss show` and notebooks label single images."""
    settings = SETTINGS | {"sam.name": recipe.sam.name, "sam.checkpoint": recipe.sam.checkpoint}
    image = make_scene(300, 60, 90).image
    (found,) = label_images(
        [image], classifier=classifier, classes=["a", "b"], preset="demo", settings=settings, device="cpu"
    )
    assert found.error is None
    assert found.class_names == ("a", "b")
    assert {each.mask.shape for each in found.found} == {(60, 90)}
    assert any(0 < each.mask.mean() < 1 for each in found.found)


def test_segment_maps_from_the_cache_are_the_live_ones(recipe, dataset, embeddings, tmp_path):
    maps = []
    for out, cache in ((tmp_path / "live", None), (tmp_path / "cached", embeddings)):
        run_segment_everything(recipe, dataset=dataset, out=out, embeddings=cache, **HERE)
        found = rows(out, "segment_map")
        maps.append(np.stack([decode_segments(found[key]) for key in sorted(found)]))
    assert (maps[0] > 0).mean() > 0.2
    assert (maps[0] != maps[1]).mean() < 2e-2


def test_embeddings_of_another_model_are_refused(recipe, dataset, embeddings, classifier, tmp_path):
    inputs = {"dataset": dataset, "classifier": classifier, "embeddings": embeddings}
    tiny = override(PRESETS["demo"], SETTINGS)
    with pytest.raises(UserError, match=r"embeddings of SAM sam2\.1_tiny; expected those of SAM tiny"):
        run_label(tiny, out=tmp_path / "out", **inputs, **HERE)
    other = save_small("sam2.1_tiny", tmp_path / "other", seed=1)
    changed = override(recipe, {"sam.checkpoint": str(other)})
    with pytest.raises(UserError, match=r"embeddings of SAM sam2\.1_tiny with other weights"):
        run_label(changed, out=tmp_path / "out", **inputs, **HERE)
    assert not (tmp_path / "out").exists()


def test_a_mask_that_the_model_does_not_have_is_refused(recipe):
    for setting in ("label.mask_output", "cpm.mask_output", "label.object_mask"):
        with pytest.raises(UserError, match=rf"{setting} is whole; expected auto or best_iou, since no mask"):
            override(recipe, {setting: "whole"})
        override(recipe, {setting: "best_iou"})
    with pytest.raises(UserError, match=r"sam\.compile is on; expected auto or off"):
        override(recipe, {"sam.compile": "on"})


@pytest.fixture(scope="module")
def encoder(recipe) -> SamEncoder:
    return load_encoder(recipe.sam, torch.device("cpu"))


RANDOM = AugmentConfig(long_side_px=(50, 90), crop_px=64, jitter_probability=0, grey_probability=0)


def test_masks_of_the_image_land_on_their_pixels(dataset, embeddings, encoder):
    """The mask of the squeezed image, resized and cropped like the image, is what the crop gets."""
    crops = TrainingCrops(
        dataset, list(range(12)), num_classes=6, augment=RANDOM, seed=3, embeddings=embeddings
    )
    sam, size_hw = encoder.sam, (60, 90)
    for k in range(6):
        item = crops[(k, k)]
        geometry = unpack_geometry(item["geometry"])
        generator = torch.Generator().manual_seed(k)
        logits = torch.randn(1, 4, 4, generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
        whole = sam.upscale(logits[:, None], sam.frame.inner_hw(size_hw), size_hw)[0]
        expected = geometry.apply(whole, fill=-1e4)
        found = masks_to_crop(sam, logits, geometry, sam.frame.inner_hw(size_hw))
        assert ((found > 0) != (expected > 0)).float().mean() < 0.03


@torch.no_grad()
@pytest.mark.parametrize("view", ["crop", "image"])
def test_cpm(recipe, dataset, embeddings, encoder, make_classifier, view):
    """Padded prompt sets, and batches cut otherwise, give the same labels; the classifier sees masks."""
    crops = TrainingCrops(
        dataset, list(range(12)), num_classes=6, augment=RANDOM, seed=3, embeddings=embeddings
    )
    batch = default_collate([crops[(k, k)] for k in range(4)])
    model = make_classifier(tuple("abcdef"))
    config = override(recipe, {"cpm.view": view}).cpm
    found = Cpm(encoder, config, decode_batch_size=3)(model, batch)
    again = Cpm(encoder, config, decode_batch_size=32)(model, batch)
    assert (found != again).float().mean() < 1e-3
    assert len(found.unique()) > 1


def test_int8_keeps_the_masks(recipe, dataset, encoder):
    """At an IoU of 0.99 in the mean, as masks of a point in each image."""
    images = [make_scene(900 + k, 60, 90).image for k in range(8)]
    exact = encoder(images)
    stored = [each for each in store_embeddings(exact.maps, "int8") if isinstance(each, StoredEmbedding)]
    values, scales = (np.stack([getattr(each, name) for each in stored]) for name in ("values", "scale"))
    assert values.dtype == np.int8
    restored = restore_embeddings(torch.tensor(values), torch.tensor(scales), encoder.sam.map_shapes)
    points = torch.tensor([[[40.0, 50.0]]]).repeat(8, 1, 1)
    masks = [encoder.sam.decode(some, points, torch.ones(8, 1))[0] > 0 for some in (exact, restored)]
    union = (masks[0] | masks[1]).sum((2, 3))
    iou = (masks[0] & masks[1]).sum((2, 3)) / union.clamp(min=1)
    assert iou[union > 20].mean() >= 0.99
    for ours, theirs in zip(restored.maps, exact.maps):
        step = theirs.abs().amax((2, 3), keepdim=True) / 127
        assert ((ours - theirs).abs() <= step / 2 * 1.001).all()
