"""Decoded images are kept up to a number of bytes, and the oldest ones go first."""

import numpy as np
import pytest

from ray_wsss.data.image_files.decoded import DecodedImages


def test_the_images_used_last_are_not_decoded_again() -> None:
    decoded: list[int] = []
    images = DecodedImages(bytes=300)  # three of them

    def get(key: int) -> None:
        def decode() -> np.ndarray:
            decoded.append(key)
            return np.full((10, 10), key, np.uint8)

        assert (images.get(key, decode) == key).all()

    for key in (1, 2, 3, 1, 4, 1, 2):
        get(key)
    assert decoded == [1, 2, 3, 4, 2]  # 4 took the place of 2, which had waited longest
    assert images.held == 300


def test_an_image_above_the_limit_is_not_kept() -> None:
    images = DecodedImages(bytes=99)
    assert images.get("large", lambda: np.ones((10, 10), np.uint8)).sum() == 100
    assert images.held == 0
    assert not images.arrays


def test_an_error_is_not_kept() -> None:
    images = DecodedImages()

    def broken() -> np.ndarray:
        raise ValueError("truncated")

    for _ in range(2):
        with pytest.raises(ValueError, match="truncated"):
            images.get("broken", broken)
    assert images.get("broken", lambda: np.zeros(1, np.uint8)).shape == (1,)
