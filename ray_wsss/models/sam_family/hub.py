"""Models in transformers' format: a folder, local or of the Hugging Face hub, with safetensors only."""

import hashlib
import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from ray_wsss.config import SamConfig, SamName
from ray_wsss.config.promptable import MODELS
from ray_wsss.errors import UserError
from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.models.sam.build import file_sha256
from ray_wsss.models.sam_family.convert import convert_mask_decoder, convert_prompt_encoder
from ray_wsss.models.sam_family.model import HubModel
from ray_wsss.models.sam_family.sam2 import Sam2
from ray_wsss.models.sam_family.sam_hq import SamHq
from ray_wsss.storage import is_remote, parse_path

_KINDS = {
    "sam2": ("Sam2Model", "sam2", "sam2_video"),
    "edgetam": ("EdgeTamModel", "edgetam", "edgetam_video"),
    "sam3": ("Sam3TrackerModel", "sam3_tracker", "sam3_tracker_video", "sam3_video"),
    "hq": ("SamHQModel", "sam_hq"),
}
"""transformers' class, and the types of the files that it reads, by the first part of a name."""
_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def load_hub_model(config: SamConfig) -> HubModel:
    """Build a model with its weights, on the CPU.

    Raises:
        UserError: transformers is not installed, or the folder can't be found, fetched or read, or holds
            another kind of model.
    """
    folder = find_folder(config)
    theirs = read_transformers(config, folder)
    settings, kind = theirs.config, SamHq if config.name.startswith("hq_") else Sam2
    model = kind(
        theirs,
        convert_prompt_encoder(theirs.prompt_encoder, settings.prompt_encoder_config),
        convert_mask_decoder(theirs.mask_decoder, settings.mask_decoder_config, kind.sigmoid_iou),
        frame=InputFrame(settings.prompt_encoder_config.image_size, config.card.squeeze),
        map_shapes=kind.shapes_of(settings),
        **(_HALF if config.name == "sam3_tracker" else _IMAGENET),
    )
    return model.eval().requires_grad_(False)


def hub_frame(config: SamConfig) -> InputFrame:
    """The square input of a model, by the ``config.json`` of its folder if `SamConfig.checkpoint` names one.

    Raises:
        UserError: that file can't be read.
    """
    card = config.card
    if config.checkpoint is None:
        return InputFrame(card.side_px, card.squeeze)
    path = parse_path(config.checkpoint) / "config.json"
    try:
        settings = json.loads(path.read_bytes())
        prompts = settings.get("tracker_config", settings).get("prompt_encoder_config") or {}
        return InputFrame(int(prompts.get("image_size", card.side_px)), card.squeeze)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"sam.checkpoint {config.checkpoint} holds no config.json that can be read ({error}); expected a "
            f"folder in transformers' format with {card.title}"
        ) from None


def hub_sha256(config: SamConfig) -> str:
    """Hex SHA-256 of a model's configuration and weights.

    Raises:
        UserError: as `find_folder`, or a file can't be read.
    """
    files = _files_of(find_folder(config))
    return _sha256(tuple((path, path.stat().st_mtime_ns) for path in files))


def find_folder(config: SamConfig) -> Path:
    """Local folder of a model: that of `SamConfig.checkpoint`, or of the hub, which is fetched once.

    Raises:
        UserError: it does not exist, holds no safetensors, or can't be fetched.
    """
    card = config.card
    folder = parse_path(config.checkpoint) if config.checkpoint is not None else _fetch(config.settled_name)
    if is_remote(folder) or not _files_of(folder):
        raise UserError(
            f"sam.checkpoint {folder} holds no config.json with *.safetensors beside it; expected a local "
            f"folder in transformers' format with {card.title} (pickled weights are never read)"
        )
    return folder


def _files_of(folder: Path) -> list[Path]:
    """Configuration and weights in a folder, in a fixed order; empty if either is missing."""
    settings, weights = folder / "config.json", sorted(folder.glob("*.safetensors"))
    return [settings, *weights] if weights and settings.is_file() else []


@cache
def _sha256(files: tuple[tuple[Path, int], ...]) -> str:
    """Hash of names and contents of files; cached by their times, since weights may take gigabytes."""
    total = hashlib.sha256()
    for path, _ in files:
        total.update(f"{path.name} {file_sha256(path)}\n".encode())
    return total.hexdigest()


def _fetch(name: SamName) -> Path:
    """Fetch a model from the hub into its own cache, unless it is there, and return its folder."""
    card = MODELS[name]
    assert card.hub_id is not None
    _require_transformers(card.title)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

    address = f"https://huggingface.co/{card.hub_id}"
    try:
        return Path(snapshot_download(card.hub_id, allow_patterns=list(_FILES)))
    except GatedRepoError:
        raise UserError(
            f"the weights of {card.title} ({card.licence}) are given on request: "
            f"ask for access at {address}, then run 'hf auth login'"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        ask = "; they are given on request there" if card.gated else ""
        raise UserError(
            f"the weights of {card.title} can't be fetched from {address} "
            f"({next(iter(str(error).splitlines()), type(error).__name__)}){ask}; put config.json and "
            "*.safetensors from there into a folder, and set sam.checkpoint to it"
        ) from error


def _require_transformers(title: str) -> None:
    try:
        importlib.import_module("transformers")
    except ImportError:
        raise UserError(
            f"{title} needs transformers, which is not installed: pip install -e '.[sam2]'"
        ) from None


def read_transformers(config: SamConfig, folder: Path) -> Any:
    """transformers' model with the weights in a folder.

    Raises:
        UserError: as `load_hub_model`.
    """
    title = MODELS[config.settled_name].title
    _require_transformers(title)
    import torch
    import transformers
    from safetensors import SafetensorError

    kinds = _KINDS[config.name.partition("_")[0].partition(".")[0]]
    found = json.loads((folder / "config.json").read_bytes()).get("model_type")
    if found not in kinds[1:]:
        raise UserError(
            f"sam.checkpoint {folder} holds a model of type {found}; expected {title} ({kinds[1]})"
        )
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it warns of the parts for videos, which are left out
    try:
        model, loaded = getattr(transformers, kinds[0]).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{folder} holds no {title} that can be read: {error}") from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    if missing := sorted(loaded["missing_keys"]) + sorted(map(str, loaded["mismatched_keys"])):
        raise UserError(f"{folder} lacks {len(missing)} weights of {title}, the first is {missing[0]}")
    places = (model.shared_image_embedding, model.prompt_encoder.shared_embedding)
    if not torch.equal(*(place.positional_embedding for place in places)):
        raise UserError(f"{folder} holds two positional encodings; expected {title}, which has one for all")
    return model
