"""The part of a CAM that belongs to each of its peaks: what boxes and masks as prompts are made of."""

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from skimage.segmentation import watershed


def peak_regions(
    cam: Float[np.ndarray, "H W"], points_yx: Int[np.ndarray, "P 2"], tau: float
) -> Int[np.ndarray, "H W"]:
    """Divide what is above ``tau`` and connected to a peak among the peaks, by watershed.

    Args:
        cam: in [0, 1].
        points_yx: peaks, in pixels. One that is not above ``tau`` itself, such as the guess for a class that
            activates weakly, has what is above half of its height instead.
        tau: the least value, exclusive.

    Returns:
        k + 1 in the region of peak k, 0 elsewhere. Every peak has one pixel at least, its own.
    """
    markers = np.zeros(cam.shape, np.int32)
    markers[tuple(points_yx.T)] = 1 + np.arange(len(points_yx))
    heights = cam[tuple(points_yx.T)]
    level = tau if (heights > tau).all() else 0.5 * heights.min(initial=2 * tau)
    return watershed(-cam, markers, mask=(cam > min(level, tau)) | (markers > 0))


def box_around(region: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The bounding box of a mask that is not empty: left, top, right, bottom edge in pixels."""
    ys, xs = np.nonzero(region)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
