"""Prompts for training: clicks, boxes, and clicks that correct a mask."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from ray_wsss.ops.regions import box_around
from ray_wsss.pretraining.examples import MASK_STRIDE, Example, Examples
from ray_wsss.pretraining.losses import KNOWN_WEIGHT

Kind = Literal["click", "clicks", "box"]


@dataclass(frozen=True, kw_only=True)
class PromptedBatch:
    """Images, prompts and targets of one step; all prompts are of one kind."""

    images: Tensor
    """(B, S, S, 3) uint8 RGB."""
    points: Tensor | None
    """(B K, P, 2) pixels of SAM's frame, x before y."""
    labels: Tensor | None
    """(B K, P), 1 in the object, 0 beside it."""
    boxes: Tensor | None
    """(B K, 4) in pixels of SAM's frame."""
    targets: Tensor
    """(B K, S/4, S/4) in [0, 1]."""
    wholes: Tensor
    """(B K, S/4, S/4) whole object around the prompt; the target where that is unknown."""
    whole_weights: Tensor
    """(B K,) as `prompt_loss` takes them."""


def sample_batch(
    rng: np.random.Generator, examples: Examples, images: int, prompts_per_image: int, side_px: int
) -> PromptedBatch:
    """A batch of random images with prompts of one random kind."""
    kinds: tuple[Kind, ...] = ("click", "clicks", "box")
    kind = kinds[rng.choice(3, p=[0.75, 0.15, 0.1])]
    clicks = int(rng.integers(2, 5)) if kind == "clicks" else 1
    frames, prompts, labels, targets, wholes, weights = [], [], [], [], [], []
    for _ in range(images):
        example = examples.sample(rng, side_px)
        frames.append(example.image)
        for at in _choose_masks(rng, example, prompts_per_image):
            target = example.masks[at]
            whole, weight = target, float(example.whole[at])
            if kind == "box":
                prompts.append(_box(rng, target))
            else:
                if kind == "clicks" and rng.random() < 0.5:
                    target = _of_category(example, at)
                    whole = target
                points, signs = _clicks(rng, target, clicks)
                prompts.append(points)
                labels.append(signs)
                if not weight and kind == "click" and (around := _whole_at(example, points[0])) is not None:
                    whole, weight = around, KNOWN_WEIGHT
            targets.append(target)
            wholes.append(whole)
            weights.append(weight)
    stacked = torch.from_numpy(np.stack(prompts))
    return PromptedBatch(
        images=torch.from_numpy(np.stack(frames)),
        points=None if kind == "box" else stacked,
        labels=None if kind == "box" else torch.from_numpy(np.stack(labels)),
        boxes=stacked if kind == "box" else None,
        targets=torch.from_numpy(np.stack(targets)),
        wholes=torch.from_numpy(np.stack(wholes)),
        whole_weights=torch.tensor(weights, dtype=torch.float32),
    )


def _choose_masks(rng: np.random.Generator, example: Example, count: int) -> NDArray[np.int64]:
    """Masks to prompt, large ones more often; every mask comes before one comes again."""
    chance = example.masks.sum((1, 2)) ** 0.5
    chance /= chance.sum()
    rounds = [
        rng.choice(len(chance), len(chance), replace=False, p=chance) for _ in range(-(-count // len(chance)))
    ]
    return np.concatenate(rounds)[:count]


def _of_category(example: Example, at: int) -> NDArray[np.float32]:
    """Union of the whole objects of a mask's category, up to three of them."""
    same = np.flatnonzero((example.categories == example.categories[at]) & example.whole)
    same = np.union1d(same[:2], [at])
    return example.masks[same].sum(0).clip(max=1)


def _whole_at(example: Example, point: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Largest whole object that a click (x, y) lies in; None if it lies in none."""
    x, y = (point / MASK_STRIDE).astype(int)
    there = np.flatnonzero((example.masks[:, y, x] > 0.5) & example.whole)
    return example.masks[there[example.masks[there].sum((1, 2)).argmax()]] if len(there) else None


def pick_click(rng: np.random.Generator, inside: NDArray[np.bool_], central: float) -> NDArray[np.float32]:
    """A click (x, y), in pixels of SAM's frame, in a region (S/4, S/4).

    Args:
        central: probability of a click near the region's centre, by the distance to its border; else it is
            anywhere.
    """
    cells = np.argwhere(inside)
    if rng.random() < central:
        depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]  # pyright: ignore
        cells = np.argwhere(depth >= rng.uniform(0.6, 1) * depth.max())
    row, column = cells[rng.integers(len(cells))]
    return ((np.array([column, row]) + rng.random(2)) * MASK_STRIDE).astype(np.float32)


def _clicks(
    rng: np.random.Generator, target: NDArray[np.float32], count: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Points (count, 2) and labels (count,): the first is in the target, the others may be beside it."""
    inside = _inside(target)
    points, labels = [pick_click(rng, inside, 0.6)], [1.0]
    for _ in range(count - 1):
        positive = rng.random() < 0.6
        outside = ~inside
        region = inside if positive or not outside.any() else outside
        points.append(pick_click(rng, region, 0.2))
        labels.append(float(region is inside))
    return np.stack(points), np.array(labels, np.float32)


def _inside(target: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Cells of which a target covers more than half; those that it covers most if there are none."""
    inside = target > 0.5
    return inside if inside.any() else target >= target.max()


def _box(rng: np.random.Generator, target: NDArray[np.float32]) -> NDArray[np.float32]:
    """Box (4,) around a target, each side off by up to a tenth of the box."""
    box = np.array(box_around(_inside(target)), np.float32) * MASK_STRIDE
    sides = np.tile(box[2:] - box[:2], 2)
    off = rng.normal(0, 0.05, 4).clip(-0.1, 0.1) * sides
    return (box + off).clip(0, MASK_STRIDE * len(target)).astype(np.float32)


def correct(rng: np.random.Generator, batch: PromptedBatch, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Add a click to each prompt where its mask is wrong: points (N, P + 1, 2), labels (N, P + 1).

    Args:
        logits: (N, S/4, S/4) masks that the prompts gave.
    """
    assert batch.points is not None
    assert batch.labels is not None
    targets, masks = batch.targets.numpy() > 0.5, logits.numpy() > 0
    points, labels = [], []
    for target, mask in zip(targets, masks):
        wrong = target ^ mask
        if not wrong.any():
            wrong = target if target.any() else ~target
        point = pick_click(rng, wrong, 0.5)
        column, row = (point / MASK_STRIDE).astype(int)
        points.append(point)
        labels.append(float(target[row, column]))
    more = torch.from_numpy(np.stack(points))[:, None]
    return torch.cat([batch.points, more], 1), torch.cat([batch.labels, torch.tensor(labels)[:, None]], 1)
