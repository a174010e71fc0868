"""Exports labels to the format of another tool, one image at a time, so that memory stays flat.

The output folder holds the format's own files, and

OUT/names.csv        columns name and image_id: the image behind each file name
OUT/errors.parquet   images that could not be exported, with reasons; absent if there are none
"""

import csv
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ray_wsss.config.export import ExportFilter, InstancesBy
from ray_wsss.console import counted
from ray_wsss.data.coco import decode_rle
from ray_wsss.data.file_names import FileNames
from ray_wsss.data.schema import write_errors
from ray_wsss.errors import UserError
from ray_wsss.export.files import StreamedFile
from ray_wsss.export.record import ExportedImage, ExportFormat, Instance, find_instances, instance_of, stacked
from ray_wsss.export.source import ExportSource, LabelledImage
from ray_wsss.label_format import LabelMap, ignore_label, label_format
from ray_wsss.runs.curation.review import Review
from ray_wsss.runs.manifest import Output
from ray_wsss.storage import drop_leftovers

log = logging.getLogger(__name__)


@dataclass
class ExportReport:
    """Counts and errors of an export."""

    images: int = 0
    instances: int = 0
    empty: int = 0
    """Images without an instance; the export includes them."""
    below_score: int = 0
    """Instances dropped for their score."""
    below_area: int = 0
    """Instances dropped for their area."""
    of_other_classes: int = 0
    """Classes dropped because they were not chosen, counted once per image."""
    rejected: int = 0
    """Images left out because a review rejects them."""
    errors: list[tuple[str, str]] = field(default_factory=list)
    """(image_id, reason)."""

    def describe(self, filters: ExportFilter, shown: int = 5) -> list[str]:
        """Lines to print: counts, and the first ``shown`` errors."""
        counts = f"{counted(self.images, 'image')} with {counted(self.instances, 'mask')} exported"
        lines = [f"{counts}, {counted(len(self.errors), 'error')}"]
        dropped = [
            (self.of_other_classes, "of other classes"),
            (self.below_score, f"below the score {filters.min_score}"),
            (self.below_area, f"smaller than {filters.min_area_px} pixels"),
        ]
        told = [f"{count:,} {why}" for count, why in dropped if count]
        if told:
            lines.append(f"masks left out: {', '.join(told)}")
        if self.empty:
            lines.append(f"{counted(self.empty, 'image')} exported without a mask")
        lines += [f"  {image_id}: {reason}" for image_id, reason in self.errors[:shown]]
        if len(self.errors) > shown:
            lines.append(f"  and {len(self.errors) - shown:,} more")
        return lines


def run_export(
    source: ExportSource,
    make_format: Callable[[Path, Sequence[str]], ExportFormat],
    *,
    out: Path,
    stage: str,
    settings: dict[str, Any],
    filters: ExportFilter,
    by: InstancesBy,
    review: Review | None = None,
    overwrite: bool | None = None,
) -> ExportReport | None:
    """Export all images of ``source``. Returns None if ``out`` holds the finished export already.

    Memory holds one image, one chunk of encoded images, and 16 bytes per name.

    Args:
        make_format: builds the format from a folder and class names; called after ``out`` is claimed.
        stage: name of the run in the manifest, such as "export voc".
        settings: settings of the format, for the manifest.
        by: what counts as an instance, see `export.record.find_instances`. Of an image that was labelled by
            its annotated objects, "components" are these objects.
        review: verdicts; images that it rejects are left out.
        overwrite: replace the content of ``out``, see `runs.manifest.Output.begin`.

    Raises:
        UserError: a class is unknown, a minimum score is set but ``source`` has no scores, ``out`` holds
            another run, or every image failed or is rejected.
    """
    kept = filters.keep_classes(source.class_names)
    if filters.min_score is not None and not source.has_scores:
        raise UserError("--min-score needs --labels; predictions have no scores")
    depends_on = dict(source.depends_on) | settings | {"instances": by, "classes": list(filters.classes)}
    depends_on |= {"min_score": filters.min_score, "min_area_px": filters.min_area_px}
    depends_on |= review.settings() if review is not None else {}
    output = Output(out, stage, depends_on)
    if output.begin(overwrite=overwrite) == "finished":
        output.log_finished(overwrite)
        return None
    drop_leftovers(out)
    export = _Export(source, kept, filters, by, review)
    report = export.run(make_format(out, [source.class_names[k] for k in kept]), out)
    output.finish()
    return report


class _Export:
    def __init__(
        self,
        source: ExportSource,
        kept: Sequence[int],
        filters: ExportFilter,
        by: InstancesBy,
        review: Review | None,
    ) -> None:
        self.review = review
        self.source, self.kept, self.filters = source, kept, filters
        self.by: InstancesBy = by
        self.report = ExportReport()
        before, self.format = label_format(len(source.class_names)), label_format(len(kept))
        # New label by old label. Dropped classes become background.
        self.new_label = np.zeros(before.ignore + 1, self.format.dtype)
        self.new_label[[k + 1 for k in kept]] = np.arange(1, len(kept) + 1)
        self.new_label[before.ignore] = self.format.ignore

    def run(self, target: ExportFormat, out: Path) -> ExportReport:
        names = FileNames(self.source.image_ids())
        listed = StreamedFile(out / "names.csv")
        listed.write("name,image_id\n")
        for position, labelled in enumerate(self.source):
            if self.review is not None and labelled.image_id in self.review.rejected:
                self.report.rejected += 1
                continue
            name, number = names.name(labelled.image_id), names.number(labelled.image_id, position)
            try:
                if labelled.error is not None:
                    raise ValueError(labelled.error)
                image = self._filtered(labelled, name, number)
                target.add(image)
            except ValueError as error:
                self.report.errors.append((labelled.image_id, str(error)))
                continue
            listed.write(_csv_line(name, labelled.image_id))
            self.report.images += 1
            self.report.instances += len(image.instances)
            self.report.empty += not image.instances
        self._write_errors(out)
        target.finish()
        listed.finish()
        return self.report

    def _filtered(self, labelled: LabelledImage, name: str, number: int) -> ExportedImage:
        labels = np.unique(labelled.label_map)
        class_count = len(self.source.class_names)
        ignore = ignore_label(labelled.label_map)
        strange = labels[(labels > class_count) & (labels != ignore)]
        if strange.size:
            raise ValueError(f"its label map holds {strange[0]}; expected 0 to {class_count}, or {ignore}")
        self.report.of_other_classes += int(((labels > 0) & (self.new_label[labels] == 0)).sum())
        label_map = self.new_label[labelled.label_map]
        scores = {new: labelled.scores[old] for new, old in enumerate(self.kept) if old in labelled.scores}
        if labelled.objects and self.by == "components":
            instances = self._objects(labelled, label_map)
        else:
            instances = []
            for instance in find_instances(label_map, scores, self.by):
                if self._passes(instance, labelled.kept):
                    instances.append(instance)
                else:
                    label_map[instance.box][instance.crop] = self.format.ignore
        return ExportedImage(
            image_id=labelled.image_id,
            name=name,
            number=number,
            data=labelled.data,
            orientation=labelled.orientation,
            label_map=label_map,
            instances=instances,
            doubt=labelled.doubt,
        )

    def _objects(self, labelled: LabelledImage, label_map: LabelMap) -> list[Instance]:
        """Instances of annotated objects; pixels of ``label_map`` that only dropped ones have are ignored."""
        image_hw = (label_map.shape[0], label_map.shape[1])
        new_class = {old: new for new, old in enumerate(self.kept)}
        found = [
            instance_of(new_class[each.class_index], decode_rle(each.rle, image_hw), each.scores)
            for each in labelled.objects
            if each.class_index in new_class
        ]
        kept = [instance for instance in found if self._passes(instance)]
        for dropped in (instance for instance in found if instance not in kept):
            lost = dropped.mask(image_hw) & (label_map == dropped.class_index + 1)
            for other in kept:
                if other.class_index == dropped.class_index:
                    lost[other.box] &= ~other.crop
            label_map[lost] = self.format.ignore
        for k in reversed(stacked(kept)):  # below objects of classes that weren't chosen
            part = label_map[kept[k].box]
            part[kept[k].crop & (part == 0)] = kept[k].class_index + 1
        return kept

    def _passes(self, instance: Instance, kept: bool = False) -> bool:
        """Tell whether an instance is exported; one of a mask made by hand has no score, and needs none."""
        score, least = instance.scores.score, self.filters.min_score
        if least is not None and not kept and (score is None or score < least):
            self.report.below_score += 1
            return False
        if instance.area < self.filters.min_area_px:
            self.report.below_area += 1
            return False
        return True

    def _write_errors(self, out: Path) -> None:
        errors = self.report.errors
        write_errors(errors, out)
        if not self.report.images and not errors:
            raise UserError(f"all {self.report.rejected:,} images are rejected in the review")
        if not self.report.images:
            raise UserError(f"all {len(errors)} images failed, the first is {errors[0][0]}: {errors[0][1]}")


def _csv_line(*values: str) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(values)
    return line.getvalue()
