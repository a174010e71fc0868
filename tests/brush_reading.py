"""A slow reading of Label Studio's brush regions, which tests compare the fast one with."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def read_bit_by_bit(packed: Sequence[int]) -> NDArray[np.uint8]:
    """Read as the decoder of thi.ng's rle-pack, https://github.com/thi-ng/umbrella."""
    bits, at = "".join(f"{byte:08b}" for byte in packed), 0

    def read(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    size, value_bits = read(32), read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < size:
        repeated = read(1)
        length = read(widths[read(2)]) + 1
        values += [read(value_bits)] * length if repeated else [read(value_bits) for _ in range(length)]
    return np.array(values, np.uint8)
