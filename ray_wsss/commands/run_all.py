"""The command that runs every stage in turn, from files or from a data set."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ray_wsss.commands.export import ExportFolder
from ray_wsss.commands.flags import (
    ClusterFlags,
    ErrorLimitFlags,
    RecipeFlags,
    SamActors,
    SamActorsFlags,
    Settings,
    SettingsFlags,
    WorkersFlags,
)
from ray_wsss.commands.report import WriteReport
from ray_wsss.config import Recipe
from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.config.resources import Cluster, Workers
from ray_wsss.errors import UserError
from ray_wsss.storage import lies_in

if TYPE_CHECKING:
    from ray_wsss.data.source import Source


@dataclass(frozen=True, kw_only=True)
class RunAll:
    """Run all steps in turn: from images, or from a data set, to masks and a segmenter.

    With --folder, --csv or --coco it also ingests, exports the masks as PNGs, and writes the report.
    """

    out: Path
    """Folder for the folders of all steps. The same command resumes an interrupted run in it."""
    dataset: Path | None = None
    """Data set written by ingest, to train on. Give this, or --folder, --csv or --coco."""
    folder: Path | None = None
    """Folder with one sub-folder of images per class, as for ingest folder."""
    csv: Path | None = None
    """Table of images and labels, as for ingest csv."""
    coco: Path | None = None
    """COCO's instances JSON, as for ingest coco; needs --images."""
    images: Path | None = None
    """Folder that the file names in --csv or --coco are relative to.
    Without it, the folder of the --csv file; --coco needs it."""
    validation: Path | None = None
    """Data set with masks, to measure on during training and at the end."""
    ssc: bool = False
    """Also run segment-everything, which adds SSC to the classifier's loss."""
    settings: SettingsFlags = field(default_factory=Settings)
    actors: SamActorsFlags = field(default_factory=SamActors)
    workers: WorkersFlags = field(default_factory=Workers)
    cluster: ClusterFlags = field(default_factory=Cluster)
    limit: ErrorLimitFlags = field(default_factory=ErrorLimit)
    recipe: RecipeFlags = field(default_factory=Recipe)

    def run(self) -> None:
        from rich.console import Console

        from ray_wsss.cluster.stages.run_all import METRICS, run_all
        from ray_wsss.figures.metrics_table import metrics_table

        self._check()
        source = self._source()
        dataset = self.dataset or self.out / "dataset"
        metrics = run_all(
            self.recipe,
            dataset=dataset,
            out=self.out,
            source=source,
            validation=self.validation,
            ssc=self.ssc,
            resources=self.actors,
            workers=self.workers,
            cluster=self.cluster,
            limit=self.limit,
        )
        if metrics is not None:
            Console().print(metrics_table(metrics))
            print(f"figures in {self.out / METRICS}")
        print(f"labels in {self.out / 'labels'}, segmenter in {self.out / 'segmenter'}")
        if source is not None:
            ExportFolder(labels=self.out / "labels", dataset=dataset, out=self.out / "export").run()
            WriteReport(run_folder=self.out).run()

    def _check(self) -> None:
        """Raise UserError for inputs that don't go together."""
        flags = ("dataset", "folder", "csv", "coco")
        given = [f"--{name}" for name in flags if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"{' and '.join(given)} are given" if given else "there are no images"
            raise UserError(f"{what}; expected one of --{', --'.join(flags)}")
        if self.coco is not None and self.images is None:
            raise UserError("--coco needs --images, the folder of the images")
        if self.images is not None and given[0] in ("--dataset", "--folder"):
            raise UserError(f"--images {self.images} is not used with {given[0]}; expected --csv or --coco")
        if self.folder is not None and lies_in(self.out, self.folder):
            raise UserError(
                f"--out {self.out} lies in --folder {self.folder}; expected a folder apart from the images"
            )

    def _source(self) -> "Source | None":
        """Images and labels of the files; None with a data set."""
        from ray_wsss.data.coco import read_coco
        from ray_wsss.data.csv_labels import read_csv
        from ray_wsss.data.folder import read_folder

        if self.folder is not None:
            return read_folder(self.folder)
        if self.csv is not None:
            return read_csv(self.csv, self.images)
        if self.coco is not None and self.images is not None:
            return read_coco(self.images, self.coco)
        return None
