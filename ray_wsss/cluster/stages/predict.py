"""Prediction with the segmenter on a folder of images, on Ray."""

import json
import logging
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Unpack

import pyarrow as pa
import ray.data
from ray.data import Dataset

from ray_wsss.cluster.actors import iterate, iterate_here, map_actors
from ray_wsss.cluster.decode import decode_ahead, decode_images
from ray_wsss.cluster.names import title_of
from ray_wsss.cluster.progress import ImageProgress
from ray_wsss.cluster.run_chunks import (
    DoneBlock,
    ImagesActor,
    RunOptions,
    count_done,
    session_of,
    where,
)
from ray_wsss.config import Recipe
from ray_wsss.config.decode import DecodeConfig
from ray_wsss.config.error_limit import ErrorLimit
from ray_wsss.config.resources import Resources
from ray_wsss.data.folder import list_images
from ray_wsss.data.source import describe_passed_over
from ray_wsss.errors import TooManyFailedError, UserError
from ray_wsss.models.store import read_class_names
from ray_wsss.runs.dependencies import settings_of
from ray_wsss.runs.history import recorded_run
from ray_wsss.runs.manifest import Output, file_hash, require_finished
from ray_wsss.runs.prepared_images import PreparedImage
from ray_wsss.runs.resilient import mark_failed, run_in_pieces
from ray_wsss.runs.run_report import Failures, RunReport
from ray_wsss.runs.tally import Tally
from ray_wsss.stages.predict_folder import FolderPredictor, MaskFolder, PrepareFiles, name_masks
from ray_wsss.storage import drop_leftovers, lies_in

log = logging.getLogger(__name__)

_IMAGES_PER_BLOCK = 32
"""Largest number of images in a block. Decoded, a block of large photographs takes some 100 MB."""


def run_predict(
    recipe: Recipe,
    *,
    segmenter: Path,
    images: Path,
    out: Path,
    overlays: bool = False,
    decode: DecodeConfig | None = None,
    **run: Unpack[RunOptions],
) -> RunReport:
    """Write a label map for every image in ``images`` and its subfolders (`stages.predict_folder`).

    Another run with the same settings does only images that have no label map, that failed, or that have
    changed since.

    Args:
        overlays: also write pictures of the masks drawn over the images.
        decode: how images of more than 8 bits or of many channels become RGB; by default `DecodeConfig`.

    Raises:
        UserError: ``segmenter`` is not a finished segmenter, there are no images, the folders lie inside each
            other, ``out`` belongs to another run, or the cluster is too small.
        TooManyFailedError: too many images failed; ``errors.parquet`` lists them.
    """
    require_finished(segmenter, "train-segmenter")
    _check_apart(out, images, segmenter)
    decode = decode or DecodeConfig()
    listing = list_images(images)
    if listing.passed_over:
        told = describe_passed_over(listing.passed_over)
        log.info("files passed over in %s, which are no images: %s", images, told)
    masks = name_masks(list(listing.images))
    depends_on = settings_of(recipe, "predict") | {"images": str(images.absolute())} | decode.noted()
    depends_on["segmenter"] = file_hash(segmenter / "model.safetensors")
    output = Output(out, "predict", depends_on)
    overwrite = run.get("overwrite")
    state = output.begin(overwrite=overwrite)
    folder = MaskFolder(out.absolute(), overlays)
    folder.claim(masks)
    missing = folder.missing(images, masks)
    report = RunReport(total=Tally(images=len(masks) - len(missing)), done_before=len(masks) - len(missing))
    if state == "finished" and not missing:
        folder.write_errors([])  # failed images may have been deleted since
        output.log_finished(overwrite)
        return report
    arguments = {"segmenter": segmenter.absolute(), "config": recipe.predict, "folder": folder}
    output.reopen()  # a finished output is incomplete from here on
    if state == "unfinished":
        drop_leftovers(out)
    folder.write_classes(read_class_names(segmenter, "segmenter"))
    prepare = PrepareFiles(images, recipe.predict.max_side_px, decode, tile_px=recipe.predict.tile_px)
    failed = _predict(missing, prepare, arguments, report, run) if missing else []
    folder.write_errors(failed)
    limit, first_reason = run.get("limit") or ErrorLimit(), failed[0][1] if failed else ""
    try:
        limit.check(report.total.images, report.total.errors, first_reason, at_end=True)
    except TooManyFailedError as error:
        raise TooManyFailedError(f"{error}; {out / 'errors.parquet'} lists all") from error
    output.finish()
    return report


def _predict(
    missing: Sequence[tuple[str, str]],
    prepare: PrepareFiles,
    arguments: dict[str, Any],
    report: RunReport,
    run: RunOptions,
) -> Failures:
    """Make the masks for (image, mask) names; returns the images that failed."""
    resources, out = run["resources"], arguments["folder"].out
    done = report.done_before
    if done:
        log.info("%s images are done already", f"{done:,}")
    with (
        session_of(resources, run["cluster"], "predict"),
        ImageProgress("predict", done + len(missing), done) as progress,
        recorded_run(out, **where(resources)) as figures,
    ):
        # Blocks are small enough that every actor gets several.
        size = min(_IMAGES_PER_BLOCK, max(1, len(missing) // (4 * max(1, resources.actors))))
        blocks = [missing[at : at + size] for at in range(0, len(missing), size)]
        arguments = arguments | {"device": resources.device}
        done = _pipeline(blocks, prepare, arguments, resources)
        failed = count_done(done, report, progress, run.get("limit") or ErrorLimit())
        figures |= report.figures()
        return failed


def _pipeline(
    blocks: Sequence[Sequence[tuple[str, str]]],
    prepare: PrepareFiles,
    arguments: dict[str, Any],
    resources: Resources,
) -> Generator[dict[str, Any]]:
    def prepare_rows(rows: pa.Table) -> list[PreparedImage]:
        return prepare([image for image, _ in _files_of(rows)])

    extra = {"name": "predict"}
    if resources.actors == 0:
        decoded = (decode_images(pa.Table.from_pylist([row]), prepare_rows) for row in map(_row_of, blocks))
        return iterate_here(decoded, _FolderActor, FolderPredictor, arguments, extra)
    ahead = decode_ahead(_plan(blocks), prepare_rows, resources)
    done = map_actors(ahead, _FolderActor, FolderPredictor, arguments, resources, len(blocks), extra)
    return iterate(done, title_of(arguments["folder"].out))


class _FolderActor(ImagesActor):
    """Hands the images of a block and the names of their masks to the stage, which writes the masks."""

    def work(self, rows: pa.Table, images: list[PreparedImage]) -> DoneBlock:
        named = [(mask, image) for (_, mask), image in zip(_files_of(rows), images)]
        results = run_in_pieces(
            lambda piece: self.stage([mask for mask, _ in piece], [image for _, image in piece]),
            named,
            lambda pair, reason: (pair[0], mark_failed(pair[1], reason)),
        )
        failed = [failure for _, of_piece in results for failure in of_piece]
        return DoneBlock(
            tally=Tally.total(tally for tally, _ in results),
            failed=failed,
            first_reason=failed[0][1] if failed else "",
        )


def _plan(blocks: Sequence[Sequence[tuple[str, str]]]) -> Dataset:
    """The blocks as a Ray data set, one row each."""
    return ray.data.from_items([_row_of(block) for block in blocks], override_num_blocks=len(blocks))


def _row_of(block: Sequence[tuple[str, str]]) -> dict[str, str]:
    """One row. JSON keeps file names that are not UTF-8, unlike Arrow."""
    return {"files": json.dumps(block)}


def _files_of(rows: pa.Table) -> list[tuple[str, str]]:
    """(image, mask) names of a block."""
    return [(image, mask) for image, mask in json.loads(rows["files"][0].as_py())]


def _check_apart(out: Path, images: Path, segmenter: Path) -> None:
    """Raise UserError if masks would be taken for images, or if --overwrite would delete an input."""
    if lies_in(out, images):
        raise UserError(
            f"--out {out} lies in --images {images}, where masks would be taken for images; "
            "expected a folder apart from it"
        )
    for flag, folder in (("--images", images), ("--segmenter", segmenter)):
        if lies_in(folder, out):
            raise UserError(f"{flag} {folder} lies in --out {out}; expected a folder apart from it")
