"""The segmenter on a folder of images, on Ray; what the command line and the jobs call."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

import pyarrow as pa
import ray.data
from ray.data import DataContext, Dataset

from ray_wsss.cluster.actors import map_actors
from ray_wsss.cluster.capacity import describe_cluster
from ray_wsss.cluster.connect import ray_session
from ray_wsss.cluster.progress import ImageProgress
from ray_wsss.cluster.run_chunks import ImagesActor, RunOptions, count_done, decode_ahead
from ray_wsss.config import Recipe
from ray_wsss.data.folder import list_images
from ray_wsss.errors import UserError
from ray_wsss.models.store import read_class_names
from ray_wsss.runs.dependencies import settings_of
from ray_wsss.runs.history import recorded_run
from ray_wsss.runs.manifest import Output, file_hash, require_finished
from ray_wsss.runs.prepared_images import PreparedImage
from ray_wsss.runs.run_report import Failures, RunReport
from ray_wsss.runs.tally import Tally
from ray_wsss.stages.predict_folder import FolderPredictor, MaskFolder, PrepareFiles, name_masks
from ray_wsss.storage import drop_leftovers, lies_in

log = logging.getLogger(__name__)

_IMAGES_PER_BLOCK = 32
"""At most: large photographs of one block, decoded, take some 100 MB."""


def run_predict(
    recipe: Recipe,
    *,
    segmenter: Path,
    images: Path,
    out: Path,
    overlays: bool = False,
    **run: Unpack[RunOptions],
) -> RunReport:
    """Write a label map for every image in the folder ``images`` and those below (`stages.predict_folder`).

    A run of the same settings goes on with images that have none, that failed, or that changed since.

    Args:
        overlays: also write what the masks look like on the images.

    Raises:
        UserError: no segmenter, no images, folders inside each other, another run's output, too small a
            cluster, or every image failed.
    """
    require_finished(segmenter, "train-segmenter")
    _check_apart(out, images, segmenter)
    masks = name_masks(list_images(images))
    depends_on = settings_of(recipe, "predict") | {"images": str(images.absolute())}
    depends_on["segmenter"] = file_hash(segmenter / "model.safetensors")
    output = Output(out, "predict", depends_on)
    overwrite = run.get("overwrite")
    state = output.begin(overwrite=overwrite)
    folder = MaskFolder(out.absolute(), overlays)
    folder.claim(masks)
    missing = folder.missing(images, masks)
    report = RunReport(total=Tally(images=len(masks) - len(missing)), done_before=len(masks) - len(missing))
    if state == "finished" and not missing:
        folder.write_errors([])  # images that failed may be gone since
        output.log_finished(overwrite)
        return report
    arguments = {"segmenter": segmenter.absolute(), "config": recipe.predict, "folder": folder}
    output.reopen()  # finished or not, from here on it is incomplete
    if state == "unfinished":
        drop_leftovers(out)
    folder.write_classes(read_class_names(segmenter, "segmenter"))
    failed = _predict(missing, images, arguments, report, run) if missing else []
    folder.write_errors(failed)
    if not report.total.images:
        raise UserError(f"all {len(failed)} images failed; {out / 'errors.parquet'} says why")
    output.finish()
    return report


def _predict(
    missing: Sequence[tuple[str, str]],
    images: Path,
    arguments: dict[str, Any],
    report: RunReport,
    run: RunOptions,
) -> Failures:
    """Make the masks of some (image, mask) names; returns the images that failed."""
    cluster, resources, out = run["cluster"], run["resources"], arguments["folder"].out
    done = report.done_before
    if done:
        log.info("%s images are done already", f"{done:,}")
    with (
        ray_session(cluster.address, verbose=cluster.verbose),
        ImageProgress("predict", done + len(missing), done) as progress,
        recorded_run(out, resources=asdict(resources), cluster=describe_cluster()) as figures,
    ):
        DataContext.get_current().enable_progress_bars = cluster.verbose
        prepare = PrepareFiles(images, arguments["config"].max_side_px)
        # Small enough that every actor gets several.
        size = min(_IMAGES_PER_BLOCK, max(1, len(missing) // (4 * resources.actors)))
        blocks = [missing[at : at + size] for at in range(0, len(missing), size)]
        decoded = decode_ahead(
            _plan(blocks), lambda rows: prepare([image for image, _ in _files_of(rows)]), resources
        )
        arguments = arguments | {"device": resources.device}
        actors = map_actors(
            decoded, _FolderActor, FolderPredictor, arguments, resources, len(blocks), {"name": "predict"}
        )
        failed = count_done(actors, report, progress)
        figures |= report.figures()
        return failed


class _FolderActor(ImagesActor):
    """Hands the images of a block and the names of their masks to the stage, which writes the masks."""

    def work(self, rows: pa.Table, images: list[PreparedImage]) -> tuple[Tally, Failures]:
        return self.stage([mask for _, mask in _files_of(rows)], images)


def _plan(blocks: Sequence[Sequence[tuple[str, str]]]) -> Dataset:
    """A block of one row for each; JSON keeps file names that are no UTF-8, Arrow's strings don't."""
    return ray.data.from_items([{"files": json.dumps(b)} for b in blocks], override_num_blocks=len(blocks))


def _files_of(rows: pa.Table) -> list[tuple[str, str]]:
    """(image, mask) names of a block."""
    return [(image, mask) for image, mask in json.loads(rows["files"][0].as_py())]


def _check_apart(out: Path, images: Path, segmenter: Path) -> None:
    """Raise UserError where masks would be taken for images, or --overwrite would delete an input."""
    if lies_in(out, images):
        raise UserError(
            f"--out {out} lies in --images {images}, where masks would be taken for images; "
            "expected a folder apart from it"
        )
    for flag, folder in (("--images", images), ("--segmenter", segmenter)):
        if lies_in(folder, out):
            raise UserError(f"{flag} {folder} lies in --out {out}; expected a folder apart from it")
