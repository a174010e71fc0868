"""CPM both ways: SAM on the crop, and SAM on the whole image seen through the crop's geometry."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import default_collate

from ray_wsss.config import AugmentConfig, CpmConfig
from ray_wsss.data.images import decode_image, decode_segments
from ray_wsss.data.reader import ShardReader
from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.models.promptable.interface import Embeddings
from ray_wsss.ops.geometry import Geometry
from ray_wsss.ops.pseudo_label import confidence_map, mask_scores
from ray_wsss.stages.cams import find_cams
from ray_wsss.stages.point_prompts import compete, decode_sets, find_prompts
from ray_wsss.training.cpm import Cpm, crop_to_frame, masks_to_crop
from ray_wsss.training.crops import TrainingCrops
from ray_wsss.training.host_plan import collate, make_plan, pack_geometry, unpack_geometry
from ray_wsss.training.loop import split_batch

CONFIG = CpmConfig(tau=0.3, min_distance_px=4, scales=(1.0,))
# Every crop of the scenes, which are 64 x 64, is the whole image as it is.
PLAIN = AugmentConfig(long_side_px=(64, 64), crop_px=64, flip=False, jitter_probability=0, grey_probability=0)
RANDOM = AugmentConfig(long_side_px=(50, 90), crop_px=64, jitter_probability=0, grey_probability=0)


@pytest.fixture(scope="module")
def made(make_views) -> dict[str, Path]:
    return make_views("fp16")


def make_batch(dataset: Path, made: dict[str, Any], augment: AugmentConfig, start: int = 0) -> dict:
    crops = TrainingCrops(dataset, list(range(14)), num_classes=6, augment=augment, seed=3, **made)
    return default_collate([crops[(start + k, k)] for k in range(8)])


def test_segment_maps_go_through_the_crops_geometry(scene_dataset, made):
    batch = make_batch(scene_dataset, made, RANDOM)
    reader = ShardReader(made["segments"])
    for image_id, packed, segments in zip(batch["image_id"], batch["geometry"], batch["segments"]):
        whole = decode_segments(reader.read(reader.index_of(image_id))["segment_map"])
        geometry = unpack_geometry(packed)
        resized = F.interpolate(
            torch.from_numpy(whole)[None, None].double(), geometry.scaled_hw, mode="nearest-exact"
        )
        assert torch.equal(segments, geometry.place(resized[0].int(), fill=0)[0])
    assert len(batch["segments"].unique()) > 2


def test_both_views_agree_on_a_crop_that_is_the_image(scene_dataset, made, make_classifier, tiny_sam):
    batch = make_batch(scene_dataset, made, PLAIN)
    model = make_classifier(tuple("abcdef"))
    crop, image = (
        Cpm(SamEncoder(tiny_sam), replace(CONFIG, view=view))(model, batch) for view in ("crop", "image")
    )
    assert len(crop.unique()) > 3
    # SAM's input was resized on the device in one case, by Pillow in the other.
    assert (crop != image).float().mean() < 0.01


@pytest.mark.parametrize("steps", [{}, {"colour_steps": 2, "affinity_steps": 2}], ids=["plain", "refined"])
def test_the_training_pass_serves_for_the_prompts(scene_dataset, made, make_classifier, tiny_sam, steps):
    """Without batch statistics the CAM is the same; with them it is that of the batch."""
    batch = make_batch(scene_dataset, made, RANDOM)
    model, config = make_classifier(tuple("abcdef")), replace(CONFIG, view="image", **steps)
    own_pass = Cpm(tiny_sam, config)
    reusing = Cpm(tiny_sam, replace(config, reuse_pass=True))
    cells = model.eval()(batch["image"]).cells
    expected = own_pass(model, batch)
    assert len(expected.unique()) > 3
    assert torch.equal(reusing(model, batch, cells), expected)
    assert torch.equal(own_pass(model, batch, torch.zeros_like(cells)), expected)  # which it does not look at
    several = replace(config, scales=(0.5, 1.0))
    assert torch.equal(
        Cpm(tiny_sam, replace(several, reuse_pass=True))(model, batch, cells),
        Cpm(tiny_sam, several)(model, batch),
    )
    by_batch = model.train()(batch["image"]).cells
    assert not torch.equal(reusing(model, batch, by_batch), expected)


def test_without_scaling_or_flip_the_two_geometries_are_one(tiny_sam):
    frame_hw = tiny_sam.frame.inner_hw((50, 64))
    whole = Geometry(scaled_hw=(50, 64), top=0, left=0, crop_px=64, flip=False)
    points = torch.tensor([[[0, 0], [49, 63], [20, 31], [50, 10], [63, 63]]])  # the last two are padding
    given = torch.tensor([[True, False, True, True, False]])
    points_xy, valid = crop_to_frame(points, given, whole, frame_hw)
    assert valid.tolist() == [[True, False, True, False, False]]
    expected = SamPredictor(tiny_sam).transform.apply_coords(points[0, :3].flip(1).numpy(), (50, 64))
    assert_close(points_xy[0, :3], torch.tensor(expected).float())
    logits = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = tiny_sam.postprocess_masks(logits[:, None], frame_hw, (50, 64))[:, 0]
    on_crop = masks_to_crop(tiny_sam, logits, whole, frame_hw)
    assert torch.equal(on_crop[:, :50], expected)
    assert (on_crop[:, 50:] < -1000).all()


@pytest.mark.parametrize("start", range(0, 40, 8))
def test_a_prompted_pixel_is_the_same_pixel_in_the_image(scene_dataset, made, tiny_sam, start):
    """A pixel of the crop and where it is prompted show the same colour, whatever crop, scale and flip."""
    batch = make_batch(scene_dataset, made, RANDOM, start)
    reader = ShardReader(scene_dataset)
    seen = 0
    for k, packed in enumerate(batch["geometry"]):
        geometry = unpack_geometry(packed)
        assert torch.equal(pack_geometry(geometry), packed)
        pixels = decode_image(reader.read(reader.index_of(batch["image_id"][k]))["image"])
        smooth = F.avg_pool2d(
            torch.from_numpy(pixels).permute(2, 0, 1).float(), 5, 1, 2, count_include_pad=False
        )
        shown = geometry.apply(smooth, fill=0)
        points = torch.cartesian_prod(torch.arange(1, 64, 9), torch.arange(1, 64, 9))
        points = points[geometry.inside()[0][points[:, 0], points[:, 1]]]
        frame_hw = tiny_sam.frame.inner_hw((64, 64))
        points_xy, valid = crop_to_frame(points[None], torch.ones(1, len(points)) > 0, geometry, frame_hw)
        assert valid.all()
        x, y = (points_xy[0] * 64 / frame_hw[0]).round().long().unbind(1)
        expected = smooth[:, y.clamp(max=63), x.clamp(max=63)]
        assert (shown[:, points[:, 0], points[:, 1]] - expected).abs().mean() < 6
        seen += len(points)
    assert seen > 100


def test_masks_of_the_image_land_on_their_pixels(scene_dataset, made, tiny_sam):
    """SAM's mask of the whole image, resized and cropped like the image, is what the crop gets."""
    reader = ShardReader(scene_dataset)
    batch = make_batch(scene_dataset, made, RANDOM, 16)
    for k, packed in enumerate(batch["geometry"]):
        geometry = unpack_geometry(packed)
        pixels = decode_image(reader.read(reader.index_of(batch["image_id"][k]))["image"])
        (embedding,) = SamEncoder(tiny_sam)([pixels]).maps
        assert_close(batch["embedding"][k].float(), embedding.flatten(), atol=2e-2, rtol=1e-2)
        predictor = SamPredictor(tiny_sam)
        predictor.set_image(pixels)
        logits, _, low = predictor.predict(np.array([[32.0, 32.0]]), np.array([1]), return_logits=True)  # type: ignore[call-arg]
        expected = geometry.apply(torch.from_numpy(logits), fill=-1e4)
        found = masks_to_crop(tiny_sam, torch.from_numpy(low), geometry, tiny_sam.frame.inner_hw((64, 64)))
        assert ((found > 0) != (expected > 0)).float().mean() < 0.02


def one_pair_at_a_time(sam, model, batch: dict, config: CpmConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Pseudo labels by labelling's way: every set decoded with exactly its points.

    And (B, P, P) where rounding may decide: at a mask's edge, or where two classes score alike.
    """
    plan, images = make_plan(batch), batch["image"]
    cams = find_cams(model, images, batch["image_labels"], scales=config.scales, flip=False)
    if config.view == "crop":
        resized = F.interpolate(images, (128, 128), mode="bilinear", antialias=True)
        embeddings = Embeddings((sam.image_encoder(sam.preprocess(resized * 255)),))
        geometries = [Geometry(scaled_hw=(64, 64), top=0, left=0, crop_px=64, flip=False)] * len(images)
    else:
        embeddings = Embeddings((batch["embedding"].float().unflatten(1, (64, 16, 16)),))
        geometries = plan.geometries
    frame_hw = (128, 128)  # all images are square
    parts = []
    for image, points_yx in zip(cams.image_index, find_prompts(cams, config, guess=False)):
        geometry = geometries[int(image)]
        y, x = geometry.to_scaled(points_yx).unbind(1)
        shown = (y >= 0) & (y < geometry.scaled_hw[0]) & (x >= 0) & (x < geometry.scaled_hw[1])
        points_xy = torch.stack([x * 128 / geometry.scaled_hw[1], y * 128 / geometry.scaled_hw[0]], 1)[shown]
        logits, iou = decode_sets(sam, embeddings, image[None], [points_xy], config, 1)
        parts.append((masks_to_crop(sam, logits, geometry, frame_hw), iou))
    logits, iou = (torch.cat(part) for part in zip(*parts))
    undecided = torch.zeros(len(images), 64, 64, dtype=torch.bool)
    scores = mask_scores(logits > 0, confidence_map(config.confidence, logits, iou), cams.cam)
    for image in cams.image_index.unique():
        of_image = cams.image_index == image
        first, second = F.pad(scores[of_image], (0, 0, 0, 0, 0, 1), value=-torch.inf).topk(2, dim=0).values
        undecided[image] = (logits[of_image].abs() < 1e-3).any(0) | (first - second < 1e-3)
    return compete(logits, iou, cams, len(images), config)[0], undecided


@pytest.fixture(params=["cpu", "gpu"])
def path(request, monkeypatch) -> None:
    """What a GPU does, padding to the most that there can be, here on the CPU."""
    if request.param == "gpu":
        monkeypatch.setattr(torch.Tensor, "is_cuda", True)


@pytest.mark.parametrize("view", ["crop", "image"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"keep_global_max": "always", "confidence": "stability"},
        {"keep_global_max": "never", "tau": 0.6, "confidence": "iou", "mask_output": "best_iou"},
        {"mask_threshold": -1.5, "confidence": "stability"},
    ],
    ids=str,
)
@torch.no_grad()
def test_padded_sets_give_the_labels_of_one_pair_at_a_time(
    path, scene_dataset, made, make_classifier, tiny_sam, view, changes
):
    config = replace(CONFIG, view=view, **changes)
    model = make_classifier(tuple("abcdef"))
    seen = 0
    for start in (0, 24):
        batch = make_batch(scene_dataset, made, RANDOM, start)
        found = Cpm(SamEncoder(tiny_sam, batch_size=3), config, decode_batch_size=3)(model, batch)
        expected, undecided = one_pair_at_a_time(tiny_sam, model, batch, config)
        assert undecided.float().mean() < 0.01
        assert torch.equal(found[~undecided], expected[~undecided])
        seen += int((expected > 0).sum())
    assert seen > 1000


def test_a_plan_from_the_loader_changes_nothing(scene_dataset, made, make_classifier, tiny_sam):
    crops = TrainingCrops(scene_dataset, list(range(14)), num_classes=6, augment=RANDOM, seed=3, **made)
    batch = collate([crops[(k, k)] for k in range(8)])
    assert not {"geometry", "image_hw"} & set(batch)
    assert batch["plan"].segment_bounds[1] > 1
    model = make_classifier(tuple("abcdef"))
    for view in ("crop", "image"):
        cpm = Cpm(SamEncoder(tiny_sam), replace(CONFIG, view=view))
        whole = cpm(model, batch)
        assert torch.equal(whole, cpm(model, make_batch(scene_dataset, made, RANDOM)))
        # A batch that goes through the network in parts is cut by its values, the plan among them.
        parts = [cpm(model, part) for part in split_batch(batch, 3)]
        assert (torch.cat(parts) != whole).float().mean() < 1e-3


@torch.no_grad()
def test_without_any_prompt_all_is_background(path, scene_dataset, made, make_classifier, tiny_sam):
    model = make_classifier(tuple("abcdef"))
    model.to_class_maps.weight.copy_(-model.to_class_maps.weight.abs())  # no class activates anywhere
    batch = make_batch(scene_dataset, made, RANDOM)
    for view in ("crop", "image"):
        for confidence in ("logit", "iou", "stability"):
            cpm = Cpm(SamEncoder(tiny_sam), replace(CONFIG, view=view, confidence=confidence))
            assert not cpm(model, batch).any()
    batch["image_labels"] = torch.zeros(8, 6)
    assert not Cpm(SamEncoder(tiny_sam), CONFIG)(model, batch).any()
