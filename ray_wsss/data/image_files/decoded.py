"""Images that stay decoded in memory from one epoch to the next."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from numpy.typing import NDArray
from torch.utils.data import get_worker_info

_BYTES = 256 * 2**20
"""Bytes of decoded images that a training keeps, in all its loading processes together."""


class DecodedImages:
    """The decoded images and masks that were used last, up to a number of bytes.

    Few images that are drawn again and again need not be decoded in every epoch: without this, decoding takes
    a tenth of the demo's steps.

    Args:
        bytes: most bytes of arrays; None: this loading process's share of `_BYTES`.
    """

    def __init__(self, bytes: int | None = None) -> None:
        self.bytes, self.held = bytes, 0
        self.arrays: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()

    def get(self, key: Hashable, decode: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array of ``key``, which is decoded if it is not held. It must not be changed."""
        if key in self.arrays:
            self.arrays.move_to_end(key)
            return self.arrays[key]
        array = self.arrays[key] = decode()
        self.held += array.nbytes
        while self.held > self._most():
            self.held -= self.arrays.popitem(last=False)[1].nbytes
        return array

    def _most(self) -> int:
        if self.bytes is None:
            # Only a loading process knows how many there are.
            worker = get_worker_info()
            self.bytes = _BYTES // (worker.num_workers if worker is not None else 1)
        return self.bytes
