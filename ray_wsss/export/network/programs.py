"""A network as a program of its own: traced by torch.export, saved as .pt2 or translated to ONNX."""

import importlib.util
import json
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ray_wsss.errors import UserError
from ray_wsss.export.network.same_padding import make_traceable
from ray_wsss.export.network.wrap import LEAST_PX, ClassifierNetwork, SegmenterNetwork

METADATA_KEY = "ray_wsss"
"""Name of the JSON description in the metadata of an ONNX file; in a .pt2 it is the extra file KEY.json."""
_MOST_IMAGES = 4096
_EXAMPLE_HW = (96, 72)
_UNTRACEABLE = (AssertionError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError)


def check_onnx_installed() -> None:
    """Raise UserError if a package of the extra ``onnx`` is missing."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"--format onnx needs the package {name}, which is not installed: pip install -e '.[onnx]'"
            )


@contextmanager
def _without_warnings() -> Generator[None, None, None]:
    """The exporters warn of their own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trace(
    network: SegmenterNetwork | ClassifierNetwork, size_hw: tuple[int, int] | None
) -> torch.export.ExportedProgram:
    """Trace a network for any number of images, of one size or of any size.

    Args:
        size_hw: height and width of the images, in pixels; None: any, from `LEAST_PX` to the network's
            ``longest_px``. Convolutions with "SAME" padding are replaced then (`make_traceable`).

    Raises:
        UserError: the network can't be traced so.
    """
    count = torch.export.Dim("batch", min=1, max=_MOST_IMAGES)
    dynamic: dict[int, Any] = {0: count}
    if size_hw is None:
        make_traceable(network)
        most = max(LEAST_PX + 1, network.longest_px)
        dynamic |= {
            at: torch.export.Dim(name, min=LEAST_PX, max=most) for at, name in ((1, "height"), (2, "width"))
        }
    height, width = size_hw or _EXAMPLE_HW
    images = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    try:
        with _without_warnings():
            program = torch.export.export(
                network, (images,), dynamic_shapes={"images": dynamic}, strict=False
            )
    except _UNTRACEABLE as error:
        reason = " ".join(str(error).split())[:200]
        if size_hw is None:
            raise UserError(
                "torch.export can't trace this network for images of every size "
                f"({type(error).__name__}: {reason}); expected a fixed size, such as --size 512 512"
            ) from error
        raise UserError(
            f"torch.export can't trace this network ({type(error).__name__}: {reason}); "
            "expected --format safetensors, or another backbone"
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # names files of this machine
    return program


def save_torch(program: torch.export.ExportedProgram, description: Mapping[str, Any], path: Path) -> None:
    """Write a .pt2 file for ``torch.export.load``, with the description as an extra file."""
    extra = {f"{METADATA_KEY}.json": json.dumps(description, ensure_ascii=False)}
    with _without_warnings():
        torch.export.save(program, path, extra_files=extra)


def run_torch(path: Path, images: Tensor) -> dict[str, Tensor]:
    """Results of a .pt2 file."""
    with torch.no_grad(), _without_warnings():
        module: nn.Module = torch.export.load(path).module()
        return module(images)


def save_onnx(
    program: torch.export.ExportedProgram,
    outputs: Sequence[str],
    description: Mapping[str, Any],
    path: Path,
) -> None:
    """Write an ONNX file, with the description in its metadata.

    Raises:
        UserError: ONNX has no form of one of the network's operations.
    """
    try:
        with _without_warnings():
            exported = torch.onnx.export(
                program, (), dynamo=True, input_names=["images"], output_names=list(outputs), verbose=False
            )
    except _UNTRACEABLE as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise UserError(
            f"the network can't be translated to ONNX ({reason}); expected --format torch-export"
        ) from error
    assert exported is not None
    exported.model.metadata_props[METADATA_KEY] = json.dumps(description, ensure_ascii=False)
    exported.save(path)


def run_onnx(path: Path, images: NDArray[np.uint8]) -> dict[str, Tensor]:
    """Results of an ONNX file on the CPU, by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {k: torch.from_numpy(v) for k, v in zip(names, session.run(names, {"images": images}))}
