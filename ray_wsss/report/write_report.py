"""Writes the report of a run: one HTML file with the results of its stages."""

from collections.abc import Iterator
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray_wsss.config import LabelConfig
from ray_wsss.config.report import ReportOptions
from ray_wsss.data.reader import open_shard
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.errors import UserError
from ray_wsss.report.charts import histogram
from ray_wsss.report.find_run import FoundRun, StageFolder
from ray_wsss.report.gallery import GalleryImage
from ray_wsss.report.gallery_source import GallerySource, choose_images
from ray_wsss.report.history import describe_stage, describe_training, describe_work
from ray_wsss.report.html import LONG_TABLE, ClassRow, FailedImage, Report, Tile, render_report
from ray_wsss.report.metrics import make_confusions, make_table, measured
from ray_wsss.report.survey import Survey, survey
from ray_wsss.runs.dependencies import check_classes
from ray_wsss.runs.manifest import file_hash
from ray_wsss.storage import replace_atomically

_WITHOUT_RECORDS = ("demo", "export")
"""Beginnings of the names of stages that record no times, versions and hardware."""
_FAILED_SHOWN = 1000
"""Failed images that the page lists at most."""
_HISTOGRAMS = {
    "score": ("Score", "of each mask: SAM's predicted IoU times the mean CAM"),
    "sam_score": ("SAM's predicted IoU", "of each mask"),
    "stability_score": ("Stability score", "of each mask"),
    "cam_mean": ("Mean CAM", "over each mask"),
    "iou": ("IoU", "of each image: mean over its classes, background left out"),
}
"""Title and note of the histograms, by name in `report.survey.Survey.histograms`."""


def write_report(found: FoundRun, title: str, source: str, out: Path, options: ReportOptions) -> Report:
    """Write the report of ``found`` to ``out``; returns its content except the gallery's images.

    Args:
        source: path of the run, as the page shows it.

    Raises:
        UserError: files are damaged or were not written by ray_wsss.
    """
    report = Report(title=title, source=source, made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    surveyed = _survey(found)
    _add_history(report, found)
    _add_metrics(report, found, surveyed)
    failed = _failures(found)
    if surveyed is not None:
        _add_labels(report, surveyed, found.labels)
        failed += [(image, "label", reason) for image, reason in surveyed.failed]
    images = _gallery(report, found, surveyed, options, failed)
    report.missing += found.missing
    _say_missing(report, found)
    _add_failed(report, failed)
    report.tiles = _tiles(report, surveyed)
    with replace_atomically(out) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(render_report(report, images, options.thumbnail_px))
    return report


def _survey(found: FoundRun) -> Survey | None:
    if found.dataset is None:
        return None
    if found.labels is not None and not (found.labels.path / "shards").is_dir():
        found.missing.append(f"{found.labels.path} holds no labels yet.")
        found.labels = None
    return survey(found.dataset, found.labels.path if found.labels is not None else None)


def _add_history(report: Report, found: FoundRun) -> None:
    report.stages = [describe_stage(folder) for folder in found.stages]
    report.pipeline = [row for folder in found.stages if (row := describe_work(folder)) is not None]
    report.trainings = [row for folder in found.stages if (row := describe_training(folder)) is not None]


def _add_metrics(report: Report, found: FoundRun, surveyed: Survey | None) -> None:
    name = f"Pseudo labels ({found.labels.path.name})" if found.labels is not None else ""
    for title, note, figures in measured(found.metrics, surveyed, name):
        report.tables.append(make_table(title, note, figures))
        report.confusions += make_confusions(title, figures)


def _add_labels(report: Report, surveyed: Survey, labels: StageFolder | None) -> None:
    report.class_names = surveyed.class_names
    if labels is None:
        return
    for name, (title, note) in _HISTOGRAMS.items():
        if name in surveyed.histograms:
            report.histograms.append(histogram(title, note, surveyed.histograms[name].tolist()))
    report.classes = [
        ClassRow(name=surveyed.class_names[c], masks=count, score=surveyed.score_sums[c] / count)
        for c, count in sorted(surveyed.masks.items())
    ]
    if len(report.classes) > LONG_TABLE:
        report.classes.sort(key=lambda row: row.score)


def _gallery(
    report: Report,
    found: FoundRun,
    surveyed: Survey | None,
    options: ReportOptions,
    failed: list[tuple[str, str, str]],
) -> Iterator[GalleryImage]:
    """Images of the gallery. Once all are read, those that can't be shown are listed in ``report.failed``."""
    if surveyed is None or found.dataset is None or options.images == 0 or not surveyed.images:
        return iter(())
    chosen = choose_images(surveyed.images, options.images, options.seed)
    of_all = f"{len(chosen):,} of the {len(surveyed.images):,} images"
    by = "IoU" if any(image.iou is not None for image in surveyed.images) else "doubt"
    how = f", the best and the worst by {by} and some at random" if chosen[0].group else ""
    of_what = f"labels {found.labels.path}, " if found.labels is not None else ""
    report.gallery_note = f"{of_all}{how}; {of_what}data set {found.dataset}"
    if found.labels is not None:
        report.review_key = file_hash(found.labels.path / "manifest.json")[:16]
    unread: list[tuple[str, str]] = []
    gallery = GallerySource(
        found.dataset,
        found.labels.path if found.labels is not None else None,
        classifier=None if options.skip_cams else _usable(found.classifier, "classifier", found),
        config=_label_config(found.labels),
        segmenter=None if options.skip_predictions else _usable(found.segmenter, "segmenter", found),
        predictions=_usable_predictions(found),
        failed=unread,
    )

    def images() -> Iterator[GalleryImage]:
        yield from gallery(chosen)
        _add_failed(report, [*failed, *((image, "report", reason) for image, reason in unread)])

    return images()


def _label_config(labels: StageFolder | None) -> LabelConfig:
    """Settings that the labels were made with, so that the gallery shows the same CAMs."""
    settings = dict(labels.settings) if labels is not None else {}
    if settings and "label.classifier_side_px" not in settings:
        # Version 0.1 showed the classifier what SAM sees.
        settings["label.classifier_side_px"] = settings.get("label.max_side_px")
    known = {f.name: settings.get(f"label.{f.name}") for f in fields(LabelConfig)}
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
    return LabelConfig(**{name: value for name, value in given.items() if value is not None})


def _usable(model: StageFolder | None, kind: str, found: FoundRun) -> Path | None:
    """Folder of a network; None if its training is unfinished or its classes differ from the data set's."""
    if model is None or found.dataset is None:
        return None
    try:
        check_classes(found.dataset, model.path, kind)
    except UserError as error:
        found.missing.append(f"{error}.")
        return None
    return model.path


def _usable_predictions(found: FoundRun) -> Path | None:
    if found.predictions is None:
        return None
    if found.predictions.state == "finished":
        return found.predictions.path
    found.missing.append(f"{found.predictions.path} is unfinished, so the gallery does not show its masks.")
    return None


def _failures(found: FoundRun) -> list[tuple[str, str, str]]:
    """(image, stage, reason) of all failures that folders list; those of the labels come from the survey."""
    folders = [(folder.path, folder.stage) for folder in found.stages if folder is not found.labels]
    named = [*found.datasets, *([found.dataset] if found.dataset else [])]
    datasets = {path.resolve(): path for path in named}.values()  # one folder may have a relative path too
    failed = []
    for folder, stage in [*((path, "ingest") for path in datasets), *folders]:
        path = folder / "errors.parquet"
        if not path.is_file():
            continue
        with open_shard(path) as file:
            for row in file.read().to_pylist():
                failed.append((str(row.get("path") or row.get("image_id") or row.get("image")), stage,
                               str(row.get("reason"))))  # fmt: skip
    return failed


def _add_failed(report: Report, failed: list[tuple[str, str, str]]) -> None:
    report.failed_in_all = len(failed)
    report.failed = [
        FailedImage(image=image, stage=stage, reason=reason)
        for image, stage, reason in failed[:_FAILED_SHOWN]
    ]


def _say_missing(report: Report, found: FoundRun) -> None:
    """Add a sentence for each thing that the report lacks, with the flag that adds it."""
    dataset, stages = found.dataset, {folder.stage for folder in found.stages}
    absent = {
        "No data set, so there is no gallery. Name one with --dataset.": (
            dataset is None and found.labels is None
        ),
        "No pseudo labels, so there are no scores, points and masks. Name their folder with --labels.": (
            found.labels is None
        ),
        "No classifier that made these labels, so the gallery has no CAMs. Name one with --classifier.": (
            found.classifier is None
        ),
        "No segmenter and no predictions, so the gallery shows none. Name one with --segmenter.": (
            found.segmenter is None and found.predictions is None
        ),
        "No training, so there are no curves.": not report.trainings,
        "No metrics of 'ray-wsss evaluate'. Name its JSON file with --metrics.": not found.metrics,
        "The data set has no ground truth, so there is no IoU of single images.": (
            dataset is not None and not DatasetMetadata.load(dataset).has_masks
        ),
        "The metrics are from an earlier version of evaluate, which did not count confused classes.": (
            bool(report.tables) and not report.confusions
        ),
    }
    report.missing += [sentence for sentence, is_so in absent.items() if is_so]
    silent = [f.path.name for f in found.stages if not f.runs and not f.stage.startswith(_WITHOUT_RECORDS)]
    if silent:
        report.missing.append(
            f"No times, versions and hardware of {', '.join(silent)}: an earlier version of ray-wsss did not "
            "record them."
        )
    if "label" in stages and not report.pipeline and not silent:
        report.missing.append("No speeds: the stages did not run to their end.")


def _tiles(report: Report, surveyed: Survey | None) -> list[Tile]:
    tiles = []
    if surveyed is not None:
        note = f"{surveyed.unlabelled:,} of unknown labels, {surveyed.empty:,} with none of the classes"
        tiles.append(Tile(value=f"{len(surveyed.images):,}", label="images", note=note))
        if surveyed.masks:
            note = f"{surveyed.prompts:,} points"
            tiles.append(Tile(value=f"{surveyed.masks.total():,}", label="masks", note=note))
    if report.stages or surveyed is not None:
        tiles.append(Tile(value=f"{report.failed_in_all:,}", label="failed"))
    for table in report.tables:
        for column in table.columns:
            if column.note and column.title.startswith("CAM, fixed"):
                continue
            note = ", ".join(part for part in (table.title, column.note) if part)
            tiles.append(Tile(value=f"{100 * column.miou:.1f}", label=f"mIoU, {column.title}", note=note))
    return tiles
