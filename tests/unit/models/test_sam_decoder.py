"""Batched encoding and decoding against segment_anything's own predictor, one image at a time."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from torch.testing import assert_close

from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.models.promptable.prepare import prepare_images
from ray_wsss.models.sam.decoder import upscale_logits
from ray_wsss.models.sam.model import SegmentAnything
from ray_wsss.models.sam.tiny import build_tiny_sam
from ray_wsss.ops.prompt_batches import points_to_sam_frame

SIZES_HW = [(60, 100), (128, 128), (150, 90), (41, 37), (300, 210)]


class Prompt(NamedTuple):
    image: int
    points_yx: torch.Tensor  # (P, 2) pixels of the image
    labels: torch.Tensor  # (P,)
    box_xyxy: torch.Tensor  # (4,) pixels of the image


@pytest.fixture(scope="module", params=["random", "shipped"])
def sam(request) -> SegmentAnything:
    if request.param == "shipped":
        return request.getfixturevalue("tiny_sam")
    torch.manual_seed(0)
    sam = build_tiny_sam()
    for parameter in sam.parameters():  # some begin as zeros and would hide mistakes
        parameter.data += 0.02 * torch.randn(parameter.shape)
    return sam.requires_grad_(False)


@pytest.fixture(scope="module")
def images() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (-(-h // 9), -(-w // 9), 3), dtype=np.uint8) for h, w in SIZES_HW]
    return [np.kron(c, np.ones((9, 9, 1), np.uint8))[:h, :w] for c, (h, w) in zip(coarse, SIZES_HW)]


@pytest.fixture(scope="module")
def predictors(sam, images) -> list[SamPredictor]:
    predictors = []
    for image in images:
        predictor = SamPredictor(sam)
        predictor.set_image(image)
        predictors.append(predictor)
    return predictors


def prompts(points: int) -> list[Prompt]:
    """Prompt sets in mixed order of images, some images twice."""
    generator = torch.Generator().manual_seed(points)

    def pixel(side: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, side, shape, generator=generator)

    made = []
    for image in (3, 0, 4, 1, 0, 2, 4):
        height, width = SIZES_HW[image]
        x, y = pixel(width, 2).sort().values, pixel(height, 2).sort().values
        made.append(
            Prompt(
                image,
                torch.stack([pixel(height, points), pixel(width, points)], dim=-1),
                (torch.arange(points) != 2).float(),  # a third point is a negative one
                torch.stack([x[0], y[0], x[1] + 1, y[1] + 1]).float(),
            )
        )
    return made


@torch.no_grad()
def decode_together(
    sam: SegmentAnything,
    images,
    sets: list[Prompt],
    with_points: bool,
    with_boxes: bool,
    once_per_image: bool,
):
    """Our way: every set of every image in one call; logits at each image's own size."""
    frames = [(SIZES_HW[s.image], sam.frame.inner_hw(SIZES_HW[s.image])) for s in sets]
    points = torch.cat([points_to_sam_frame(s.points_yx[None], *f) for s, f in zip(sets, frames)])
    scales = [torch.tensor([new[1] / old[1], new[0] / old[0]] * 2) for old, new in frames]
    boxes = torch.stack([s.box_xyxy * scale for s, scale in zip(sets, scales)])
    embeddings, image_index = SamEncoder(sam)(images), torch.tensor([s.image for s in sets])
    logits, iou = sam.decode(
        embeddings if once_per_image else embeddings[image_index],
        points if with_points else None,
        torch.stack([s.labels for s in sets]) if with_points else None,
        boxes if with_boxes else None,
        image_index=image_index if once_per_image else None,
    )
    full = [sam.upscale(logits[n : n + 1], new, old)[0] for n, (old, new) in enumerate(frames)]
    return full, logits, iou


@pytest.mark.parametrize("once_per_image", [True, False])
@pytest.mark.parametrize(
    ("points", "with_points", "with_boxes"),
    [
        (1, True, False),
        (2, True, False),
        (3, True, False),
        (4, True, False),
        (1, False, True),
        (2, True, True),
    ],
)
def test_one_call_equals_the_predictor_set_by_set(
    sam, images, predictors, points, with_points, with_boxes, once_per_image
):
    sets = prompts(points)
    full, low, iou = decode_together(sam, images, sets, with_points, with_boxes, once_per_image)
    for n, s in enumerate(sets):
        predictor = predictors[s.image]
        transform, size_hw = predictor.transform, SIZES_HW[s.image]
        coords = transform.apply_coords_torch(s.points_yx.flip(-1)[None], size_hw)
        boxes = transform.apply_boxes_torch(s.box_xyxy[None], size_hw) if with_boxes else None
        for multimask, outputs in ((True, slice(1, 4)), (False, slice(0, 1))):
            expected = predictor.predict_torch(
                coords if with_points else None,
                s.labels[None] if with_points else None,
                boxes,
                multimask_output=multimask,
                return_logits=True,
            )
            assert_close(full[n][outputs], expected[0][0], rtol=0, atol=1e-4)
            assert_close(iou[n, outputs], expected[1][0], rtol=0, atol=1e-5)
            assert_close(low[n, outputs], expected[2][0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("image_hw", [(96, 96), (30, 200), (200, 31), (64, 63), (300, 299), (1, 90)])
def test_upscaling_is_sams_to_the_bit(sam, image_hw):
    """Though what SAM cuts off is not made."""
    logits = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    input_hw = sam.frame.inner_hw(image_hw)
    expected = sam.postprocess_masks(logits, input_hw, image_hw)
    assert torch.equal(upscale_logits(sam, logits, input_hw, image_hw), expected)


def test_inputs_and_embeddings_equal_the_predictors(sam, images, predictors):
    inputs = prepare_images(sam, images)
    assert inputs.shape == (len(images), 3, 128, 128)
    (embeddings,) = SamEncoder(sam)(images).maps
    for n, predictor in enumerate(predictors):
        assert sam.frame.inner_hw(SIZES_HW[n]) == predictor.input_size
        assert_close(embeddings[n], predictor.features[0], rtol=0, atol=1e-4)
        height, width = predictor.input_size
        assert not inputs[n, :, height:].any()
        assert not inputs[n, :, :, width:].any()


def test_padding_points_change_the_mask(sam, images):
    """Why prompt sets are bucketed by their number of points, not padded to the longest."""
    embedding = SamEncoder(sam)(images[:1])
    point, label = torch.tensor([[[40.0, 50.0]]]), torch.ones(1, 1)
    padded, labels = torch.cat([point, torch.zeros(1, 2, 2)], 1), torch.tensor([[1.0, -1.0, -1.0]])
    with torch.no_grad():
        alone, _ = sam.decode(embedding, point, label)
        filled, _ = sam.decode(embedding, padded, labels)
    assert (alone - filled).abs().max() > 1e-3
