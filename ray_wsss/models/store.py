"""Trained networks on disk: a folder with ``model.safetensors`` and ``model.json``."""

import json
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ray_wsss.errors import UserError
from ray_wsss.models.classifier import Classifier, ClassifierSpec, build_classifier
from ray_wsss.models.segmenter import Segmenter, SegmenterSpec, build_segmenter
from ray_wsss.storage import AnyPath, local_file

_KINDS = {ClassifierSpec: "classifier", SegmenterSpec: "segmenter"}


def save_model(model: nn.Module, spec: ClassifierSpec | SegmenterSpec, folder: AnyPath) -> None:
    """Write the weights (safetensors) and the spec (JSON) into ``folder``, which is created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors"
    )
    description = {"kind": _KINDS[type(spec)], **spec.to_dict()}
    (folder / "model.json").write_text(
        json.dumps(description, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def load_classifier(folder: AnyPath) -> tuple[Classifier, ClassifierSpec]:
    """Load a trained classifier, in eval mode, on the CPU. Raises UserError if ``folder`` holds none."""
    spec = ClassifierSpec(**_read_description(folder, "classifier"))
    model = build_classifier(spec)
    _load_weights(model, folder)
    return model.eval(), spec


def load_segmenter(folder: AnyPath) -> tuple[Segmenter, SegmenterSpec]:
    """Load a trained segmenter, in eval mode, on the CPU. Raises UserError if ``folder`` holds none."""
    spec = SegmenterSpec(**_read_description(folder, "segmenter"))
    model = build_segmenter(spec)
    _load_weights(model, folder)
    return model.eval(), spec


def read_class_names(folder: AnyPath, kind: str) -> tuple[str, ...]:
    """Class names of the trained network in ``folder``, read without building it.

    ``kind`` is "classifier" or "segmenter". Raises UserError if ``folder`` holds none of this kind.
    """
    return _read_description(folder, kind)["class_names"]


def _read_description(folder: AnyPath, kind: str) -> dict[str, Any]:
    path = folder / "model.json"
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(
            f"{folder} holds no trained {kind} (no model.json); expected train-{kind}'s output"
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON: {error}") from None
    found = description.pop("kind", None)
    if found != kind:
        raise UserError(f"{folder} holds a {found}; expected a {kind}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in description.items()}


def _load_weights(model: nn.Module, folder: AnyPath) -> None:
    path = folder / "model.safetensors"
    try:
        with local_file(path) as file:
            model.load_state_dict(load_file(file))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    except RuntimeError as error:
        raise UserError(f"{path} does not fit model.json: {str(error).splitlines()[0]}") from error
