"""Sources of an export: images and their labels, read one at a time.

Labels come from `label`, with scores, for a data set; or from `predict`, as PNGs, for a folder of
images or for a data set of the same images.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from ray_wsss.config.decode import DecodeConfig
from ray_wsss.data.image_files.convert import convert_image
from ray_wsss.data.images import choose_orientation, decode_mask, probe_image
from ray_wsss.data.piece_streams import PIECE_BYTES
from ray_wsss.data.reader import ShardReader, open_shard
from ray_wsss.data.schema import DatasetMetadata, locate
from ray_wsss.errors import UserError
from ray_wsss.export.record import MaskScores
from ray_wsss.label_format import LabelMap
from ray_wsss.runs.curation.masks import KEPT
from ray_wsss.runs.manifest import dataset_hash, file_hash, require_finished
from ray_wsss.runs.read_chunks import plan_chunks, read_chunk
from ray_wsss.stages.label import score_of
from ray_wsss.storage import parse_path, printable, why_unreadable

IMAGE_COLUMNS = ("image_id", "image", "orientation")


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledObject:
    """SAM's mask of an annotated object."""

    class_index: int
    rle: str
    """The mask in COCO's compressed RLE, of the image's size."""
    scores: MaskScores


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledImage:
    """One image with its labels."""

    image_id: str
    data: bytes = b""
    """Content of the image file."""
    orientation: int = 1
    """EXIF orientation, 1..8, to decode ``data`` with."""
    label_map: LabelMap = field(default_factory=lambda: np.zeros((0, 0), np.uint8))
    """(H, W): 0 background, class c as c + 1, ignored pixels as `label_format` says."""
    scores: Mapping[int, MaskScores] = field(default_factory=dict)
    """Scores by class index; empty if unknown."""
    objects: Sequence[LabelledObject] = ()
    """SAM's masks of annotated objects; empty if CAMs prompted SAM."""
    kept: bool = False
    """True for a mask that somebody made by hand, which has no score."""
    doubt: float | None = None
    """Doubt about the label, in [0, 1], see `runs.curation.doubt`; None if it was not asked for."""
    error: str | None = None
    """Why the image has no labels, or none that fit it; the other fields are then empty."""


class ExportSource(Protocol):
    """Labelled images, in the same order every time."""

    class_names: Sequence[str]
    has_scores: bool
    depends_on: Mapping[str, Any]
    """Paths and hashes that identify the images and labels, for `runs.manifest.Output`."""

    def image_ids(self) -> Iterator[str]: ...
    def __iter__(self) -> Iterator[LabelledImage]: ...


class LabelSource:
    """The output of `label`, and the data set that it labels.

    Raises:
        UserError: a folder is not a finished output of `label` or not a data set.
    """

    has_scores = True

    def __init__(self, labels: Path, dataset: Path) -> None:
        require_finished(labels, "label")
        self.class_names: Sequence[str] = DatasetMetadata.load(dataset).class_names
        self.dataset = dataset
        self.reader = ShardReader(labels)
        # Rows are read in order, so more than the row group in use would only fill the memory.
        self.reader.cache_bytes = 16 * PIECE_BYTES
        self.depends_on: Mapping[str, Any] = {
            "dataset.sha256": dataset_hash(dataset),
            "labels": file_hash(labels / "manifest.json"),
        }

    def image_ids(self) -> Iterator[str]:
        return _dataset_ids(self.dataset)

    def __iter__(self) -> Iterator[LabelledImage]:
        for position, row in enumerate(_dataset_rows(self.dataset)):
            label = self.label_of(row["image_id"], position)
            yield self.join(row, label)

    def join(self, row: Mapping[str, Any], label: Mapping[str, Any]) -> LabelledImage:
        """An image of the data set with its label row."""
        segments = label["segments"] or []
        of_objects = [segment for segment in segments if segment.get("object_index") is not None]
        scores = {} if of_objects else {s["class_index"]: _scores_of(s) for s in segments}
        image = _join(row, label["pseudo_label"], len(self.class_names), label["error"], scores)
        if image.error is not None:
            return image
        return replace(image, objects=list(map(_object_of, of_objects)), kept=label.get("source") == KEPT)

    def label_of(self, image_id: str, position: int) -> dict[str, Any]:
        """Label row of an image at a row of the data set.

        `label` keeps the data set's order, so an index of ids is rarely needed.
        """
        if position < len(self.reader) and self.reader.read(position, ["image_id"])["image_id"] == image_id:
            return self.reader.read(position)
        reason = f"it has no label in {self.reader.dataset}"
        return self.reader.find(image_id) or {"pseudo_label": None, "error": reason, "segments": None}


class PredictionSource:
    """The output of `predict`, with the folder it was made from or a data set of the same images.

    The images of a data set are found by their ids. `predict` names its masks after image files; a data set
    made from a folder or a CSV has those file names as ids, one made from VOC has them without suffix.

    Raises:
        UserError: a folder is not a finished output of `predict`, or none of the images has a mask.
    """

    has_scores = False

    def __init__(self, predictions: Path, images: Path) -> None:
        # Pictures of an export look as the segmenter saw them.
        self.decode = DecodeConfig.from_noted(require_finished(predictions, "predict"))
        self.predictions, self.images = predictions, images
        entries = json.loads((predictions / "classes.json").read_text(encoding="utf-8"))
        self.class_names: Sequence[str] = tuple(entry["name"] for entry in entries[1:])
        self.masks: dict[str, str] = json.loads((predictions / "masks.json").read_text(encoding="utf-8"))
        self.failed = _failures(predictions)
        self.is_dataset = (images / "metadata.json").is_file()
        self.depends_on: Mapping[str, Any] = {
            "images": dataset_hash(images) if self.is_dataset else str(images.absolute()),
            "predictions": file_hash(predictions / "manifest.json"),
            "predictions.masks": file_hash(predictions / "masks.json"),
        }
        if self.is_dataset:
            self._by_id = _without_suffix(self.masks) | {printable(n): m for n, m in self.masks.items()}
            known = any(image_id in self._by_id for image_id in _dataset_ids(images))
        else:
            known = any((images / name).is_file() for name in self.masks)
        if not known:
            raise UserError(
                f"--images {images} has none of the {len(self.masks)} images of --predictions {predictions}, "
                f"such as {next(iter(self.masks), '')}"
            )

    def image_ids(self) -> Iterator[str]:
        return _dataset_ids(self.images) if self.is_dataset else map(printable, self.masks)

    def mask_of(self, image_id: str) -> bytes | None:
        """Label map (PNG) of an image of the data set; None if there is none or it can't be read."""
        return self._read_mask(self._by_id.get(image_id))[0]

    def __iter__(self) -> Iterator[LabelledImage]:
        rows = _dataset_rows(self.images) if self.is_dataset else map(self._read_file, self.masks)
        for row in rows:
            name = self._by_id.get(row["image_id"]) if self.is_dataset else self.masks[row["name"]]
            png, why = self._read_mask(name) if "error" not in row else (None, row["error"])
            yield _join(row, png, len(self.class_names), self.failed.get(row["image_id"], why), {})

    def _read_file(self, name: str) -> dict[str, Any]:
        row: dict[str, Any] = {"image_id": printable(name), "name": name}
        path, outside = locate(self.images, name)
        if outside is not None:
            return row | {"error": outside}
        try:
            data = convert_image(parse_path(path).read_bytes(), self.decode).data
            return row | {"image": data, "orientation": choose_orientation(probe_image(data), None)}
        except OSError as error:
            return row | {"error": why_unreadable(error, name)}
        except ValueError as error:
            return row | {"error": str(error)}

    def _read_mask(self, name: str | None) -> tuple[bytes | None, str | None]:
        if name is None:
            return None, "there is no prediction for it"
        path, outside = locate(self.predictions / "masks", name)
        try:
            return (parse_path(path).read_bytes(), None) if outside is None else (None, outside)
        except OSError as error:
            return None, f"its mask: {why_unreadable(error, name)}"


def _join(
    row: Mapping[str, Any],
    png: bytes | None,
    num_classes: int,
    error: str | None,
    scores: Mapping[int, MaskScores],
) -> LabelledImage:
    """Join the row of an image with its label map, or with the reason why it has no labels."""
    image_id = str(row["image_id"])
    try:
        if error is not None or png is None:
            raise ValueError(error or "there is no label map for it")
        label_map, orientation = decode_mask(png, num_classes), row["orientation"]
        info = probe_image(row["image"])
        image_hw = (info.width, info.height) if orientation >= 5 else (info.height, info.width)
        if label_map.shape != image_hw:
            size = f"{label_map.shape[1]}x{label_map.shape[0]}"
            raise ValueError(f"its label map is {size} pixels, the image {image_hw[1]}x{image_hw[0]}")
        return LabelledImage(
            image_id=image_id,
            data=row["image"],
            orientation=orientation,
            label_map=label_map,
            scores=scores,
        )
    except ValueError as problem:
        return LabelledImage(image_id=image_id, error=str(problem))


def _scores_of(segment: Mapping[str, Any]) -> MaskScores:
    return MaskScores(
        score=score_of(segment),
        predicted_iou=segment["sam_score"],
        stability_score=segment.get("stability_score"),  # labels of earlier versions have none
        cam_mean=segment["cam_mean"],
        points_xy=segment["points_xy"],
        point_labels=segment.get("point_labels") or (),
        box_xyxy=segment.get("box_xyxy"),
    )


def _object_of(segment: Mapping[str, Any]) -> LabelledObject:
    return LabelledObject(class_index=segment["class_index"], rle=segment["rle"], scores=_scores_of(segment))


def _dataset_rows(dataset: Path) -> Iterator[dict[str, Any]]:
    """Rows of a data set; the images of one chunk are in memory at a time."""
    for chunk in plan_chunks(dataset):
        table = read_chunk(chunk, IMAGE_COLUMNS)
        for at in range(len(table)):
            yield table.slice(at, 1).to_pylist()[0]


def _dataset_ids(dataset: Path) -> Iterator[str]:
    for chunk in plan_chunks(dataset):
        yield from read_chunk(chunk, ["image_id"])["image_id"].to_pylist()


def _without_suffix(masks: Mapping[str, str]) -> dict[str, str]:
    """Masks by image name without suffix; names that several images share are left out."""
    found: dict[str, str] = {}
    shared = set()
    for name, mask in masks.items():
        stem = printable(str(PurePosixPath(name).with_suffix("")))
        if stem in found:
            shared.add(stem)
        found[stem] = mask
    return {stem: mask for stem, mask in found.items() if stem not in shared}


def _failures(predictions: Path) -> dict[str, str]:
    """Reasons of failures in `predict`, by image."""
    path = predictions / "errors.parquet"
    if not path.exists():
        return {}
    with open_shard(path) as file:
        return {row["image"]: row["reason"] for row in file.read().to_pylist()}
