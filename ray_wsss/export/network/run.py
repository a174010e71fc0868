"""Exports a trained network.

OUT/model.pt2, model.onnx or model.safetensors
                  the network; the first two take uint8 images and do all preprocessing themselves
OUT/model.json    its input, outputs and classes, and where it comes from; the network's file has the same
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from ray_wsss.config import PredictConfig
from ray_wsss.config.export import ModelFormat
from ray_wsss.data.images import describe_labels
from ray_wsss.errors import UserError
from ray_wsss.export.network.check import check_images, largest_difference
from ray_wsss.export.network.plain import PlainNetwork
from ray_wsss.export.network.programs import (
    check_onnx_installed,
    run_onnx,
    run_torch,
    save_onnx,
    save_torch,
    trace,
)
from ray_wsss.export.network.wrap import LEAST_PX, ClassifierNetwork, SegmenterNetwork
from ray_wsss.models.classifier import ClassifierSpec
from ray_wsss.models.segmenter import SegmenterSpec
from ray_wsss.models.store import load_classifier, load_segmenter
from ray_wsss.runs.classifier_side import trained_side_px
from ray_wsss.runs.manifest import Output, file_hash, read_manifest, require_finished
from ray_wsss.storage import copy_file, lies_in, write_json
from ray_wsss.version import __version__

log = logging.getLogger(__name__)

_SUFFIXES = {"torch-export": "pt2", "onnx": "onnx", "safetensors": "safetensors"}
_CHECKED_AT = ((2, 96, 72), (1, 65, 97))
"""Batch size, height and width of the images that an export for any size is checked on."""


@dataclass(frozen=True, kw_only=True)
class ModelExport:
    """Result of `export_model`."""

    path: Path
    """File of the network."""
    difference: float | None
    """Largest difference from our own results on generated images; None if the file was there already."""


def export_model(
    run: Path,
    out: Path,
    format_: ModelFormat,
    *,
    size_hw: tuple[int, int] | None = None,
    predict: PredictConfig | None = None,
    overwrite: bool | None = None,
) -> ModelExport:
    """Export the network of a finished training; the written file is loaded again and checked first.

    Args:
        run: output of train-segmenter or train-classifier, or the folder ``best`` in it.
        size_hw: height and width of the images, in pixels; None: any size.
        predict: ``max_side_px`` is the longest side that a segmenter sees, or a classifier whose training
            doesn't tell the largest of its images.
        overwrite: replace an export in ``out``, see `runs.manifest.Output.begin`.

    Raises:
        UserError: there is no finished network, it can't be exported so, a package is missing, ``out`` holds
            something else, or the exported network computes something else.
    """
    kind = _kind_of(run)
    predict = predict or PredictConfig()
    _check(run, out, format_, size_hw, predict if kind == "segmenter" else None)
    path = out / f"model.{_SUFFIXES[format_]}"
    trained_px = trained_side_px(_training_of(run)) if kind == "classifier" else None
    longest_px = trained_px or predict.max_side_px
    depends_on: dict[str, Any] = {
        kind: file_hash(run / "model.safetensors"),
        "format": format_,
        "size": list(size_hw) if size_hw is not None else None,
        "max_side_px": longest_px,
    }
    output = Output(out, "export-model", depends_on)
    if output.begin(overwrite=overwrite) == "finished":
        output.log_finished(overwrite)
        return ModelExport(path=path, difference=None)
    if kind == "classifier":
        model, spec = load_classifier(run)
        network = ClassifierNetwork(model, longest_px)
    else:
        segmenter, spec = load_segmenter(run)
        network = SegmenterNetwork(segmenter, longest_px)
    description = _describe(run, kind, spec, network, format_, size_hw)
    with TemporaryDirectory(prefix="ray_wsss_") as folder:
        file = Path(folder) / path.name
        difference = _write(network.eval().requires_grad_(False), spec, description, file, format_, size_hw)
        copy_file(file, path)
    write_json(description, out / "model.json")
    output.finish()
    return ModelExport(path=path, difference=difference)


def _write(
    network: SegmenterNetwork | ClassifierNetwork,
    spec: SegmenterSpec | ClassifierSpec,
    description: dict[str, Any],
    file: Path,
    format_: ModelFormat,
    size_hw: tuple[int, int] | None,
) -> float:
    """Write the network's file and check it. Returns the largest difference."""
    if format_ == "safetensors":
        return PlainNetwork.of(network.model, spec).save(file, description)
    sizes = _CHECKED_AT if size_hw is None else ((2, *size_hw), (1, *size_hw))
    batches = check_images([(count, *_within(hw, network.longest_px, size_hw)) for count, *hw in sizes])
    expected = [network(images) for images in batches]  # before `trace` replaces layers
    program = trace(network, size_hw)
    if format_ == "onnx":
        save_onnx(program, list(network.outputs), description, file)
    else:
        save_torch(program, description, file)
    ours = {id(images): results for images, results in zip(batches, expected)}
    return largest_difference(
        lambda images: ours[id(images)],
        lambda images: run_onnx(file, images.numpy()) if format_ == "onnx" else run_torch(file, images),
        batches,
        f"{format_} file",
    )


def _within(hw: list[int], longest_px: int, size_hw: tuple[int, int] | None) -> tuple[int, int]:
    if size_hw is not None:
        return size_hw
    return min(hw[0], longest_px), min(hw[1], longest_px)


def _kind_of(run: Path) -> Literal["classifier", "segmenter"]:
    """Kind of the network in ``run``. Raises UserError if the folder isn't the output of a training."""
    manifest = read_manifest(_training_of(run))
    stage = manifest["stage"] if manifest is not None else None
    for kind in ("classifier", "segmenter"):
        if stage == f"train-{kind}":
            require_finished(_training_of(run), f"train-{kind}")
            return kind
    found = f"holds the output of {stage}" if stage is not None else "has no manifest.json of ray-wsss"
    raise UserError(f"{run} {found}; expected the output of train-segmenter or train-classifier")


def _training_of(run: Path) -> Path:
    """The training's folder, of which the folder ``best`` is a part."""
    return run.parent if run.name == "best" and not (run / "manifest.json").exists() else run


def _check(
    run: Path, out: Path, format_: str, size_hw: tuple[int, int] | None, predict: PredictConfig | None
) -> None:
    """Raise UserError for settings that don't go together."""
    if lies_in(run, out):
        raise UserError(f"--run {run} lies in --out {out}; expected a folder apart from it")
    if format_ == "onnx":
        check_onnx_installed()
    if size_hw is not None and min(size_hw) < LEAST_PX:
        raise UserError(f"--size is {size_hw[0]} {size_hw[1]}; expected sides of at least {LEAST_PX} pixels")
    if size_hw is not None and format_ == "safetensors":
        raise UserError("--size is for --format torch-export and onnx; weights have no size")
    if predict is not None and (predict.scales != (1.0,) or predict.flip or predict.tile_px is not None):
        raise UserError(
            "an exported segmenter sees an image once; expected predict.scales 1, and neither predict.flip "
            "nor predict.tile_px"
        )


def _describe(
    run: Path,
    kind: str,
    spec: SegmenterSpec | ClassifierSpec,
    network: SegmenterNetwork | ClassifierNetwork,
    format_: str,
    size_hw: tuple[int, int] | None,
) -> dict[str, Any]:
    """Content of ``model.json``."""
    names = spec.class_names
    described: dict[str, Any] = {
        "kind": kind,
        "format": format_,
        "backbone": spec.backbone,
        "class_names": list(names),
        "run": str(run),
        "sha256": file_hash(run / "model.safetensors"),
        "ray_wsss": __version__,
    }
    if kind == "segmenter":
        described["labels"] = describe_labels(names)
    if format_ == "safetensors":
        return described
    height, width = size_hw or ("H", "W")
    any_size = f", with sides of {LEAST_PX} to {network.longest_px} pixels" if size_hw is None else ""
    described["input"] = {"images": f"[B, {height}, {width}, 3] uint8, RGB{any_size}"}
    described["outputs"] = dict(network.outputs)
    backbone = network.model.backbone
    parts = getattr(backbone, "backbones", [backbone])
    described["preprocessing"] = {
        "inside": True,
        "longest_px": network.longest_px,
        "mean": [part.mean.flatten().tolist() for part in parts],
        "std": [part.std.flatten().tolist() for part in parts],
        "multiple": [part.multiple for part in parts],
    }
    return described
