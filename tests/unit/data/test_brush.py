"""Brush regions of Label Studio, against a decoder that reads the stream bit by bit."""

import numpy as np
import pytest
from brush_reading import read_bit_by_bit
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_wsss.data.label_studio import decode_brush, encode_brush

Run = tuple[bool, int, list[int]]
"""A run: True if it has one value, the index of the width of its length, and its values."""


def pack(size: int, runs: list[Run], widths: tuple[int, ...] = (3, 4, 8, 16), value_bits: int = 8) -> bytes:
    bits = f"{size:032b}{value_bits - 1:05b}" + "".join(f"{width - 1:04b}" for width in widths)
    for repeated, which, values in runs:
        bits += f"{repeated:b}{which:02b}{len(values) - 1:0{widths[which]}b}"
        bits += "".join(f"{value:0{value_bits}b}" for value in (values[:1] if repeated else values))
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))


RUNS = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 60), st.sampled_from([0, 1, 255])).map(lambda r: (True, 2, [r[1]] * r[0])),
        st.lists(st.sampled_from([0, 0, 7, 255]), min_size=1, max_size=16).map(lambda v: (False, 1, v)),
        st.lists(st.sampled_from([0, 128]), min_size=1, max_size=8).map(lambda v: (False, 0, v)),
    ),
    max_size=12,
)


@given(RUNS)
@settings(max_examples=100)
def test_runs_of_any_kind(runs: list[Run]) -> None:
    """Runs that begin and end at any channel, as a canvas's colours make them."""
    width = 5
    count = sum(len(values) for _, _, values in runs)
    missing = -count % (4 * width) or 4 * width
    packed = pack(count + missing, [*runs, (False, 3, [9] * missing)])
    opacity = read_bit_by_bit(packed)[3::4].reshape(-1, width)
    np.testing.assert_array_equal(decode_brush(packed, *opacity.shape), opacity > 0)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (200, 150)])
@pytest.mark.parametrize("share", [0, 0.001, 0.5, 1])
def test_what_we_encode(shape: tuple[int, int], share: float) -> None:
    mask = np.random.default_rng(0).random(shape) < share
    packed = encode_brush(mask)
    rgba = read_bit_by_bit(packed).reshape(*shape, 4)
    np.testing.assert_array_equal(rgba, np.repeat(mask[..., None] * np.uint8(255), 4, axis=2))
    np.testing.assert_array_equal(decode_brush(packed, *shape), mask)


WHOLE: Run = (True, 2, [255] * 24)


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (b"", "ends too early"),
        (pack(24, [WHOLE])[:-1], "ends too early"),
        (pack(24, [(False, 2, [255] * 24)])[:-9], "ends too early"),
        (pack(24, [(*WHOLE[:2], [255] * 25)]), "more values than its image"),
        (pack(28, [(True, 2, [255] * 28)]), "of 7 pixels; expected those of 3x2"),
        (pack(2**32 - 1, []), "pixels; expected"),
        (pack(24, [WHOLE], value_bits=16), "values of 16 bits"),
    ],
)
def test_malformed(packed: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_brush(packed, 2, 3)
