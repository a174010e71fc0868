"""CPM both ways: SAM on the crop, and SAM on the whole image seen through the crop's geometry."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import default_collate

from ray_wsss.config import AugmentConfig, CpmConfig
from ray_wsss.data.images import decode_image, decode_segments
from ray_wsss.data.loader import TrainingCrops, pack_geometry, unpack_geometry
from ray_wsss.data.reader import ShardReader
from ray_wsss.models.sam.encoder import encode_images, sam_input_hw
from ray_wsss.ops.geometry import Geometry
from ray_wsss.stages.cpm import Cpm, crop_to_frame, masks_to_crop

CONFIG = CpmConfig(tau=0.3, min_distance_px=4, scales=(1.0,))
# Every crop of the scenes, which are 64 x 64, is the whole image as it is.
PLAIN = AugmentConfig(long_side_px=(64, 64), crop_px=64, flip=False, jitter_probability=0, grey_probability=0)
RANDOM = AugmentConfig(long_side_px=(50, 90), crop_px=64, jitter_probability=0, grey_probability=0)


@pytest.fixture(scope="module")
def made(make_views) -> dict[str, Path]:
    return make_views("fp16")


def make_batch(dataset: Path, made: dict[str, Path], augment: AugmentConfig, start: int = 0) -> dict:
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
    crop, image = (Cpm(tiny_sam, replace(CONFIG, view=view), 32)(model, batch) for view in ("crop", "image"))
    assert len(crop.unique()) > 3
    # SAM's input was resized on the device in one case, by Pillow in the other.
    assert (crop != image).float().mean() < 0.01


def test_without_scaling_or_flip_the_two_geometries_are_one(tiny_sam):
    frame_hw = sam_input_hw(tiny_sam, (50, 64))
    whole = Geometry(scaled_hw=(50, 64), top=0, left=0, crop_px=64, flip=False)
    points = torch.tensor([[0, 0], [49, 63], [20, 31], [50, 10], [63, 63]])  # the last two are padding
    expected = SamPredictor(tiny_sam).transform.apply_coords(points[:3].flip(1).numpy(), (50, 64))
    assert_close(crop_to_frame(points, whole, frame_hw), torch.tensor(expected).float())
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
        frame_hw = sam_input_hw(tiny_sam, (64, 64))
        x, y = (crop_to_frame(points, geometry, frame_hw) * 64 / frame_hw[0]).round().long().unbind(1)
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
        embedding = encode_images(tiny_sam, [pixels])
        assert_close(batch["embedding"][k].float(), embedding[0], atol=2e-2, rtol=1e-2)
        predictor = SamPredictor(tiny_sam)
        predictor.set_image(pixels)
        logits, _, low = predictor.predict(np.array([[32.0, 32.0]]), np.array([1]), return_logits=True)  # type: ignore[call-arg]
        expected = geometry.apply(torch.from_numpy(logits), fill=-1e4)
        found = masks_to_crop(tiny_sam, torch.from_numpy(low), geometry, sam_input_hw(tiny_sam, (64, 64)))
        assert ((found > 0) != (expected > 0)).float().mean() < 0.02
