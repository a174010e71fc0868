"""One geometry for image, label map and padding: they must agree pixel by pixel."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from ray_wsss.ops.geometry import Geometry

FILL = 255

sizes = st.integers(3, 40)


@st.composite
def geometries(draw) -> tuple[tuple[int, int], Geometry]:
    """Any image size and what `Geometry.sample` may make of it."""
    low = draw(st.integers(4, 40))
    image_hw = (draw(sizes), draw(sizes))
    geometry = Geometry.sample(
        image_hw,
        long_side_px=(low, low + draw(st.integers(0, 20))),
        crop_px=draw(st.integers(4, 40)),
        flip=True,
        generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31))),
    )
    return image_hw, geometry


def source_of(geometry: Geometry, image_hw: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (P,) and columns (P,) of the image, continuous, at the centres of the crop's pixels."""
    cells = torch.arange(geometry.crop_px, dtype=torch.float64)
    columns = geometry.crop_px - 1 - cells if geometry.flip else cells
    rows = (geometry.top + cells + 0.5) * image_hw[0] / geometry.scaled_hw[0]
    return rows, (geometry.left + columns + 0.5) * image_hw[1] / geometry.scaled_hw[1]


@settings(max_examples=80)
@given(geometries())
def test_labels_are_the_pixel_under_the_crops_pixel(case):
    (height, width), geometry = case
    rows, columns = source_of(geometry, (height, width))
    inside = ((rows > 0) & (rows < height))[:, None] & ((columns > 0) & (columns < width))
    assert torch.equal(geometry.inside()[0], inside)

    identity = torch.arange(height * width).view(1, height, width)
    label = geometry.apply(identity, fill=-1, nearest=True)[0]
    assert label.dtype == identity.dtype
    assert torch.equal(label != -1, inside)
    y, x = label // width, label % width
    # The pixel's centre lies within half a pixel of the exact place.
    assert ((y + 0.5 - rows[:, None]).abs()[inside] <= 0.5 + 1e-3).all()
    assert ((x + 0.5 - columns[None]).abs()[inside] <= 0.5 + 1e-3).all()
    assert inside.any()


@settings(max_examples=80)
@given(geometries())
def test_images_show_the_same_place_as_labels(case):
    """On a ramp, bilinear resizing gives the place itself, save where the border clamps it."""
    image_hw, geometry = case
    assume(
        min(geometry.scaled_hw) > 1
    )  # torch 2.14's antialiasing repeats row 0 where the result is 1 px wide
    height, width = image_hw
    rows, columns = source_of(geometry, image_hw)
    ramp = torch.stack(
        [
            (torch.arange(height) + 0.5)[:, None].expand(-1, width),
            (torch.arange(width) + 0.5).expand(height, -1),
        ]
    )
    shown = geometry.apply(ramp, fill=-1)
    inside = geometry.inside()[0]
    assert torch.equal((shown != -1).all(0), inside)
    for axis, place in enumerate((rows[:, None].expand_as(inside), columns.expand_as(inside))):
        step = image_hw[axis] / geometry.scaled_hw[axis]
        reach = max(1.0, step) + 0.5
        far = inside & (place > reach) & (place < image_hw[axis] - reach)
        # Antialiasing weighs whole pixels, so a shrunk ramp is not quite straight.
        atol = 2e-3 if step <= 1 else 0.1 * step
        assert_close(shown[axis].double()[far], place[far], rtol=0, atol=atol)


@settings(max_examples=50)
@given(geometries(), st.integers(0, 2**31))
def test_labels_invent_no_value(case, seed):
    image_hw, geometry = case
    generator = torch.Generator().manual_seed(seed)
    label = (torch.randint(0, 3, (1, *image_hw), generator=generator) * 100).to(torch.uint8)
    cropped = geometry.apply(label, fill=FILL, nearest=True)
    assert set(cropped.unique().tolist()) <= {*label.unique().tolist(), FILL}
    assert torch.equal(cropped[0] == FILL, ~geometry.inside()[0])


@settings(max_examples=50)
@given(geometries())
def test_a_flipped_crop_is_the_mirrored_crop(case):
    image_hw, geometry = case
    image = torch.rand(3, *image_hw)
    fields = {name: getattr(geometry, name) for name in ("scaled_hw", "top", "left", "crop_px")}
    plain, flipped = Geometry(**fields, flip=False), Geometry(**fields, flip=True)
    for nearest in (False, True):
        expected = plain.apply(image, fill=FILL, nearest=nearest).flip(-1)
        assert torch.equal(flipped.apply(image, fill=FILL, nearest=nearest), expected)
    assert torch.equal(flipped.inside(), plain.inside().flip(-1))


@settings(max_examples=100)
@given(geometries())
def test_crops_lie_in_the_image_and_small_images_in_the_crop(case):
    image_hw, geometry = case
    offsets = (geometry.top, geometry.left)
    for offset, side in zip(offsets, geometry.scaled_hw):
        spare = side - geometry.crop_px
        assert min(0, spare) <= offset <= max(0, spare)
    shown = [min(side, geometry.crop_px) for side in geometry.scaled_hw]
    assert int(geometry.inside().sum()) == shown[0] * shown[1]
    # The shape of the image stays, to the rounding of one pixel.
    scale = max(geometry.scaled_hw) / max(image_hw)
    for side, scaled in zip(image_hw, geometry.scaled_hw):
        assert scaled == pytest.approx(max(1, side * scale), abs=0.51)


def test_the_identity_is_exact():
    image = torch.rand(3, 32, 32)
    geometry = Geometry.sample(
        (32, 32), long_side_px=(32, 32), crop_px=32, flip=False, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(geometry.apply(image, fill=0), image)
    label = torch.randint(0, 256, (1, 32, 32)).to(torch.uint8)
    assert torch.equal(geometry.apply(label, fill=0, nearest=True), label)
    assert geometry.inside().all()


def test_padding_has_the_fill_value():
    geometry = Geometry(scaled_hw=(4, 4), top=-1, left=-2, crop_px=8, flip=False)
    cropped = geometry.apply(torch.ones(1, 8, 8), fill=0.25)[0]
    expected = torch.full((8, 8), 0.25)
    expected[1:5, 2:6] = 1
    assert torch.equal(cropped, expected)


def test_sampling_reaches_both_ends_and_depends_on_the_generator_alone():
    def sample(seed: int) -> Geometry:
        return Geometry.sample(
            (30, 60),
            long_side_px=(40, 43),
            crop_px=30,
            flip=True,
            generator=torch.Generator().manual_seed(seed),
        )

    drawn = [sample(seed) for seed in range(300)]
    assert {g.scaled_hw for g in drawn} == {(20, 40), (20, 41), (21, 42), (22, 43)}
    assert {g.flip for g in drawn} == {False, True}
    widest = [g for g in drawn if g.scaled_hw[1] == 43]
    assert {min(g.left for g in widest), max(g.left for g in widest)} == {0, 13}
    assert {g.top for g in drawn if g.scaled_hw[0] == 20} == set(range(-10, 1))
    assert drawn == [sample(seed) for seed in range(300)]


@settings(max_examples=80)
@given(geometries())
def test_points_of_the_crop_are_found_again_in_the_resized_image(drawn):
    _, geometry = drawn
    height, width = geometry.scaled_hw
    numbers = torch.arange(1, height * width + 1).view(1, height, width)
    crop = geometry.place(numbers, fill=0)[0]
    points = torch.cartesian_prod(torch.arange(geometry.crop_px), torch.arange(geometry.crop_px))
    y, x = geometry.to_scaled(points).unbind(1)
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    assert torch.equal(inside, geometry.inside()[0].flatten())
    assert torch.equal(crop.flatten()[inside], numbers[0, y[inside], x[inside]])
    assert not crop.flatten()[~inside].any()
