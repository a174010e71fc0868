"""Models read through transformers give what transformers' own processor and model give."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_models import SMALL, build_lively, predict
from torch import Tensor
from torch.testing import assert_close

from ray_wsss.config import SamConfig, SamName
from ray_wsss.data.scenes import make_scene
from ray_wsss.models.promptable.encoder import SamEncoder, load_encoder
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.models.promptable.interface import PromptableModel
from ray_wsss.models.sam_family.model import HubModel
from ray_wsss.models.sam_family.sam_hq import SamHq

SIZES_HW = {"landscape": (60, 100), "portrait": (150, 90), "square": (128, 128), "large": (210, 300)}
IMAGES = [make_scene(77 + n, *size_hw).image for n, size_hw in enumerate(SIZES_HW.values())]
POINTS = {1: [[30.0, 20.0]], 2: [[70.0, 50.0], [12.0, 33.0]], 3: [[5.0, 40.0], [55.0, 8.0], [80.0, 55.0]]}
"""(x, y) in pixels of every image, by number."""
LABELS = {1: [1], 2: [1, 0], 3: [1, 1, 0]}
BOXES = [[10.0, 5.0, 60.0, 40.0], [0.0, 0.0, 89.0, 59.0]]


@pytest.fixture(scope="module", params=list(SMALL))
def name(request) -> SamName:
    return request.param


@pytest.fixture(scope="module")
def theirs(name) -> Any:
    return build_lively(name)


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory) -> Path:
    theirs.save_pretrained(folder := tmp_path_factory.mktemp("small"))
    return folder


@pytest.fixture(scope="module")
def encoder(name, folder) -> SamEncoder:
    config = SamConfig(name=name, checkpoint=str(folder), precision="fp32", encode_batch_size=3)
    return load_encoder(config, torch.device("cpu"))


def placed(sam: PromptableModel, xy: Any, image: NDArray[np.uint8]) -> Tensor:
    return torch.tensor(sam.frame.place_points(np.array(xy), image.shape[:2])).float()


def maps_of(name: SamName, model: Any, image: NDArray[np.uint8]) -> list[Tensor]:
    """transformers' maps of an image, as far as its own code has them."""
    pixels = SMALL[name].processor()(image, return_tensors="pt")["pixel_values"]
    if name == "hq_vit_b":
        return [model.get_image_embeddings(pixels)[0]]
    return list(model.get_image_embeddings(pixels))[::-1]


def test_embeddings(name, theirs, encoder):
    found = encoder(IMAGES)
    assert [values.shape[1:] for values in found.maps] == list(encoder.sam.map_shapes)
    for k, image in enumerate(IMAGES):
        for ours, expected in zip(found[[k]].maps, maps_of(name, theirs, image)):
            assert torch.cosine_similarity(ours.flatten(), expected.flatten(), 0) >= 0.9999
            assert expected.std() > 0.05


def check(found: tuple[Tensor, Tensor], sam: PromptableModel, image, expected) -> None:
    """Logits, IoUs and logits of the image."""
    low, iou, full = expected
    if isinstance(sam, SamHq):  # transformers sorts the alternatives by their IoU
        found = found[0].clone(), found[1].clone()
        for masks, scores in zip(*found):
            order = scores[1:].argsort(descending=True)
            masks[1:], scores[1:] = masks[1:][order], scores[1:][order]
    assert low.std() > 0.1
    assert_close(found[0], low, rtol=0, atol=1e-3)
    assert_close(found[1], iou, rtol=0, atol=1e-3)
    size_hw = image.shape[:2]
    upscaled = sam.upscale(found[0], sam.frame.inner_hw(size_hw), size_hw)
    assert_close(upscaled, full, rtol=0, atol=1e-3)


@pytest.mark.parametrize("count", list(POINTS))
def test_points(name, theirs, encoder, count):
    """Sets of one to three points on images of all shapes, decoded in one call."""
    sam, labels = encoder.sam, torch.tensor([LABELS[count]] * len(IMAGES))
    points = torch.stack([placed(sam, POINTS[count], image) for image in IMAGES])
    logits, iou = sam.decode(encoder(IMAGES), points, labels)
    for k, image in enumerate(IMAGES):
        expected = predict(name, theirs, image, [POINTS[count]], [LABELS[count]])
        check((logits[[k]], iou[[k]]), sam, image, expected)


def test_points_of_several_classes_of_an_image(name, theirs, encoder):
    sam, image, sets = encoder.sam, IMAGES[1], [POINTS[2], [*POINTS[1], [60.0, 140.0]]]
    points = torch.stack([placed(sam, xy, image) for xy in sets])
    found = sam.decode(encoder([image])[[0, 0]], points, torch.ones(2, 2))
    check(found, sam, image, predict(name, theirs, image, sets, [[1, 1], [1, 1]]))


@pytest.mark.parametrize("with_points", [False, True])
def test_boxes(name, theirs, encoder, with_points):
    sam, image = encoder.sam, IMAGES[0]
    boxes = placed(sam, np.array(BOXES).reshape(2, 2, 2), image).reshape(2, 4)
    sets = [POINTS[1], [[44.0, 9.0]]]
    points = torch.stack([placed(sam, xy, image) for xy in sets]) if with_points else None
    labels = torch.ones(2, 1) if with_points else None
    found = sam.decode(encoder([image])[[0, 0]], points, labels, boxes)
    given = (sets, [[1], [1]]) if with_points else (None, None)
    check(found, sam, image, predict(name, theirs, image, *given, BOXES))


@pytest.mark.parametrize("with_points", [False, True])
def test_masks(name, theirs, encoder, with_points):
    sam, image = encoder.sam, IMAGES[3]
    side = sam.mask_side_px
    mask = 5 * torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(0))
    points = placed(sam, POINTS[2], image)[None] if with_points else None
    labels = torch.tensor([LABELS[2]]) if with_points else None
    found = sam.decode(encoder([image]), points, labels, mask_logits=mask)
    if name == "hq_vit_b" and not with_points:  # transformers' HQ-SAM needs a point or a box
        assert found[0].isfinite().all()
        return
    given = ([POINTS[2]], [LABELS[2]]) if with_points else (None, None)
    check(found, sam, image, predict(name, theirs, image, *given, masks=mask))


@pytest.mark.parametrize("kind", ["points", "boxes", "masks"])
def test_prompt_sets_may_share_an_image(encoder, kind):
    """Embeddings once per image give what embeddings once per prompt set give."""
    sam, embeddings, image_index = encoder.sam, encoder(IMAGES), torch.tensor([2, 0, 2, 1, 0])
    generator = torch.Generator().manual_seed(0)
    points = 100 * torch.rand(5, 2, 2, generator=generator)
    given = {
        "points": {"points_xy": points, "point_labels": torch.ones(5, 2)},
        "boxes": {"boxes_xyxy": points.sort(1).values.flatten(1)},
        "masks": {"mask_logits": torch.randn(5, 1, *[sam.mask_side_px] * 2, generator=generator)},
    }[kind]
    found = sam.decode(embeddings, **given, image_index=image_index)
    expected = sam.decode(embeddings[image_index], **given)
    assert_close(found, expected, rtol=0, atol=1e-4)


def test_points_that_fill_up_a_set_change_nothing(encoder):
    sam, image = encoder.sam, IMAGES[2]
    points, embedding = placed(sam, POINTS[3], image)[None], encoder([image])
    valid = torch.tensor([[True, True, False]])
    padded = sam.decode(embedding, points, torch.ones(1, 3), valid=valid)
    alone = sam.decode(embedding, points[:, :2], torch.ones(1, 2))
    everything = sam.decode(embedding, points, torch.ones(1, 3))
    for found, expected in zip(padded, alone):
        assert_close(found, expected, rtol=0, atol=1e-4)
    assert (everything[0] - alone[0]).abs().max() > 0.05


def test_less_precision_and_no_compiling(name, folder, encoder):
    """The encoder alone is in bf16; compiling, which only segment_anything's encoder can, stays off."""
    config = SamConfig(name=name, checkpoint=str(folder), precision="bf16")
    rough = load_encoder(config, torch.device("cpu"), images=10**9)
    assert rough.run_block is None
    for found, expected in zip(rough(IMAGES[:1]).maps, encoder(IMAGES[:1]).maps):
        assert found.dtype == torch.float32
        assert 0.9 < torch.cosine_similarity(found.flatten(), expected.flatten(), 0) < 0.999999


def _wrong_normalisation(sam: HubModel, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sam._buffers, "pixel_mean", 0 * sam.get_buffer("pixel_mean"))


def _wrong_scale(sam: HubModel, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(sam._buffers, "pixel_std", 1.2 * sam.get_buffer("pixel_std"))


def _swapped_channels(sam: HubModel, patch: pytest.MonkeyPatch) -> None:
    right = sam.preprocess
    patch.setattr(sam, "preprocess", lambda x: right(x.flip(-3)))


@pytest.mark.parametrize("mutate", [_wrong_normalisation, _wrong_scale, _swapped_channels])
def test_a_wrong_input_is_noticed(name, theirs, encoder, mutate, monkeypatch):
    assert isinstance(encoder.sam, HubModel)
    mutate(encoder.sam, monkeypatch)
    with pytest.raises(AssertionError):
        test_embeddings(name, theirs, encoder)


@pytest.mark.parametrize("image", ["landscape", "portrait"])
def test_swapped_axes_are_noticed(name, theirs, encoder, image):
    """Points as (y, x), or scaled as the other kind of model scales them."""
    sam, shown = encoder.sam, IMAGES[list(SIZES_HW).index(image)]
    expected = predict(name, theirs, shown, [POINTS[2]], [LABELS[2]])
    embedding, labels = encoder([shown]), torch.tensor([LABELS[2]])
    other = InputFrame(sam.frame.side_px, squeeze=not sam.frame.squeeze)
    right = placed(sam, POINTS[2], shown)
    wrong = torch.tensor(other.place_points(np.array(POINTS[2]), shown.shape[:2])).float()
    check(sam.decode(embedding, right[None], labels), sam, shown, expected)
    for points in (right.flip(-1), wrong):
        with pytest.raises(AssertionError):
            check(sam.decode(embedding, points[None], labels), sam, shown, expected)
