"""``ray-wsss ingest label-studio``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ray_wsss.commands.ingest import IngestCommand


@dataclass(frozen=True, kw_only=True)
class IngestLabelStudio(IngestCommand):
    """Label Studio: its JSON or JSON-MIN (choices, brush, polygons, ellipses, boxes), or our export to it."""

    tasks: Path
    """JSON file of the tasks."""
    images: Path | None = None
    """Folder of the images, by their paths or names. Without it, that of --tasks; URIs are then fetched."""
    image_key: str | None = None
    """Field of a task's data that names the image. Without it, image, else the first that looks like one."""
    controls: tuple[str, ...] = ()
    """Names of the controls of the labelling interface to read, such as mask. Without it, all; JSON-MIN
    needs them."""
    unannotated: Literal["none", "unknown"] = "none"
    """Labels of an image whose annotation is empty: none of the classes, or unknown."""

    def run(self) -> None:
        from ray_wsss.data.label_studio import read_label_studio

        source = read_label_studio(
            self.tasks,
            self.images,
            self.unannotated,
            image_key=self.image_key,
            controls=self.controls,
            classes=self._class_names(),
        )
        self._ingest(source)
