"""Label a few images in this process, without Ray: for a quick look, and for notebooks.

The steps are those of the label stage: CAM, peaks, SAM, pseudo label.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ray_wsss.config import Recipe
from ray_wsss.config.decode import DecodeConfig
from ray_wsss.config.overrides import override
from ray_wsss.config.presets import DEFAULT_PRESET, PRESETS
from ray_wsss.data.coco import decode_rle
from ray_wsss.data.image_files.convert import decode_upright
from ray_wsss.data.images import decode_mask
from ray_wsss.errors import UserError, did_you_mean
from ray_wsss.label_format import LabelMap
from ray_wsss.models.promptable.build import input_frame
from ray_wsss.ops.resize import resize_maps, scale_images, shrink, to_tensor
from ray_wsss.ops.tiles import needs_tiles
from ray_wsss.runs.classifier_side import warn_of_large_views
from ray_wsss.runs.prepared_images import PreparedImage, PrepareImages
from ray_wsss.runs.small_views import SmallViews
from ray_wsss.stages.cams import cams_of, scale_for_classifier
from ray_wsss.stages.label import SamLabeller, score_of
from ray_wsss.stages.tiles.cams import tiled_cams, tiled_probabilities
from ray_wsss.storage import parse_path, why_unreadable

log = logging.getLogger(__name__)

ImageLike = str | Path | NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundClass:
    """One class that was labelled in an image."""

    name: str
    class_index: int
    """Index of the class, from 0; the label map holds ``class_index + 1``."""
    probability: float
    """Probability that the classifier gives the class, in [0, 1]."""
    score: float
    """SAM's predicted IoU of the mask times the mean CAM over it, in [0, 1]."""
    mask: NDArray[np.bool_]
    """(H, W), SAM's mask of the class, before classes compete for pixels."""
    points_xy: NDArray[np.float32]
    """(P, 2), the points (x, y) that prompted SAM, in pixels."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledPicture:
    """One image with its pseudo label; after an ``error``, the arrays are empty."""

    source: str
    """Path or URI of the image, or the name of an array, such as "array 0"."""
    image: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 0, 3), np.uint8))
    """(H, W, 3) RGB, upright."""
    label_map: LabelMap = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    """(H, W), pseudo label: 0 background, class c as c + 1."""
    cam: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    """(H, W), highest CAM over the labelled classes, in [0, 1]."""
    found: tuple[FoundClass, ...] = ()
    """The classes that were labelled, in the classifier's order."""
    probabilities: Mapping[str, float] = field(default_factory=dict)
    """Probability that the classifier gives each class it knows, in [0, 1], by class name."""
    error: str | None = None
    """Reason why labelling failed; None if it did not."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labelled classes."""
        return tuple(entry.name for entry in self.found)


class ImageLabeller:
    """Labels images one by one, with a classifier and SAM.

    Args:
        classifier: output of train-classifier.
        preset: settings to start from: "photos", "voc", "coco" or "demo".
        settings: changes to the preset by dotted key, such as ``{"sam.name": "vit_b", "label.tau": 0.4}``.
        device: torch device, such as "cuda"; by default a GPU if there is one, else the CPU.
        decode: how files of more than 8 bits or of many channels become RGB; by default `DecodeConfig`.

    Raises:
        UserError: the classifier or SAM's weights are missing, or a preset or setting is unknown.
    """

    def __init__(
        self,
        classifier: str | Path,
        *,
        preset: str = DEFAULT_PRESET,
        settings: Mapping[str, Any] | None = None,
        device: str | None = None,
        decode: DecodeConfig | None = None,
    ) -> None:
        if preset not in PRESETS:
            raise UserError(f"preset is {preset}; expected one of {', '.join(PRESETS)}")
        recipe: Recipe = override(PRESETS[preset], settings or {})
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        sam = recipe.sam.on(torch.device(device).type)
        if sam != recipe.sam:
            log.info("sam.name is %s (auto, on %s)", sam.name, device)
        folder = parse_path(str(classifier))
        self.labeller = SamLabeller(recipe.label, sam, folder, device)
        self.config, self.decode = self.labeller.config, decode
        warn_of_large_views(self.config, folder)
        self.prepare = PrepareImages(
            max_side_px=recipe.label.max_side_px,
            frame=input_frame(sam),
            tile_px=recipe.label.tile_px,
        )
        self.has_warned = False

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes that the classifier knows."""
        return self.labeller.spec.class_names

    def __call__(
        self,
        image: ImageLike,
        *,
        classes: Sequence[str] | None = None,
        threshold: float = 0.5,
        source: str = "array",
    ) -> LabelledPicture:
        """Label one image. If it can't be read, the result holds the reason in ``error``.

        Args:
            image: path or URI of an image file, or an array (H, W, 3) uint8 RGB.
            classes: names of the classes in the image; by default those that the classifier finds.
            threshold: lowest probability of a class that the classifier finds, in [0, 1].
            source: name of an array in the result.

        Raises:
            UserError: the classifier doesn't know a class in ``classes``.
        """
        chosen = self._indices(classes) if classes is not None else None
        source = source if isinstance(image, np.ndarray) else str(image)
        try:
            pixels = _read(image, self.decode)
            self._warn_if_small(source, (pixels.shape[0], pixels.shape[1]))
            probabilities = self._probabilities(pixels)
            if chosen is None:
                chosen = [k for k, p in enumerate(probabilities) if p >= threshold]
            prepared = self.prepare.prepare(source, pixels, tuple(chosen))
        except OSError as error:
            return LabelledPicture(source=source, error=why_unreadable(error, source))
        except ValueError as error:
            return LabelledPicture(source=source, error=str(error))
        return self._label(prepared, pixels, probabilities)

    def _indices(self, classes: Sequence[str]) -> list[int]:
        for name in classes:
            if name not in self.class_names:
                otherwise = f"it knows {', '.join(self.class_names[:20])}"
                hint = did_you_mean(name, self.class_names, otherwise)
                raise UserError(f"the classifier knows no class {name}; {hint}")
        return sorted({self.class_names.index(name) for name in classes})

    def _warn_if_small(self, source: str, image_hw: tuple[int, int]) -> None:
        """Warn of the first image that the classifier sees at less than half its size."""
        views = SmallViews.of(source, image_hw, self.config)
        if views.shrunk and not self.has_warned:
            self.has_warned = True
            log.warning(views.describe(self.config))

    @torch.no_grad()
    def _probabilities(self, pixels: NDArray[np.uint8]) -> list[float]:
        """Probability of each class; with tiles, the highest in a tile."""
        if needs_tiles((pixels.shape[0], pixels.shape[1]), self.config.tile_px):
            return tiled_probabilities(self.labeller.model, pixels, self.config)
        pixels = shrink(pixels, self.config.max_side_px)
        scale = scale_for_classifier((pixels.shape[0], pixels.shape[1]), self.config)
        seen = to_tensor([pixels], self.labeller.device)
        if scale < 1:  # scale_images would enlarge sides below 32 pixels
            seen = scale_images(seen, scale)
        return self.labeller.model(seen).logits[0].sigmoid().tolist()

    def _label(
        self, prepared: PreparedImage, pixels: NDArray[np.uint8], probabilities: Sequence[float]
    ) -> LabelledPicture:
        (row,) = self.labeller([prepared])[0].to_pylist()
        named = dict(zip(self.class_names, probabilities))
        found = [
            FoundClass(
                name=self.class_names[segment["class_index"]],
                class_index=segment["class_index"],
                probability=probabilities[segment["class_index"]],
                score=score_of(segment),
                mask=decode_rle(segment["rle"], prepared.image_hw),
                points_xy=np.array(segment["points_xy"], np.float32).reshape(-1, 2),
            )
            for segment in row["segments"]
        ]
        return LabelledPicture(
            source=prepared.image_id,
            image=pixels,
            label_map=decode_mask(row["pseudo_label"], len(self.class_names)),
            cam=self._cam(prepared),
            found=tuple(found),
            probabilities=named,
        )

    def _cam(self, prepared: PreparedImage) -> NDArray[np.float32]:
        """Highest CAM (H, W) over the image's classes, at the image's size; zeros without classes."""
        if not prepared.image_labels or prepared.pixels is None:
            return np.zeros(prepared.image_hw, np.float32)
        if needs_tiles(prepared.image_hw, self.config.tile_px):
            tiled = tiled_cams(self.labeller.model, prepared.pixels, prepared.image_labels, self.config)
            return tiled.highest()
        cams = cams_of(self.labeller.model, [prepared.pixels], [prepared.image_labels], self.config)
        return resize_maps(cams.cam.amax(0)[None, None], prepared.image_hw)[0, 0].cpu().numpy()


def label_images(
    images: Iterable[ImageLike],
    *,
    classifier: str | Path,
    classes: Sequence[str] | None = None,
    threshold: float = 0.5,
    preset: str = DEFAULT_PRESET,
    settings: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> list[LabelledPicture]:
    """Label images, in order. For several calls, use `ImageLabeller`, which loads the networks only once.

    Args:
        images: paths or URIs of image files, or arrays (H, W, 3) uint8 RGB.
        classifier: output of train-classifier.
        classes: names of the classes in all images; by default those that the classifier finds in each.
        threshold: lowest probability of a class that the classifier finds, in [0, 1].
        preset: settings to start from, as for `ImageLabeller`.
        settings: changes to the preset by dotted key, such as ``{"sam.name": "vit_b"}``.
        device: torch device, such as "cuda"; by default a GPU if there is one, else the CPU.

    Returns:
        A picture for each image; one that can't be read has the reason in ``error``.

    Raises:
        UserError: as `ImageLabeller`, or the classifier doesn't know a class in ``classes``.
    """
    labeller = ImageLabeller(classifier, preset=preset, settings=settings, device=device)
    return [
        labeller(image, classes=classes, threshold=threshold, source=f"array {k}")
        for k, image in enumerate(images)
    ]


def _read(image: ImageLike, decode: DecodeConfig | None) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) of an image; files are turned upright by their EXIF orientation, as in ingest."""
    if not isinstance(image, np.ndarray):
        return decode_upright(parse_path(str(image)).read_bytes(), decode)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"the array is {image.dtype} of shape {image.shape}; expected uint8 (H, W, 3), RGB")
    return np.ascontiguousarray(image)
