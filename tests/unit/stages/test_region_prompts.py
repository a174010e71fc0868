"""Boxes and masks against segment_anything's own predictor, one prompt at a time."""

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from torch.testing import assert_close

from ray_wsss.config.overrides import override
from ray_wsss.config.presets import PRESETS
from ray_wsss.data.scenes import make_scene
from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.models.sam.decoder import upscale_logits
from ray_wsss.models.sam.model import SegmentAnything
from ray_wsss.ops.regions import box_around, peak_regions
from ray_wsss.stages.cams import PairCams
from ray_wsss.stages.region_prompts import decode_regions

HW = (80, 120)
TAU = 0.4
POINTS = [torch.tensor([[30, 40], [50, 90]]), torch.tensor([[60, 20]]), torch.zeros(0, 2, dtype=torch.long)]
IMAGE_OF = [0, 1, 1]


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [make_scene(seed, *HW).image for seed in (1, 2)]


@pytest.fixture(scope="module")
def cams() -> PairCams:
    ys, xs = torch.meshgrid(torch.arange(HW[0]), torch.arange(HW[1]), indexing="ij")
    maps = []
    for points in POINTS:
        hills = [torch.exp(-((ys - y) ** 2 + (xs - x) ** 2) / 800.0) for y, x in points.tolist()]
        maps.append(torch.stack(hills).amax(0) if hills else torch.zeros(HW))
    cam = torch.stack(maps)
    return PairCams(cam, torch.tensor(IMAGE_OF), torch.tensor([0, 0, 1]), [cam[:, None]])


@torch.no_grad()
def decode(sam: SegmentAnything, images: list[np.ndarray], cams: PairCams, kind: str, batch_size: int):
    embeddings = SamEncoder(sam)(images)
    config = override(PRESETS["demo"], {"label.prompts": kind, "label.tau": TAU}).label
    (masks,) = decode_regions(sam, embeddings, [cams], [POINTS], config, batch_size)
    return masks, upscale_logits(sam, masks.logits[:, None], sam.frame.inner_hw(HW), HW)[:, 0]


def regions_of(cams: PairCams, pair: int) -> np.ndarray:
    return peak_regions(cams.cam[pair].numpy(), POINTS[pair].numpy(), TAU)


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("kind", ["box", "boxes"])
def test_boxes(
    tiny_sam: SegmentAnything, images: list[np.ndarray], cams: PairCams, kind: str, batch_size: int
) -> None:
    masks, logits = decode(tiny_sam, images, cams, kind, batch_size)
    predictor = SamPredictor(tiny_sam)
    for pair in (0, 1):
        regions = regions_of(cams, pair)
        shares = [regions > 0] if kind == "box" else [regions == k for k in range(1, regions.max() + 1)]
        assert len(shares) == (2 if (kind, pair) == ("boxes", 0) else 1)
        predictor.set_image(images[IMAGE_OF[pair]])
        answers = [predictor.predict(box=np.array(box_around(share)), return_logits=True) for share in shares]
        low = np.max([answer[2][2] for answer in answers], axis=0)  # the third of the multimask outputs
        assert_close(masks.logits[pair], torch.from_numpy(low), rtol=0, atol=1e-3)
        iou = np.mean([answer[1][2] for answer in answers])
        assert masks.predicted_iou[pair].item() == pytest.approx(iou, abs=1e-4)
        if len(shares) == 1:
            assert_close(logits[pair], torch.from_numpy(answers[0][0][2]), rtol=0, atol=1e-3)
    assert (masks.logits[2] == -torch.inf).all()
    assert masks.predicted_iou[2] == 0


def test_mask(tiny_sam: SegmentAnything, images: list[np.ndarray], cams: PairCams) -> None:
    masks, logits = decode(tiny_sam, images, cams, "mask", 8)
    side, low = tiny_sam.image_encoder.img_size, tiny_sam.prompt_encoder.mask_input_size
    for pair in (0, 1):
        # The prompt itself, pixel by pixel: what of the image lies under each cell of SAM's low resolution.
        inside = regions_of(cams, pair) > 0
        prompt = np.empty(low, np.float32)
        for row in range(low[0]):
            for column in range(low[1]):
                y, x = (int((at + 0.5) * side / low[0] * max(HW) / side) for at in (row, column))
                prompt[row, column] = 10 if y < HW[0] and inside[y, x] else -10
        predictor = SamPredictor(tiny_sam)
        predictor.set_image(images[IMAGE_OF[pair]])
        answer, iou, _ = predictor.predict(mask_input=prompt[None], return_logits=True)
        ours, theirs = logits[pair].numpy() > 0, answer[2] > 0
        assert (ours == theirs).mean() > 0.99  # the border of the mask is soft in ours
        assert masks.predicted_iou[pair].item() == pytest.approx(iou[2], abs=0.02)
