"""The pseudo label of one image that is larger than a tile, within a budget of memory.

Only CAMs and labels have the image's size: the CAMs in cells of 4 pixels, the label and the score that each
pixel has so far at the image's own. SAM sees only tiles that have points, a few at a time.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_wsss.config import LabelConfig, SamConfig
from ray_wsss.data.coco import encode_rle
from ray_wsss.label_format import LabelMap, label_format, labels_to_array
from ray_wsss.models.classifier import Classifier
from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.ops.pseudo_label import LabelContest, stability_score
from ray_wsss.ops.tiles import TileGrid
from ray_wsss.runs.tally import Tally
from ray_wsss.stages.cams import PairCams
from ray_wsss.stages.point_prompts import decode_pairs, score_pairs, upscale_masks
from ray_wsss.stages.region_prompts import decode_regions
from ray_wsss.stages.tiles.cams import TiledCams, find_tile_peaks, grid_of, tiled_cams
from ray_wsss.stages.tiles.masks import TileMask, TileMasks, TilePrompt

_CARRIES = 4
"""How many tiles beyond those of its points a mask may reach. A mask of the ground would reach all."""


class TileLabeller:
    """Labels an image in overlapping tiles, at its own size.

    Each peak of the image's CAM prompts SAM in the tile in whose core it lies. A mask that reaches the edge
    of its tile is carried on into the next one. The mask of a class is the union of its masks in all tiles.
    Where masks overlap, of one class or of several, a pixel gets the highest of their scores.
    """

    def __init__(self, model: Classifier, encoder: SamEncoder, config: LabelConfig, sam: SamConfig) -> None:
        self.model, self.encoder, self.config, self.sam_config = model, encoder, config, sam
        self.sam, self.device = encoder.sam, model.device

    @torch.no_grad()
    def __call__(
        self, pixels: NDArray[np.uint8], image_labels: Sequence[int], tally: Tally
    ) -> tuple[LabelMap, list[dict[str, Any]]]:
        """Label map (H, W), and the fields of `stages.label.SEGMENT` of each class, of an image (H, W, 3).

        The points of a segment are the peaks of its CAM, without those that carry masks on.
        """
        grid = grid_of((pixels.shape[0], pixels.shape[1]), self.config)
        if not image_labels:
            return np.zeros(grid.image_hw, label_format(self.model.num_classes).dtype), []
        with tally.phase("cam", self.device):
            cams = tiled_cams(self.model, pixels, image_labels, self.config)
        with tally.phase("prompt", self.device):
            peaks = find_tile_peaks(cams, grid, self.config)
        masks = TileMasks(grid)
        contest = LabelContest(1, grid.image_hw, cams.cam, self.model.num_classes)
        prompts = [TilePrompt(at, n, points - _corner(grid, at)) for at, n, points in peaks]
        for _ in range(1 + _CARRIES):
            new = [
                mask
                for batch in self._batches(grid, prompts)
                for mask in self._decode(batch, pixels, cams, contest, tally)
            ]
            masks.add(new)
            prompts = masks.carry_on(new)
            if not prompts:
                break
        tally.masks += len(cams.class_index)
        tally.prompts += sum(len(points) for *_, points in peaks)
        with tally.phase("write"):
            segments = [
                _describe(masks, n, class_index, [points for _, of, points in peaks if of == n])
                for n, class_index in enumerate(cams.class_index)
            ]
            return labels_to_array(contest.labels[0]), segments

    def _batches(self, grid: TileGrid, prompts: Sequence[TilePrompt]) -> Iterator[list[TilePrompt]]:
        """Prompts in tiles of one size, as many as have room for maps and embeddings; one at least."""

        def size(prompt: TilePrompt) -> tuple[int, int]:
            return grid[prompt.tile].hw

        for (height, width), group in groupby(sorted(prompts, key=lambda p: (size(p), p.tile)), key=size):
            most = min(self.config.batch_size, max(1, self.config.max_map_pixels // (height * width)))
            of_size = list(group)
            yield from (of_size[k : k + most] for k in range(0, len(of_size), most))

    def _decode(
        self,
        prompts: Sequence[TilePrompt],
        pixels: NDArray[np.uint8],
        cams: TiledCams,
        contest: LabelContest,
        tally: Tally,
    ) -> list[TileMask]:
        """SAM's masks for prompts in tiles of one size; each enters the contest, except for those refused."""
        grid = grid_of(cams.image_hw, self.config)
        shown = sorted({prompt.tile for prompt in prompts})
        with tally.phase("encode", self.device):
            embeddings = self.encoder([pixels[grid[at].at] for at in shown])
        with tally.phase("prompt", self.device):
            pairs = PairCams(
                torch.cat([cams.part([p.class_at], *grid[p.tile].at) for p in prompts]),
                torch.tensor([shown.index(p.tile) for p in prompts]),
                torch.tensor([cams.class_index[p.class_at] for p in prompts]),
                (),
            )
            points = [torch.from_numpy(p.points_yx).to(self.device) for p in prompts]
            (found,) = self._decode_points(embeddings, pairs, points, carried=prompts[0].known is not None)
            logits = upscale_masks(self.sam, pairs, found)
            of_pixels, inside = score_pairs(logits, found.predicted_iou, pairs, self.config)
            cam_mean = (pairs.cam * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
            scores = torch.stack([found.predicted_iou, stability_score(logits), cam_mean], dim=1).tolist()
            masks: list[TileMask] = []
            for k, (prompt, mask) in enumerate(zip(prompts, inside.cpu().numpy())):
                if prompt.agrees(mask):
                    one = slice(k, k + 1)
                    contest.add(
                        of_pixels[one],
                        torch.zeros(1, dtype=torch.long),
                        pairs.class_index[one],
                        grid[prompt.tile].at,
                    )
                    masks.append(TileMask.pack(prompt, mask, tuple(scores[k])))
            return masks

    def _decode_points(self, embeddings, pairs: PairCams, points: list, *, carried: bool):
        size = self.sam_config.decode_batch_size
        if self.config.prompts == "points" or carried:  # the CAM says nothing of the rest of an object
            return decode_pairs(self.sam, embeddings, [pairs], [points], self.config, size)
        return decode_regions(self.sam, embeddings, [pairs], [points], self.config, size)


def _corner(grid: TileGrid, at: int) -> NDArray[np.int64]:
    return np.array([grid[at].y.start, grid[at].x.start])


def _describe(
    masks: TileMasks, class_at: int, class_index: int, points_yx: Sequence[NDArray[np.int64]]
) -> dict[str, Any]:
    """Fields of `stages.label.SEGMENT` of one class."""
    merged = masks.merge(class_at)
    points = np.concatenate([np.zeros((0, 2), np.int64), *points_yx])
    points = points[np.lexsort((points[:, 1], points[:, 0]))]
    names = ("sam_score", "stability_score", "cam_mean")
    return {
        "class_index": class_index,
        **dict(zip(names, masks.scores(class_at))),
        "points_xy": (points[:, ::-1] + 0.5).tolist(),
        "area": int(merged.sum()),
        "rle": encode_rle(merged)["counts"],
    }
