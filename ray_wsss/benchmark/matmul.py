"""The rate of a device in matrix products, and the operations that SAM's encoder needs."""

import time
from copy import deepcopy

import torch
from segment_anything.modeling import ImageEncoderViT
from torch.utils.flop_counter import FlopCounterMode

from ray_wsss.config import EncoderPrecision
from ray_wsss.models.promptable.precision import DTYPES, matmul_precision

_SMALLEST = 128
_LARGEST = {"cuda": 8192, "cpu": 2048}
"""Rows and columns of matrices large enough for the best rate of any device."""
_LONG_ENOUGH_S = 0.02
"""Seconds of a product after which a larger one would hardly have a better rate. A processor that emulates a
precision would take minutes for the largest."""


class MatmulPeak:
    """Measures the rate of a product of two square matrices in a precision.

    The matrices are as large as they must be for one product to take 20 ms, and not larger than `_LARGEST`.
    """

    def __init__(self, device: torch.device, precision: EncoderPrecision) -> None:
        self.precision: EncoderPrecision = precision
        self.device = device
        self.side = _SMALLEST
        self._fill()
        while self.side < _LARGEST[device.type] and min(self._seconds(), self._seconds()) < _LONG_ENOUGH_S:
            self.side *= 2
            self._fill()

    def rate(self, times: int = 5) -> float:
        """Floating-point operations per second, best of ``times`` + 1 products; an addition counts as one."""
        return 2 * self.side**3 / min(self._seconds() for _ in range(times + 1))

    def _fill(self) -> None:
        dtype = DTYPES[self.precision]
        self.a, self.b = (torch.randn(self.side, self.side, device=self.device).to(dtype) for _ in range(2))

    def _seconds(self) -> float:
        wait(self.device)
        began = time.perf_counter()
        with matmul_precision(self.precision):
            torch.mm(self.a, self.b)
        wait(self.device)
        return time.perf_counter() - began


def wait(device: torch.device) -> None:
    """Wait until a GPU has done all of its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def encoder_flops(encoder: ImageEncoderViT) -> int:
    """Floating-point operations for one image, by segment_anything's formulas.

    Only matrix products and convolutions count.
    """
    side = encoder.img_size
    # Counting needs only shapes, so the meta device, which computes nothing, is enough.
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        deepcopy(encoder).to("meta", torch.float32)(torch.empty(1, 3, side, side))
    return counter.get_total_flops()
