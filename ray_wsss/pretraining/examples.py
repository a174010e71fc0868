"""Training examples: random cuts of photographs, with masks, and with objects pasted from others."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ray_wsss.pretraining.photos import OBJECTS, Photo, weights

MASK_STRIDE = 4
MAX_MASKS = 20
"""Most masks of a photograph that are rendered for an example."""
LEAST_CELLS = 12.0
"""Least area of a mask, in pixels of the target."""
LEAST_VISIBLE = 0.35
"""Least share of a mask that a cut or a pasted object must leave."""
PASTE_FROM = OBJECTS | {"coco"}


@dataclass(frozen=True)
class Example:
    """An image in SAM's frame, and masks at the decoder's resolution."""

    image: NDArray[np.uint8]
    """(S, S, 3) RGB; the padding is grey."""
    size_hw: tuple[int, int]
    """Part of the frame that is not padding, in pixels."""
    masks: NDArray[np.float32]
    """(M, S/4, S/4), share of each cell that the mask covers."""
    whole: NDArray[np.bool_]
    """(M,) whether each mask is a whole object."""
    categories: NDArray[np.int64]
    """(M,) category of each mask."""


@dataclass(frozen=True)
class Cut:
    """A rectangle of a photograph, and its size in the frame."""

    box: tuple[float, float, float, float]
    size_hw: tuple[int, int]
    flip: bool

    def render(self, pixels: NDArray[np.uint8], stride: int = 1) -> NDArray[np.uint8]:
        """The rectangle of an image (H, W) or (H, W, 3), resized with antialiasing."""
        size = self.size_hw[1] // stride, self.size_hw[0] // stride
        resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, box=self.box))
        return resized[:, ::-1] if self.flip else resized


class Examples:
    """Random examples of photographs."""

    def __init__(self, photos: list[Photo], paste: float = 0.6) -> None:
        self.photos, self.paste = photos, paste
        self._chance = weights(photos)
        donors = [i for i, photo in enumerate(photos) if photo.source in PASTE_FROM]
        self._donors = np.array(donors)

    def sample(self, rng: np.random.Generator, side_px: int) -> Example:
        """One example in a frame of ``side_px``, with at least one mask."""
        while True:
            photo = self.photos[rng.choice(len(self.photos), p=self._chance)]
            example = _cut_out(rng, photo, _sample_cut(rng, photo, side_px), side_px)
            if len(self._donors) and rng.random() < self.paste:
                example = self._paste_object(rng, example)
            if len(example.masks):
                return example

    def _paste_object(self, rng: np.random.Generator, example: Example) -> Example:
        donor = self.photos[self._donors[rng.integers(len(self._donors))]]
        share = donor.areas / np.prod(donor.size_hw)
        at = int(rng.choice(len(share), p=share / share.sum()))
        if share[at] < 0.01:
            return example
        x0, y0, x1, y1 = donor.boxes[at]
        height, width = y1 - y0, x1 - x0
        side_px = len(example.image)
        scale = side_px * math.exp(rng.uniform(math.log(0.12), math.log(0.65))) / math.sqrt(height * width)
        scale = min(scale, 3.0, example.size_hw[0] / height, example.size_hw[1] / width)
        size_hw = tuple(max(8, int(n * scale) // MASK_STRIDE * MASK_STRIDE) for n in (height, width))
        if any(n > m for n, m in zip(size_hw, example.size_hw)):
            return example
        cut = Cut((x0, y0, x1, y1), (size_hw[0], size_hw[1]), bool(rng.random() < 0.5))
        mask = donor.mask(at) * np.uint8(255)
        alpha = cut.render(mask)[..., None].astype(np.float32) / 255
        colour = _jitter(rng, cut.render(donor.image))
        spare = [(m - n) // MASK_STRIDE for n, m in zip(size_hw, example.size_hw)]
        top, left = (int(rng.integers(n + 1)) * MASK_STRIDE for n in spare)
        image = example.image.copy()
        part = image[top : top + size_hw[0], left : left + size_hw[1]]
        part[:] = (part * (1 - alpha) + colour * alpha + 0.5).astype(np.uint8)
        pasted = np.zeros((side_px // MASK_STRIDE,) * 2, np.float32)
        small = cut.render(mask, MASK_STRIDE).astype(np.float32) / 255
        row, column = top // MASK_STRIDE, left // MASK_STRIDE
        pasted[row : row + small.shape[0], column : column + small.shape[1]] = small
        before = example.masks.sum((1, 2))
        masks = np.minimum(example.masks, 1 - pasted)
        after = masks.sum((1, 2))
        kept = (after >= LEAST_VISIBLE * before) & (after >= LEAST_CELLS)
        return Example(
            image,
            example.size_hw,
            np.concatenate([masks[kept], pasted[None]]),
            np.append(example.whole[kept], True),
            np.append(example.categories[kept], _categories(donor)[at]),
        )


def _sample_cut(rng: np.random.Generator, photo: Photo, side_px: int) -> Cut:
    """A cut around an object, a random one, or the whole photograph."""
    height, width = photo.size_hw
    kind = rng.choice(3, p=[0.4, 0.35, 0.25])
    if kind == 2:
        box = (0.0, 0.0, float(width), float(height))
    else:
        aspect = math.exp(rng.uniform(-0.35, 0.35)) * math.sqrt(width / height)
        if kind == 0:
            chance = np.sqrt(photo.areas)
            at = int(rng.choice(len(chance), p=chance / chance.sum()))
            share = math.exp(rng.uniform(math.log(0.015), math.log(0.5)))
            side = math.sqrt(float(photo.areas[at]) / share)
            x0, y0, x1, y1 = photo.boxes[at]
            centre = (x0 + x1) / 2, (y0 + y1) / 2
        else:
            side = math.sqrt(height * width) * rng.uniform(0.5, 1)
            centre = rng.uniform(0, width), rng.uniform(0, height)
        sides = [min(max(side * stretch, 48.0), n) for stretch, n in ((aspect, width), (1 / aspect, height))]
        # The centre may be anywhere in the middle 60 % of the cut.
        starts = [
            min(max(c - s * rng.uniform(0.2, 0.8), 0.0), n - s)
            for c, s, n in zip(centre, sides, (width, height))
        ]
        box = (starts[0], starts[1], starts[0] + sides[0], starts[1] + sides[1])
    long_side = side_px * (1.0 if rng.random() < 0.8 else rng.uniform(0.5, 1))
    stretch = math.exp(rng.uniform(-0.15, 0.15)) if rng.random() < 0.5 else 1.0
    cut_hw = (box[3] - box[1]) * stretch, box[2] - box[0]
    scale = long_side / max(cut_hw)
    height, width = (max(16, round(n * scale / MASK_STRIDE) * MASK_STRIDE) for n in cut_hw)
    size_hw = height, width
    return Cut(box, size_hw, bool(rng.random() < 0.5))


def _cut_out(rng: np.random.Generator, photo: Photo, cut: Cut, side_px: int) -> Example:
    image = np.full((side_px, side_px, 3), 127, np.uint8)
    image[: cut.size_hw[0], : cut.size_hw[1]] = _jitter(rng, cut.render(photo.image))
    x0, y0, x1, y1 = cut.box
    boxes = photo.boxes
    inside = (boxes[:, 0] < x1) & (boxes[:, 2] > x0) & (boxes[:, 1] < y1) & (boxes[:, 3] > y0)
    scale = np.prod(cut.size_hw) / ((x1 - x0) * (y1 - y0)) / MASK_STRIDE**2
    near = np.flatnonzero(inside & (photo.areas * scale >= LEAST_CELLS))
    if len(near) > MAX_MASKS:
        chance = np.sqrt(photo.areas[near])
        near = rng.choice(near, MAX_MASKS, replace=False, p=chance / chance.sum())
    masks = np.zeros((len(near), side_px // MASK_STRIDE, side_px // MASK_STRIDE), np.float32)
    for row, at in zip(masks, near):
        small = cut.render(photo.mask(int(at)) * np.uint8(255), MASK_STRIDE)
        row[: small.shape[0], : small.shape[1]] = small
    masks /= 255
    seen = masks.sum((1, 2))
    share = seen / (np.prod(cut.size_hw) / MASK_STRIDE**2)
    kept = (seen >= LEAST_CELLS) & (seen >= LEAST_VISIBLE * photo.areas[near] * scale) & (share < 0.95)
    return Example(
        image,
        cut.size_hw,
        masks[kept],
        np.full(int(kept.sum()), photo.whole),
        _categories(photo)[near][kept],
    )


def _categories(photo: Photo) -> NDArray[np.int64]:
    """Categories of a photograph's masks; other sources' differ from COCO's, which have the same numbers."""
    return photo.categories + (0 if photo.source == "coco" else 1000)


def _jitter(rng: np.random.Generator, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Change brightness, contrast, saturation and the colours' balance of an image (H, W, 3)."""
    if rng.random() < 0.25:
        return image
    pixels = image.astype(np.float32)
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    saturation = 0.0 if rng.random() < 0.05 else rng.uniform(0.6, 1.4)
    contrast, brightness = rng.uniform(0.7, 1.3), rng.uniform(-25, 25)
    gains = rng.uniform(0.92, 1.08, 3).astype(np.float32) * np.float32(contrast)
    middle = np.float32(grey.mean())
    pixels = grey[..., None] + (pixels - grey[..., None]) * np.float32(saturation)
    pixels = (pixels - middle) * gains + middle + np.float32(brightness)
    return np.clip(pixels, 0, 255).astype(np.uint8)
