"""Labels within a budget of pixels equal those of all pairs at once, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ray_wsss.config import LabelConfig, PromptingConfig, SamConfig
from ray_wsss.data.scenes import make_scene
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.models.sam.tiny import IMAGE_SIZE_PX
from ray_wsss.ops.pseudo_label import stability_score
from ray_wsss.runs.prepared_images import PreparedImage, PrepareImages
from ray_wsss.stages.cams import PairCams, cams_of
from ray_wsss.stages.contest import hold_contest
from ray_wsss.stages.label import SamLabeller
from ray_wsss.stages.point_prompts import PairMasks, aggregate, find_prompts, upscale_masks

HW = (40, 56)
SAM = SamConfig(name="tiny", precision="fp32")
BUDGETS = [1, IMAGE_SIZE_PX**2 * 2, 10**9]


@pytest.fixture(scope="module")
def pairs() -> tuple[PairCams, PairMasks]:
    """7 pairs of 3 images; the masks overlap, one is empty and one has no prompts."""
    generator = torch.Generator().manual_seed(0)
    cam = torch.rand(7, *HW, generator=generator)
    logits = torch.nn.functional.interpolate(
        torch.randn(7, 1, 4, 4, generator=generator) * 5 + 2, 64, mode="bilinear"
    )[:, 0]
    logits[3], logits[5] = -3.0, -torch.inf
    image_index, class_index = torch.tensor([0, 0, 0, 1, 1, 1, 1]), torch.tensor([0, 2, 5, 0, 1, 2, 5])
    masks = PairMasks(logits, torch.rand(7, generator=generator), [torch.zeros(1, 2)] * 7)
    return PairCams(cam, image_index, class_index, [cam[:, None]]), masks


@pytest.mark.parametrize("confidence", ["logit", "stability", "iou"])
@pytest.mark.parametrize("max_pixels", BUDGETS)
def test_a_contest_in_parts_has_the_result_of_the_whole(tiny_sam, pairs, confidence, max_pixels):
    cams, masks = pairs
    config = PromptingConfig(confidence=confidence)
    labels, binary = aggregate(tiny_sam, cams, masks, 3, config)
    found = hold_contest(tiny_sam, cams, masks, 3, config, max_pixels)
    assert torch.equal(found.labels, labels)
    assert torch.equal(found.masks, binary)
    assert len(labels.unique()) >= 4
    logits = upscale_masks(tiny_sam, cams, masks)
    cam_mean = (cams.cam * binary).sum((1, 2)) / binary.sum((1, 2)).clamp(min=1)
    assert torch.equal(found.scores, torch.stack([masks.predicted_iou, stability_score(logits), cam_mean], 1))


@pytest.mark.parametrize("max_pixels", BUDGETS)
def test_cams_and_prompts_in_parts_are_those_of_the_whole(make_classifier, max_pixels):
    model = make_classifier()
    images = [make_scene(seed, 48, 56).image for seed in range(3)]
    present, config = [[0, 1, 2], [], [0, 2]], LabelConfig(scales=(0.5, 1.0))
    whole = cams_of(model, images, present, config)
    parts = cams_of(model, images, present, replace(config, max_pixels_per_pass=max(1, max_pixels // 2)))
    assert torch.equal(parts.cam, whole.cam)
    config = PromptingConfig(tau=0.3, min_distance_px=4)
    expected = find_prompts(whole, config, guess=True)
    found = find_prompts(whole, config, guess=True, max_pixels=max_pixels)
    assert len(found) == len(expected) == 5
    assert all(torch.equal(one, other) for one, other in zip(found, expected))


def _images() -> list[PreparedImage]:
    prepare = PrepareImages(max_side_px=64, frame=InputFrame(IMAGE_SIZE_PX))
    classes = [(0, 3), (1, 2, 5), (), (4,), (0, 1, 2, 3, 4, 5)]
    sizes = [(64, 64), (64, 96), (64, 64), (150, 200), (150, 200)]
    scenes = [make_scene(seed, *hw).image for seed, hw in enumerate(sizes)]
    return [prepare.prepare(str(k), scene, c) for k, (scene, c) in enumerate(zip(scenes, classes))]


CONFIG = LabelConfig(tau=0.3, min_distance_px=4, scales=(1.0,), max_side_px=64)


@pytest.mark.parametrize("threads", [False, True])
def test_the_smallest_budget_labels_as_batches_of_one_image(classifier_dir, threads):
    alone = replace(CONFIG, batch_size=1, cam_batch_size=1)
    table, tally = SamLabeller(alone, SAM, classifier_dir)(_images())
    labeller = SamLabeller(replace(CONFIG, max_pixels_per_pass=1), SAM, classifier_dir)
    if threads:  # as on a GPU
        from concurrent.futures import ThreadPoolExecutor

        labeller.writers = ThreadPoolExecutor(2)
    found, counts = labeller(_images())
    assert found.equals(table)
    assert (counts.images, counts.masks, counts.prompts) == (tally.images, tally.masks, tally.prompts)
    areas = [[segment["area"] for segment in row["segments"]] for row in found.to_pylist()]
    assert np.concatenate(areas).max() > 0


def test_batches_are_cut_by_the_pixels_of_their_pairs(classifier_dir):
    images = _images()
    labeller = SamLabeller(replace(CONFIG, max_pixels_per_pass=64 * 64 // 8), SAM, classifier_dir)
    # 32 passes' worth is 4 pairs of 64 x 64 pixels.
    batches = [[image.image_id for image in batch] for batch in labeller._batches(images)]
    assert batches == [["0"], ["1", "2", "3"], ["4"]]
    roomy = SamLabeller(CONFIG, SAM, classifier_dir)
    assert [len(batch) for batch in roomy._batches(images)] == [5]
