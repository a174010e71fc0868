"""Prompt sets of different lengths in one call, against segment_anything's transformer on each set alone."""

from typing import cast

import pytest
import torch
from segment_anything.modeling import Sam, TwoWayTransformer
from torch.testing import assert_close

from ray_wsss.models.sam.decoder import decode_prompts, encode_prompts
from ray_wsss.models.sam.tiny import build_tiny_sam
from ray_wsss.models.sam.two_way import run_two_way

LENGTHS = (3, 1, 9, 2, 5, 4, 8, 7, 6)


@pytest.fixture(scope="module", params=["random", "shipped"])
def sam(request) -> Sam:
    if request.param == "shipped":
        return request.getfixturevalue("tiny_sam")
    torch.manual_seed(0)
    sam = build_tiny_sam()
    for parameter in sam.parameters():  # some begin as zeros and would hide mistakes
        parameter.data += 0.02 * torch.randn(parameter.shape)
    return sam.requires_grad_(False)


@pytest.fixture(scope="module")
def embeddings() -> torch.Tensor:
    """Of the spread that SAM's neck gives them."""
    return torch.randn(len(LENGTHS), 64, 16, 16, generator=torch.Generator().manual_seed(1))


def points_of(width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(9, width, 2) pixels of SAM's input, and labels, 1 and some 0."""
    generator = torch.Generator().manual_seed(seed)
    points_xy = 128 * torch.rand(len(LENGTHS), width, 2, generator=generator)
    return points_xy, (torch.rand(len(LENGTHS), width, generator=generator) < 0.8).float()


def test_without_padding_it_is_segment_anythings(sam, embeddings):
    transformer = cast(TwoWayTransformer, sam.mask_decoder.transformer)
    position = sam.prompt_encoder.get_dense_pe().expand(embeddings.shape)
    tokens = torch.randn(len(embeddings), 7, 64, generator=torch.Generator().manual_seed(2))
    expected = transformer(embeddings, position, tokens)
    found = run_two_way(transformer, embeddings, position, tokens, torch.ones(tokens.shape[:2]) > 0)
    assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [9, 64])
@pytest.mark.parametrize("first", [True, False], ids=["points first", "padding first"])
def test_padded_sets_equal_each_alone(sam, embeddings, width, first):
    points_xy, labels = points_of(width, seed=width)
    valid = torch.arange(width) < torch.tensor(LENGTHS)[:, None]
    valid = valid if first else valid.flip(1)
    logits, iou = decode_prompts(sam, embeddings, points_xy, labels, valid=valid)
    for n, there in enumerate(valid):
        alone = decode_prompts(sam, embeddings[n, None], points_xy[n, None, there], labels[n, None, there])
        assert alone[0].std() > 0.01
        assert_close(logits[n, None], alone[0], rtol=0, atol=1e-4)
        assert_close(iou[n, None], alone[1], rtol=0, atol=1e-5)


def test_padded_points_beside_a_box(sam, embeddings):
    points_xy, labels = points_of(4, seed=0)
    boxes = torch.tensor([[10.0, 20.0, 90.0, 100.0]]).expand(len(embeddings), 4)
    valid = torch.tensor([True, False, True, False]).expand(len(embeddings), 4)
    logits, _ = decode_prompts(sam, embeddings, points_xy, labels, boxes, valid=valid)
    alone, _ = decode_prompts(sam, embeddings, points_xy[:, ::2], labels[:, ::2], boxes)
    assert_close(logits, alone, rtol=0, atol=1e-4)


def test_what_fills_up_does_not_matter(sam, embeddings):
    points_xy, labels = points_of(9, seed=3)
    valid = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    other = torch.where(valid[..., None], points_xy, -1000.0)
    expected = decode_prompts(sam, embeddings, points_xy, labels, valid=valid)
    assert_close(decode_prompts(sam, embeddings, other, labels, valid=valid), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("with_points", "with_boxes"), [(True, False), (False, True), (True, True)])
def test_prompts_are_encoded_to_the_bit_as_by_segment_anything(sam, with_points, with_boxes):
    points_xy, labels = points_of(3, seed=4)
    labels[::2, 1] = -1
    points = (points_xy, labels) if with_points else None
    boxes = torch.tensor([[10.0, 20.0, 90.0, 100.0]]).repeat(len(LENGTHS), 1) if with_boxes else None
    sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=None)
    found = encode_prompts(sam, *(points or (None, None)), boxes)
    assert torch.equal(found[0], sparse)
    assert torch.equal(found[1].expand_as(dense), dense)
