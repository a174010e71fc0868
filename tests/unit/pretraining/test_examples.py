"""Training examples: image and masks go the same way."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from drawn_photos import COLOURS

from ray_wsss.pretraining import examples as module
from ray_wsss.pretraining.examples import MASK_STRIDE, Example, Examples
from ray_wsss.pretraining.photos import Photo

SIDE = 128


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours stay as they are, so that they tell the objects apart."""
    monkeypatch.setattr(module, "_jitter", lambda rng, image: image)


def sample(photos: list[Photo], paste: float) -> Iterator[Example]:
    source = Examples(photos, paste)
    return (source.sample(np.random.default_rng(seed), SIDE) for seed in range(40))


def coverage(image: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Share of each cell that has a colour."""
    near = np.abs(image.astype(int) - colour).sum(-1) < 60
    cells = SIDE // MASK_STRIDE
    return near.reshape(cells, MASK_STRIDE, cells, MASK_STRIDE).mean((1, 3))


@pytest.mark.usefixtures("plain")
def test_masks_lie_on_their_objects(photos: list[Photo]) -> None:
    for example in sample(photos, paste=0):
        for mask, category in zip(example.masks, example.categories):
            covered = coverage(example.image, COLOURS[category % 1000])
            assert np.abs(mask - covered).mean() < 0.02
            assert (mask > 0.5)[covered > 0.9].all()


@pytest.mark.usefixtures("plain")
def test_a_pasted_object_hides_what_it_covers(photos: list[Photo]) -> None:
    pasted = 0
    for before, after in zip(sample(photos, paste=0), sample(photos, paste=1)):
        if np.array_equal(before.image, after.image):
            continue
        *others, on_top = after.masks
        assert all((mask + on_top < 1.001).all() for mask in others)
        for mask, category in zip(after.masks, after.categories):
            # Objects of one colour may be several.
            assert (mask <= coverage(after.image, COLOURS[category % 1000]) + 0.6).all()
        pasted += 1
    assert pasted > 20


def test_the_rest_of_the_frame_is_padding(photos: list[Photo]) -> None:
    seen = set()
    for example in sample(photos, paste=0.5):
        height, width = example.size_hw
        assert example.image.shape == (SIDE, SIDE, 3)
        assert example.masks.shape[1:] == (SIDE // MASK_STRIDE, SIDE // MASK_STRIDE)
        assert not example.masks[:, height // MASK_STRIDE :].any()
        assert not example.masks[:, :, width // MASK_STRIDE :].any()
        assert (example.image[height:] == 127).all()
        assert (example.image[:, width:] == 127).all()
        assert len(example.masks) == len(example.whole) == len(example.categories) > 0
        seen.add(max(example.size_hw) == SIDE)
    assert seen == {True, False}


def test_a_seed_gives_an_example(photos: list[Photo]) -> None:
    for first, second in zip(sample(photos, paste=0.5), sample(photos, paste=0.5)):
        assert (first.image == second.image).all()
        assert (first.masks == second.masks).all()


def test_only_whole_objects_are_pasted(photos: list[Photo]) -> None:
    segments = [replace(photo, source="bsds500", whole=False) for photo in photos]
    for example in sample(segments, paste=1):
        assert not example.whole.any()
