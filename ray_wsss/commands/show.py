"""The command that labels single images and shows the result."""

import os
import sys
import tempfile
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from ray_wsss.commands.flags import DecodeFlags, Settings, SettingsFlags
from ray_wsss.config import LabelConfig, Recipe, SamConfig
from ray_wsss.config.decode import DecodeConfig
from ray_wsss.config.overrides import flatten
from ray_wsss.console import counted
from ray_wsss.errors import UserError
from ray_wsss.storage import is_remote, parse_path

if TYPE_CHECKING:
    from ray_wsss.figures.overview import OverviewRow
    from ray_wsss.stages.label_images import LabelledPicture

_CELL_INCHES = 3.0


@dataclass(frozen=True, kw_only=True)
class Show:
    """Label single images and show image, CAM, points and mask side by side; needs no data set, no Ray.
    With --labels and --dataset it shows images that were labelled, with their boxes and points."""

    images: tyro.conf.Positional[tuple[Path, ...]]
    """Image files; with --labels, ids of images of --dataset."""
    classifier: Path | None = None
    """Output of train-classifier, which labels the images."""
    labels: Path | None = None
    """Output of label, which is shown instead; needs --dataset."""
    dataset: Path | None = None
    """Data set that --labels belong to."""
    classes: tuple[str, ...] = ()
    """Classes in the images. Without it the classes that the classifier finds in each."""
    threshold: float = 0.5
    """Lowest probability of a class that the classifier finds, in [0, 1]."""
    out: Path | None = None
    """A .png file for all images, or a folder for a picture of each. Without it a window shows them."""
    decode: DecodeFlags = field(default_factory=DecodeConfig)
    settings: SettingsFlags = field(default_factory=Settings)
    label: LabelConfig = field(default_factory=LabelConfig)
    sam: SamConfig = field(default_factory=SamConfig)

    def run(self) -> None:
        self._check()
        if self.labels is not None:
            self._show_labels()
            return
        from ray_wsss.stages.label_images import ImageLabeller

        assert self.classifier is not None
        print(f"loading the classifier and SAM ({self.sam.name})", flush=True)
        recipe = Recipe(label=self.label, sam=self.sam)
        settings = {k: v for k, v in flatten(recipe).items() if k.split(".")[0] in ("label", "sam")}
        labeller = ImageLabeller(self.classifier, settings=settings, decode=self.decode)
        labelled = []
        for number, path in enumerate(self.images, 1):
            picture = labeller(path, classes=self.classes or None, threshold=self.threshold)
            print(f"[{number}/{len(self.images)}] {describe(picture, self.threshold)}", flush=True)
            labelled.append(picture)
        good = [picture for picture in labelled if picture.error is None]
        if not good:
            raise UserError(f"none of the {len(labelled)} images could be labelled")
        for path in self._save(good, labeller.class_names):
            print(f"{path} shows it")

    def _check(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise UserError(f"--threshold is {self.threshold}; expected a probability in [0, 1]")
        if not self.images:
            raise UserError("there are no images; expected one or more files")
        if (self.classifier is None) == (self.labels is None):
            raise UserError("expected either --classifier, or --labels with --dataset")
        if (self.labels is None) != (self.dataset is None):
            raise UserError("--labels and --dataset belong together; expected both or none")
        if self.out is None or not self.out.suffix:
            return
        if self.out.suffix.lower() != ".png":
            raise UserError(f"--out is {self.out}; expected a .png file, or a folder")
        if any(self.out.resolve() == image.resolve() for image in self.images):
            raise UserError(f"--out {self.out} is one of the images; expected another file")

    def _show_labels(self) -> None:
        from ray_wsss.data.schema import DatasetMetadata
        from ray_wsss.stages.labelled_rows import read_rows

        assert self.labels is not None
        assert self.dataset is not None
        ids = [str(image) for image in self.images]
        rows = list(read_rows(self.labels, self.dataset, ids))
        for path in self._save_rows(rows, ids, DatasetMetadata.load(self.dataset).class_names):
            print(f"{path} shows it")

    def _save(self, pictures: "Sequence[LabelledPicture]", class_names: Sequence[str]) -> list[Path]:
        ids = _names([parse_path(picture.source) for picture in pictures])
        return self._save_rows([as_row(picture) for picture in pictures], ids, class_names)

    def _save_rows(
        self, rows: "Sequence[OverviewRow]", ids: Sequence[str], class_names: Sequence[str]
    ) -> list[Path]:
        """Write what was asked for; without --out open it, or leave it here where there is no display."""
        from ray_wsss.data.file_names import FileNames
        from ray_wsss.figures.overview import save_overview

        if self.out is not None and not self.out.suffix:
            names = FileNames(ids)
            files = {self.out / f"{names.name(i)}_labels.png": [row] for i, row in zip(ids, rows)}
        else:
            files = {self.out or _default_file(): list(rows)}
        for path, members in files.items():
            save_overview(members, class_names, path, cell_inches=_CELL_INCHES)
        if self.out is None and has_display():
            webbrowser.open(next(iter(files)).absolute().as_uri())
        return list(files)


def _names(paths: Sequence[Path]) -> list[str]:
    """What tells files apart: their paths from the folder that all are in."""
    if any(is_remote(path) for path in paths):
        return [str(path) for path in paths]
    root = os.path.commonpath([path.absolute().parent for path in paths])
    return [os.path.relpath(path.absolute(), root) for path in paths]


def describe(picture: "LabelledPicture", threshold: float) -> str:
    """One line on an image: its classes, or why it has none."""
    if picture.error is not None:
        return f"{picture.source}: {picture.error}"
    if not picture.found:
        best = sorted(picture.probabilities.items(), key=lambda entry: -entry[1])[:3]
        likeliest = ", ".join(f"{name} {probability:.2f}" for name, probability in best)
        return (
            f"{picture.source}: no class reaches {threshold:g}, the likeliest are {likeliest}; "
            "name some with --classes, or lower --threshold"
        )
    size = picture.label_map.size
    parts = [
        f"{entry.name} ({counted(len(entry.points_xy), 'point')}, score {entry.score:.2f}, "
        f"{(picture.label_map == entry.class_index + 1).sum() / size:.0%} of the image)"
        for entry in picture.found
    ]
    return f"{picture.source}: {', '.join(parts)}"


def as_row(picture: "LabelledPicture") -> "OverviewRow":
    """The picture's row in an overview."""
    from ray_wsss.figures.overview import OverviewRow

    return OverviewRow(
        image=picture.image,
        cams={"CAM": picture.cam},
        points=[(f.class_index, float(x), float(y)) for f in picture.found for x, y in f.points_xy],
        label_maps={"pseudo label": picture.label_map},
    )


def has_display() -> bool:
    """Whether a window can be opened."""
    return sys.platform in ("darwin", "win32") or bool(
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )


def _default_file() -> Path:
    return Path(tempfile.mkdtemp(prefix="ray_wsss_")) / "labels.png" if has_display() else Path("labels.png")
