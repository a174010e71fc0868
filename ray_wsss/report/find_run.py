"""Finds the output folders of a run, and those among them that belong together by their dependencies."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray_wsss.errors import UserError
from ray_wsss.runs.history import load_runs
from ray_wsss.runs.manifest import NewerFormatError, dataset_hash, file_hash, read_manifest
from ray_wsss.storage import parse_path

KINDS = {
    "labels": "label",
    "classifier": "train-classifier",
    "segmenter": "train-segmenter",
    "predictions": "predict",
}
"""Stage whose output a flag names, by flag."""


@dataclass(frozen=True, kw_only=True)
class StageFolder:
    """The output folder of one stage."""

    path: Path
    stage: str
    state: str
    version: str
    """Version of ray_wsss that wrote the folder."""
    settings: Mapping[str, Any]
    """Everything that the content depends on, by dotted key."""
    runs: Sequence[Mapping[str, Any]]
    """Records of the stage's runs, see `runs.history`; empty for folders of earlier versions."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Metrics that `evaluate` wrote to a JSON file."""

    path: Path
    content: Mapping[str, Any]


@dataclass(kw_only=True)
class FoundRun:
    """Everything that a report can show."""

    stages: list[StageFolder] = field(default_factory=list)
    datasets: list[Path] = field(default_factory=list)
    metrics: list[Metrics] = field(default_factory=list)
    dataset: Path | None = None
    """Data set of the gallery's images."""
    labels: StageFolder | None = None
    """Pseudo labels that the gallery shows."""
    classifier: StageFolder | None = None
    """Classifier that makes the gallery's CAMs."""
    segmenter: StageFolder | None = None
    """Segmenter that makes the gallery's predictions."""
    predictions: StageFolder | None = None
    """Output of predict that the gallery shows instead."""
    missing: list[str] = field(default_factory=list)
    """Sentences about content that the report lacks."""

    def of_stage(self, stage: str) -> list[StageFolder]:
        """All folders of one stage, such as "label"."""
        return [folder for folder in self.stages if folder.stage == stage]


def find_run(run: Path | None, given: Mapping[str, Path | None]) -> FoundRun:
    """Look for output folders in ``run``, and add the given ones.

    Args:
        run: output of run-all or demo, or of a single stage; None to use only ``given``.
        given: paths by name: "dataset", "metrics" and the keys of `KINDS`. The gallery prefers them over
            folders found in ``run``.

    Raises:
        UserError: nothing was found, or a given path is not the output that its name says.
        NewerFormatError: a given folder, or all that ``run`` holds, was written by a newer ray_wsss.
    """
    found = FoundRun()
    if run is not None:
        _look_through(run, found)
        if not (found.stages or found.datasets or found.metrics):
            raise UserError(
                f"{run} holds nothing of ray-wsss; expected the output of run-all, demo or a stage "
                "(or name folders with --labels, --dataset...)"
            )
    for name, stage in KINDS.items():
        path = given.get(name)
        if path is not None:
            setattr(found, name, _take(path, stage, found))
    _take_metrics(given.get("metrics"), found)
    if not (found.stages or given.get("dataset") or found.metrics):
        raise UserError("nothing to report on: give the folder of a run, or --labels, --classifier...")
    _choose(found, given.get("dataset"))
    return found


def _look_through(run: Path, found: FoundRun) -> None:
    if not run.is_dir():
        raise UserError(f"{run} is not a folder; expected the output of run-all, demo or a stage")
    newer: list[NewerFormatError] = []
    for folder in [run, *sorted(path for path in run.iterdir() if path.is_dir())]:
        try:
            stage = _stage_folder(folder)
        except NewerFormatError as error:
            newer.append(error)
            continue
        if stage is not None:
            found.stages.append(stage)
        elif _is_dataset(folder):
            found.datasets.append(folder)
    if (run / "metrics.json").is_file():
        _take_metrics(run / "metrics.json", found)
    if newer and not (found.stages or found.datasets or found.metrics):
        raise newer[0]
    found.missing += [f"{error}." for error in newer]


def _stage_folder(folder: Path) -> StageFolder | None:
    """The output in ``folder``; None if it has no readable manifest. Raises NewerFormatError."""
    try:
        manifest = read_manifest(folder)
    except NewerFormatError:
        raise
    except UserError:  # a broken manifest.json may be another program's
        return None
    if manifest is None:
        return None
    return StageFolder(
        path=folder,
        stage=str(manifest["stage"]),
        state=str(manifest["state"]),
        version=str(manifest["ray_wsss"]),
        settings=manifest["depends_on"],
        runs=load_runs(folder),
    )


def _is_dataset(folder: Path) -> bool:
    try:
        content = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and "format_version" in content and "class_names" in content


def _take(path: Path, stage: str, found: FoundRun) -> StageFolder:
    folder = _stage_folder(path)
    if folder is None or folder.stage != stage:
        what = f"the output of {folder.stage}" if folder else "nothing of ray-wsss"
        raise UserError(f"{path} holds {what}; expected the output of {stage}")
    if not any(known.path.absolute() == path.absolute() for known in found.stages):
        found.stages.append(folder)
    return folder


def _take_metrics(path: Path | None, found: FoundRun) -> None:
    if path is None:
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as JSON ({error}); expected the metrics of evaluate") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object; expected the metrics of evaluate")
    found.metrics.append(Metrics(path=path, content=content))


def _choose(found: FoundRun, dataset: Path | None) -> None:
    """Choose the gallery's folders that are not given; if possible, those behind the segmenter."""
    found.segmenter = found.segmenter or _first(found.of_stage("train-segmenter"))
    found.predictions = found.predictions or _first(found.of_stage("predict"))
    hashes = {file_hash(f.path / "manifest.json"): f for f in found.of_stage("label")}
    taught_by = hashes.get(found.segmenter.settings.get("labels", "")) if found.segmenter else None
    teacher = taught_by.settings.get("classifier") if taught_by else None
    if found.labels is None:
        of_teacher = [f for f in hashes.values() if teacher in (None, f.settings.get("classifier"))]
        # Prefer labels of images that the segmenter was not trained on: its predictions there tell more.
        found.labels = _first(sorted(of_teacher, key=lambda f: f is taught_by))
    by_annotations = found.labels is not None and found.labels.settings.get("prompts_from") == "annotations"
    if found.classifier is None and not by_annotations:
        wanted = found.labels.settings.get("classifier") if found.labels else teacher
        found.classifier = _with_weights(found.of_stage("train-classifier"), wanted)
    found.dataset = dataset or _dataset_of(found)


def _first(folders: Sequence[StageFolder]) -> StageFolder | None:
    return next(iter(folders), None)


def _with_weights(folders: Sequence[StageFolder], sha256: str | None) -> StageFolder | None:
    """First folder whose weights exist and have this hash; with None, any hash will do."""
    for folder in folders:
        weights = folder.path / "model.safetensors"
        if weights.is_file() and sha256 in (None, file_hash(weights)):
            return folder
    return None


def _dataset_of(found: FoundRun) -> Path | None:
    """Data set of the labels, else of a training, even if it was moved; else the only data set found."""
    candidates = (found.labels, found.segmenter, found.classifier)
    for folder in (folder for folder in candidates if folder is not None):
        named, sha256 = folder.settings.get("dataset"), folder.settings.get("dataset.sha256")
        if named is None:
            continue
        # The data set may have been moved together with the run.
        there = [path for path in (parse_path(named), *found.datasets) if _is_dataset(path)]
        same = [path for path in there if sha256 == dataset_hash(path)]
        if same:
            return same[0]
        if there and there[0] == parse_path(named):
            found.missing.append(
                f"{named} has changed since {folder.path} was made from it, or an earlier version of "
                "ray-wsss made that folder. The report matches images by their ids."
            )
            return there[0]
        if folder is found.labels:
            found.missing.append(
                f"The data set of {folder.path} is not at {named} any more, so there is no gallery. "
                "Name its new place with --dataset."
            )
            return None
    return found.datasets[0] if len(found.datasets) == 1 else None
