"""Compare kinds of prompts where they differ: one object with several peaks, several objects of a class."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from skimage.measure import label as connected_components

from ray_wsss.config import LabelConfig
from ray_wsss.data.coco import decode_rle
from ray_wsss.data.images import decode_image, decode_mask
from ray_wsss.data.objects import read_objects
from ray_wsss.data.reader import ShardReader
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.figures.prompt_figure import PromptExample
from ray_wsss.label_format import LabelMap, ignore_label
from ray_wsss.models.store import load_classifier
from ray_wsss.ops.regions import peak_regions
from ray_wsss.ops.resize import resize_maps, shrink
from ray_wsss.runs.classifier_side import with_classifier_side
from ray_wsss.runs.read_chunks import plan_chunks, read_chunk
from ray_wsss.stages.cams import cams_of

Case = Literal["one object, several peaks", "several objects"]
CASES: tuple[Case, ...] = ("one object, several peaks", "several objects")
_LEAST_SHARE = 0.002
"""Smallest object, as a share of the image's pixels; smaller parts are remains of occluded objects."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One class of one image, with the IoU that each kind of prompt reached."""

    image_id: str
    class_index: int
    objects: int
    """Number of connected parts of the class in the ground truth (`count_objects`)."""
    peaks: int
    """Number of point prompts of the class that lie inside its ground truth."""
    iou: Mapping[str, float]
    """IoU of SAM's mask of the class, before classes compete, with the ground truth, by kind of prompt."""

    @property
    def case(self) -> Case | None:
        """Case of the pair; None for one object with at most one peak."""
        if self.objects == 1:
            return CASES[0] if self.peaks > 1 else None
        return CASES[1]


def measure_pairs(dataset: Path, labels: Mapping[str, Path], num_labels: int) -> Iterator[Pair]:
    """Measure each class of each image that is in the ground truth and in the labels of all kinds.

    Args:
        dataset: data set with ground truth.
        labels: outputs of ``label`` for ``dataset``, by kind of prompt; peaks are the points of ``points``.
        num_labels: number of labels, background included.
    """
    truths = ShardReader(dataset)
    readers = {kind: ShardReader(folder) for kind, folder in labels.items()}
    for row in range(len(truths)):
        found = truths.read(row, ["image_id", "mask"])
        if found["mask"] is None:
            continue
        truth = decode_mask(found["mask"], num_labels - 1)
        segments = {kind: _segments(reader, found["image_id"]) for kind, reader in readers.items()}
        for class_index, (segment, *_) in segments["points"].items():
            inside = truth == class_index + 1
            if inside.any() and all(class_index in others for others in segments.values()):
                yield Pair(
                    image_id=found["image_id"],
                    class_index=class_index,
                    objects=count_objects(inside),
                    peaks=_count_inside(segment["points_xy"], inside),
                    iou={kind: _iou(of[class_index], truth, inside) for kind, of in segments.items()},
                )


def count_objects(inside: NDArray[np.bool_]) -> int:
    """Number of connected parts of a mask that are large enough to be objects; at least 1."""
    parts = np.asarray(connected_components(inside))
    _, areas = np.unique(parts[inside], return_counts=True)
    return max(1, int((areas >= _LEAST_SHARE * inside.size).sum()))


def choose_examples(pairs: Sequence[Pair], each: int) -> list[Pair]:
    """The ``each`` pairs of each case with the most objects, then the most peaks; their IoU plays no role."""
    chosen: list[Pair] = []
    for case in CASES:
        of_case = [pair for pair in pairs if pair.case == case]
        chosen += sorted(of_case, key=lambda pair: (-pair.objects, -pair.peaks))[:each]
    return chosen


def summarise(pairs: Sequence[Pair], kinds: Sequence[str]) -> dict[str, Any]:
    """Number of pairs and mean IoU of each kind, by case and for all pairs; the IoU is None without pairs."""
    groups = {case: [pair for pair in pairs if pair.case == case] for case in CASES} | {"all": list(pairs)}
    return {
        name: {
            "pairs": len(group),
            "iou": {k: float(np.mean([p.iou[k] for p in group])) if group else None for k in kinds},
        }
        for name, group in groups.items()
    }


def annotated_kinds(dataset: Path) -> list[str]:
    """Kinds of prompts that the objects of a data set have: annotated_points, annotated_boxes, or none."""
    if not DatasetMetadata.load(dataset).objects:
        return []
    found = set[str]()
    for chunk in plan_chunks(dataset):
        for rows in read_chunk(chunk, ["objects"])["objects"].to_pylist():
            for each in read_objects(rows) or ():
                if 1 in each.point_labels:
                    found.add("annotated_points")
                if each.box_xyxy is not None and not each.iscrowd:
                    found.add("annotated_boxes")
    return sorted(found, reverse=True)


def _segments(labels: ShardReader, image_id: str) -> dict[int, list[dict[str, Any]]]:
    """Segments of an image by class, several of annotated objects; empty if labelling failed on the image."""
    found = labels.find(image_id, ["segments"]) or {}
    by_class: dict[int, list[dict[str, Any]]] = {}
    for segment in found.get("segments") or ():
        by_class.setdefault(segment["class_index"], []).append(segment)
    return by_class


def _mask_of(segments: Sequence[Mapping[str, Any]], image_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """All pixels (H, W) of the segments of a class."""
    return np.any([decode_rle(segment["rle"], image_hw) for segment in segments], axis=0)


def _count_inside(points_xy: Sequence[Sequence[float]], inside: NDArray[np.bool_]) -> int:
    return sum(bool(inside[int(y), int(x)]) for x, y in points_xy)


def _iou(segments: Sequence[Mapping[str, Any]], truth: LabelMap, inside: NDArray[np.bool_]) -> float:
    """IoU of the segments of a class with the ground truth; ignored pixels don't count."""
    mask = _mask_of(segments, (truth.shape[0], truth.shape[1])) & (truth != ignore_label(truth))
    return float((mask & inside).sum() / (mask | inside).sum())


class ExampleMaker:
    """Makes examples of pairs for the figure; computes their CAMs again, on the CPU.

    Args:
        classifier: output of train-classifier that made the labels.
        labels: outputs of ``label`` for ``dataset``, by kind of prompt.
    """

    def __init__(
        self, config: LabelConfig, *, dataset: Path, classifier: Path, labels: Mapping[str, Path]
    ) -> None:
        self.config = with_classifier_side(config, classifier)
        self.model, _ = load_classifier(classifier)
        self.rows = ShardReader(dataset)
        self.class_names = DatasetMetadata.load(dataset).class_names
        self.labels = {kind: ShardReader(folder) for kind, folder in labels.items()}

    def __call__(self, pair: Pair) -> PromptExample:
        """The example of a pair: image, CAM, points, regions, ground truth, and mask and IoU of each kind."""
        columns = ["image", "orientation", "mask"]
        if any(kind.startswith("annotated") for kind in self.labels):
            columns.append("objects")
        row = self.rows.read(self.rows.index_of(pair.image_id), columns)
        image = decode_image(row["image"], row["orientation"])
        image_hw = (image.shape[0], image.shape[1])
        small = shrink(image, self.config.max_side_px)
        cams = cams_of(self.model, [small], [[pair.class_index]], self.config)
        cam = resize_maps(cams.cam[None], image_hw)[0, 0].numpy()
        segments = {
            kind: _segments(reader, pair.image_id)[pair.class_index] for kind, reader in self.labels.items()
        }
        objects = read_objects(row.get("objects")) or ()
        points_xy = np.array(segments["points"][0]["points_xy"], np.float32).reshape(-1, 2)
        return PromptExample(
            title=f"{self.class_names[pair.class_index]}, {pair.image_id}",
            image=image,
            cam=cam,
            points_xy=points_xy,
            regions=peak_regions(cam, points_xy[:, ::-1].astype(int), self.config.tau),
            truth=decode_mask(row["mask"], len(self.class_names)) == pair.class_index + 1,
            objects=[each for each in objects if each.class_index == pair.class_index],
            masks={kind: _mask_of(found, image_hw) for kind, found in segments.items()},
            iou=pair.iou,
        )
