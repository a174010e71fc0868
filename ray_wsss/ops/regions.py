"""Divide a CAM into one region per peak, from which prompts are made; box and middle of a mask."""

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from skimage.segmentation import watershed


def peak_regions(
    cam: Float[np.ndarray, "H W"], points_yx: Int[np.ndarray, "P 2"], tau: float
) -> Int[np.ndarray, "H W"]:
    """Assign each pixel above ``tau`` that is connected to a peak to one of the peaks, by watershed.

    Args:
        cam: CAM of one class, in [0, 1].
        points_yx: peaks, in pixels. If one of them is not above ``tau`` (such as the global maximum of a
            class that activates weakly), half the height of the lowest peak takes the place of ``tau``.
        tau: threshold, exclusive.

    Returns:
        k + 1 in the region of peak k, 0 elsewhere. Every region holds at least its own peak.
    """
    markers = np.zeros(cam.shape, np.int32)
    markers[tuple(points_yx.T)] = 1 + np.arange(len(points_yx))
    heights = cam[tuple(points_yx.T)]
    level = tau if (heights > tau).all() else 0.5 * heights.min(initial=2 * tau)
    return watershed(-cam, markers, mask=(cam > min(level, tau)) | (markers > 0))


def box_around(region: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Bounding box of a mask that is not empty: left, top, right and bottom edge in pixels."""
    ys, xs = np.nonzero(region)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def inmost(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """The pixel (y, x) farthest from the edge of a mask, and from the edge of its array."""
    depth = np.asarray(distance_transform_edt(np.pad(mask, 1)))[1:-1, 1:-1]
    y, x = divmod(int(depth.argmax()), mask.shape[1])
    return y, x
