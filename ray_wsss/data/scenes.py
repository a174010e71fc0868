"""Generated scenes: images of objects whose class shows only on a small emblem.

Each object is a grey, textured body of random shape that carries a plate, and on the plate a
saturated emblem. The emblem alone tells the class, so a plain classifier's CAM lights up the
emblem and misses the body: the failure that S2C corrects. The nesting emblem < plate < body gives
SAM's three outputs (sub-part, part, whole) a definite meaning.

A scene is a pure function of its seed and size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASS_NAMES = ("red_disc", "yellow_square", "green_triangle", "cyan_ring", "blue_cross", "pink_star")
EMBLEM_RGB = (
    (226, 38, 30),
    (240, 208, 20),
    (30, 178, 50),
    (20, 206, 214),
    (42, 66, 232),
    (240, 60, 196),
)

Mask = NDArray[np.bool_]
Field = NDArray[np.floating]


@dataclass(frozen=True)
class SceneObject:
    """One object. The masks are its visible pixels, (H, W) bool, nested emblem < plate < body."""

    class_index: int
    body: Mask
    plate: Mask
    emblem: Mask


@dataclass(frozen=True)
class Scene:
    """An image (H, W, 3) uint8 RGB and its objects, in painting order."""

    image: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]


@lru_cache(maxsize=64)
def _grid(height: int, width: int) -> tuple[Field, Field]:
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    return ys, xs


def _noise(rng: np.random.Generator, height: int, width: int, cell_px: float) -> Field:
    """Smooth noise in about [-1, 1], (H, W), with features of about ``cell_px`` pixels."""
    rows, cols = max(2, round(height / cell_px)), max(2, round(width / cell_px))
    coarse = rng.uniform(-1, 1, (rows, cols)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _stripes(rng: np.random.Generator, height: int, width: int) -> Field:
    """Stripes or checks in [-1, 1], (H, W), at a random angle and period."""
    ys, xs = _grid(height, width)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 14)
    along = np.cos(angle) * xs + np.sin(angle) * ys
    wave = np.sin(2 * np.pi * along / period)
    if rng.random() < 0.4:
        across = np.cos(angle) * ys - np.sin(angle) * xs
        wave = wave * np.sin(2 * np.pi * across / period)
    return np.clip(3 * wave, -1, 1).astype(np.float32)


def _texture(rng: np.random.Generator, height: int, width: int) -> Field:
    """A random texture in about [-1, 1], (H, W)."""
    fine = _noise(rng, height, width, rng.uniform(2, 6))
    kind = rng.integers(3)
    if kind == 0:
        return fine
    if kind == 1:
        return 0.5 * fine + 0.5 * _noise(rng, height, width, rng.uniform(10, 30))
    return 0.3 * fine + 0.7 * _stripes(rng, height, width)


def _paint_background(rng: np.random.Generator, height: int, width: int) -> Field:
    """Tinted, textured ground, (H, W, 3) float in [0, 255]."""
    hue = rng.uniform(0, 2 * np.pi) + 0.5 * _noise(rng, height, width, 40)
    tint = np.stack([np.cos(hue), np.cos(hue - 2.094), np.cos(hue + 2.094)], axis=-1)
    value = rng.uniform(80, 185) + 28 * _texture(rng, height, width)
    return (value[..., None] * (1 + rng.uniform(0.08, 0.22) * tint)).astype(np.float32)


def _blob(rng: np.random.Generator, ys: Field, xs: Field, radius: float) -> Field:
    """Approximate signed distance, in pixels and positive inside, to a random closed shape around 0."""
    angle, aspect = rng.uniform(0, 2 * np.pi), rng.uniform(0.62, 1.0)
    u = np.cos(angle) * xs + np.sin(angle) * ys
    v = (np.cos(angle) * ys - np.sin(angle) * xs) / aspect
    kind = rng.integers(4)
    if kind == 0:  # superellipse: from a disc to a box
        power = rng.uniform(2, 8)
        return radius - (np.abs(u) ** power + np.abs(v) ** power) ** (1 / power)
    polar, phi = np.hypot(u, v), np.arctan2(v, u)
    if kind == 1:  # smooth blob
        waves = sum(rng.uniform(0, 0.3 / k) * np.cos(k * phi + rng.uniform(0, 6.28)) for k in range(2, 6))
        return radius * (0.85 + waves) - polar
    if kind == 2:  # polygon
        sector = 2 * np.pi / rng.integers(3, 8)
        return radius * 0.9 - polar * np.cos((phi % sector) - sector / 2) * 1.1
    return radius * (0.8 + 0.2 * np.cos(rng.integers(3, 8) * phi)) - polar  # gear


def _emblem(class_index: int, ys: Field, xs: Field, radius: float, angle: float) -> Field:
    """Approximate signed distance, in pixels and positive inside, to the emblem of a class."""
    u = np.cos(angle) * xs + np.sin(angle) * ys
    v = np.cos(angle) * ys - np.sin(angle) * xs
    polar, phi = np.hypot(u, v), np.arctan2(v, u)
    sector = 2 * np.pi / 3
    arms = np.minimum(np.abs(u), np.abs(v))
    return (
        radius - polar,
        0.85 * radius - np.maximum(np.abs(u), np.abs(v)),
        0.6 * radius - polar * np.cos((phi % sector) - sector / 2),
        0.3 * radius - np.abs(polar - 0.75 * radius),
        np.minimum(0.36 * radius - arms, radius - np.maximum(np.abs(u), np.abs(v))),
        radius * (0.78 + 0.3 * np.cos(5 * phi)) - polar,
    )[class_index].astype(np.float32)


def _blend(canvas: Field, distance: Field, colour: Field) -> None:
    """Paint ``colour`` where ``distance`` > 0, with a one-pixel soft edge, in place."""
    alpha = np.clip(distance + 0.5, 0, 1)[..., None]
    canvas += alpha * (colour - canvas)


def _paint_object(
    rng: np.random.Generator, canvas: Field, class_index: int, centre_yx: tuple[float, float], radius: float
) -> tuple[Mask, Mask, Mask]:
    height, width = canvas.shape[:2]
    ys, xs = _grid(height, width)
    dy, dx = ys - centre_yx[0], xs - centre_yx[1]
    angle = rng.uniform(0, 2 * np.pi)
    off_y, off_x = np.sin(angle) * radius * 0.55, np.cos(angle) * radius * 0.55

    # The plate straddles the body's rim, as a head does, so bodies have two parts and varied outlines.
    plate = _blob(rng, dy - off_y, dx - off_x, max(6.5, radius * rng.uniform(0.42, 0.55)))
    body = np.maximum(_blob(rng, dy, dx, radius), plate)
    emblem_radius = max(5.0, radius * rng.uniform(0.26, 0.34))
    emblem = _emblem(class_index, dy - off_y, dx - off_x, emblem_radius, rng.uniform(0, 6.28))
    emblem = np.minimum(emblem, plate - 1)

    ground = float(canvas[body > 0].mean()) if (body > 0).any() else 128.0
    # The body's brightness differs from that of the ground under it, so that its edge is visible.
    choices = [v for v in rng.uniform(25, 230, 12) if abs(v - ground) > 35] or [ground - 60]
    grey = choices[0] + rng.uniform(8, 30) * _texture(rng, height, width)
    warmth = rng.uniform(-0.05, 0.05)
    grey_rgb = np.stack([grey * (1 + warmth), grey, grey * (1 - warmth)], axis=-1)
    _blend(canvas, body, grey_rgb)
    shift = rng.choice([-1, 1]) * rng.uniform(22, 45)
    _blend(canvas, plate, grey_rgb + shift)
    colour = np.array(EMBLEM_RGB[class_index], np.float32) * rng.uniform(0.85, 1.0)
    _blend(canvas, emblem, np.broadcast_to(colour, canvas.shape))
    return body > 0, plate > 0, emblem > 0


def _place(
    rng: np.random.Generator, count: int, height: int, width: int
) -> Iterator[tuple[tuple[float, float], float]]:
    """Centres (y, x) and radii, in pixels, of up to ``count`` objects that hardly overlap."""
    placed: list[tuple[float, float, float]] = []
    side = min(height, width)
    for _ in range(40 * count):
        if len(placed) == count:
            return
        radius = side * rng.uniform(0.14, 0.30 if count == 1 else 0.24)
        y, x = (
            rng.uniform(1.1 * radius, height - 1.1 * radius),
            rng.uniform(1.1 * radius, width - 1.1 * radius),
        )
        if all(np.hypot(y - py, x - px) > 1.1 * (radius + pr) for py, px, pr in placed):
            placed.append((y, x, radius))
            yield (y, x), radius


def make_scene(seed: int, height: int = 96, width: int = 96) -> Scene:
    """Draw the scene of ``seed``: 1 to 3 objects, sometimes two of one class.

    Args:
        seed: a non-negative integer; the same seed and size give the same scene.
        height: image height in pixels, at least 48.
        width: image width in pixels, at least 48.

    Raises:
        ValueError: the image is too small for visible emblems.
    """
    if min(height, width) < 48:
        raise ValueError(f"a scene of {height} x {width} px is too small; expected at least 48 x 48")
    rng = np.random.default_rng(seed)
    canvas = _paint_background(rng, height, width)
    painted: list[tuple[int, tuple[Mask, ...]]] = []
    for centre_yx, radius in _place(rng, int(rng.integers(1, 4)), height, width):
        repeat = painted and rng.random() < 0.25
        class_index = painted[-1][0] if repeat else int(rng.integers(len(CLASS_NAMES)))
        masks = _paint_object(rng, canvas, class_index, centre_yx, radius)
        painted = [(c, tuple(m & ~masks[0] for m in ms)) for c, ms in painted]
        painted.append((class_index, masks))
    canvas += rng.normal(0, 3, canvas.shape)
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    return Scene(image, tuple(SceneObject(c, *masks) for c, masks in painted))
