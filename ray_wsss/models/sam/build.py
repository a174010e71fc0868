"""Building SAM by name: those in the package, and Meta's from a file or a verified download."""

import hashlib
import http.client
import logging
import os
import shutil
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from segment_anything import sam_model_registry

from ray_wsss.config import SamConfig
from ray_wsss.errors import UserError
from ray_wsss.models.sam.lite import build_lite_sam, lite_checkpoint
from ray_wsss.models.sam.model import SegmentAnything
from ray_wsss.models.sam.tiny import build_tiny_sam, tiny_checkpoint
from ray_wsss.models.weights import read_weights
from ray_wsss.storage import cached_file, fetch_once, parse_path

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishedCheckpoint:
    """A SAM checkpoint on Meta's server."""

    file_name: str
    sha256: str

    @property
    def url(self) -> str:
        return f"https://dl.fbaipublicfiles.com/segment_anything/{self.file_name}"


PUBLISHED = {
    "vit_b": PublishedCheckpoint(
        "sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"
    ),
    "vit_l": PublishedCheckpoint(
        "sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"
    ),
    "vit_h": PublishedCheckpoint(
        "sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"
    ),
}


@dataclass(frozen=True)
class PackagedModel:
    """A SAM whose weights ship with the package."""

    build: Callable[[], SegmentAnything]
    checkpoint: Callable[[], Path]


IN_PACKAGE = {
    "tiny": PackagedModel(build_tiny_sam, tiny_checkpoint),
    "lite": PackagedModel(build_lite_sam, lite_checkpoint),
}


def build_sam(config: SamConfig) -> SegmentAnything:
    """Build SAM with its weights, on the CPU, in eval mode, without gradients.

    Raises:
        UserError: the checkpoint can't be found, downloaded or read, or does not fit this SAM.
    """
    path = resolve_checkpoint(config)
    if config.name in IN_PACKAGE:
        sam = IN_PACKAGE[config.name].build()
    else:
        sam = SegmentAnything.of(sam_model_registry[config.name]())
    try:
        sam.load_state_dict(read_weights(path, "sam.checkpoint"))
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise UserError(f"sam.checkpoint {path} does not fit SAM {config.name}: {first}") from error
    return sam.eval().requires_grad_(False)


def resolve_checkpoint(config: SamConfig, cache: Path | None = None) -> Path:
    """Find or download SAM's weights, and return their local file.

    ``config.checkpoint`` comes first (copied to the cache if it is remote). Without it, the weights of the
    tiny and the lite SAM come from the package, and Meta's are downloaded: once per machine, by one process.

    Args:
        cache: folder of downloads; by default ``$RAY_WSSS_CACHE`` or ``~/.cache/ray_wsss``.

    Raises:
        UserError: the file does not exist, can't be downloaded, or has the wrong hash.
    """
    folder = cache or cache_folder()
    if config.checkpoint is not None:
        path = parse_path(config.checkpoint)
        if not path.is_file():
            raise UserError(
                f"sam.checkpoint {path} does not exist; expected the weights of SAM {config.name}"
            )
        return cached_file(path, folder)
    if config.name in IN_PACKAGE:
        return IN_PACKAGE[config.name].checkpoint()
    published = PUBLISHED[config.name]
    path = folder / published.file_name
    try:
        fetch_once(path, partial(_download, published))
    except (OSError, http.client.HTTPException) as error:
        raise UserError(
            f"SAM's weights can't be downloaded ({error}); put {published.file_name} at {path}, "
            f"or set sam.checkpoint to a file, or set sam.name=lite to run offline"
        ) from error
    _check_hash(published, path)
    return path


def cache_folder() -> Path:
    """Folder of downloads, and of copies of remote files."""
    return Path(os.environ.get("RAY_WSSS_CACHE", Path.home() / ".cache" / "ray_wsss"))


def sam_sha256(config: SamConfig) -> str:
    """Hex SHA-256 of SAM's weights. For Meta's it is known without a download.

    Raises:
        UserError: the file does not exist or can't be read.
    """
    if config.checkpoint is None and config.name in PUBLISHED:
        return PUBLISHED[config.name].sha256
    return file_sha256(resolve_checkpoint(config))


def _download(published: PublishedCheckpoint, path: Path) -> None:
    """Download a checkpoint to ``path``, and check its hash."""
    log.info("downloading %s", published.url)
    with urllib.request.urlopen(published.url, timeout=30) as response, path.open("wb") as file:
        shutil.copyfileobj(response, file, 1 << 20)
        if missing := getattr(response, "length", None):  # the connection was cut; urllib reports no error
            raise http.client.IncompleteRead(b"", missing)
    _check_hash(published, path, published.url)


def _check_hash(published: PublishedCheckpoint, path: Path, source: str | None = None) -> None:
    """Raise UserError unless the file has the published hash, which manifests note unseen."""
    if (found := file_sha256(path)) != published.sha256:
        raise UserError(f"{source or path} has SHA-256 {found}; expected {published.sha256}")


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file. Raises UserError if it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}") from None
