"""The command that writes a report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ray_wsss.config.report import ReportOptions
from ray_wsss.errors import UserError
from ray_wsss.storage import is_remote

RunFolder = Annotated[Path | None, tyro.conf.Positional]


@dataclass(frozen=True, kw_only=True)
class WriteReport:
    """Write one HTML file about a run: stages, speeds, curves, scores and a gallery; needs no network."""

    run_folder: RunFolder = None
    """Output of run-all, of demo, or of a single stage; the report uses everything that it finds there."""
    out: Path | None = None
    """HTML file to write. Without it report.html in the folder of the run."""
    dataset: Path | None = None
    """Data set of the images in the gallery. Without it the one that the labels name."""
    labels: Path | None = None
    """Output of label."""
    classifier: Path | None = None
    """Output of train-classifier, to make the CAMs."""
    segmenter: Path | None = None
    """Output of train-segmenter, to make the predictions."""
    predictions: Path | None = None
    """Output of predict, instead of running the segmenter."""
    metrics: Path | None = None
    """JSON written by evaluate."""
    images: int | Literal["all"] = 60
    """Images in the gallery: a third the best, a third the worst, the rest at random."""
    skip_cams: bool = False
    """Leave out the CAMs, which take most of the time."""
    skip_predictions: bool = False
    """Leave out the predictions of the segmenter."""
    thumbnail_px: int = 256
    """Long side of the pictures in the gallery, in pixels, 32 to 2048."""
    seed: int = 0
    """Seed of the random choice of images."""

    def run(self) -> None:
        from ray_wsss.report.find_run import KINDS, find_run
        from ray_wsss.report.write_report import write_report

        options = ReportOptions(
            images=None if self.images == "all" else self.images,
            skip_cams=self.skip_cams,
            skip_predictions=self.skip_predictions,
            thumbnail_px=self.thumbnail_px,
            seed=self.seed,
        )
        out = self.out or (self.run_folder or Path()) / "report.html"
        if out.is_dir():
            raise UserError(f"--out {out} is a folder; expected a file such as {out / 'report.html'}")
        given = {name: getattr(self, name) for name in ("dataset", "metrics", *KINDS)}
        found = find_run(self.run_folder, given)
        source = self.run_folder or next(path for path in given.values() if path is not None)
        source = source if is_remote(source) else source.resolve()
        report = write_report(found, source.name, str(source), out, options)
        for sentence in report.missing:
            print(f"not in it: {sentence}")
        print(f"{out} ({out.stat().st_size / 1e6:.1f} MB) is the report; a browser opens it")
