"""The embedding of every image of a chunk, computed or restored from a cache."""

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from ray_wsss.config import EmbedConfig, SamConfig
from ray_wsss.data.embeddings import EMBEDDING_SCHEMA, GROUP_BYTES, StoredEmbedding, store_embeddings
from ray_wsss.models.promptable.encoder import SamEncoder, load_encoder
from ray_wsss.models.promptable.interface import Embeddings, MapShape
from ray_wsss.runs.prepared_images import PreparedImage
from ray_wsss.runs.tally import Tally


def embeddings_of(encoder: SamEncoder, images: Sequence[PreparedImage]) -> Embeddings:
    """Embeddings of images: restored if all images carry one; if none does, the model encodes them."""
    pixels = [image.for_sam for image in images if image.embedding is None]
    if len(pixels) == len(images):
        return encoder(pixels)
    restored, device = [], encoder.sam.device
    for image in images:
        scale = image.embedding_scale
        on_device = torch.tensor(scale, device=device)[None] if scale is not None else None
        values = torch.tensor(image.embedding, device=device)[None]
        restored.append(restore_embeddings(values, on_device, encoder.sam.map_shapes))
    return Embeddings.cat(restored)


def restore_embeddings(values: Tensor, scale: Tensor | None, shapes: Sequence[MapShape]) -> Embeddings:
    """Embeddings from stored values (N, V): fp16, or int8 with a scale for each channel (N, C)."""
    maps = values.split([math.prod(shape) for shape in shapes], dim=1)
    found = [part.float().unflatten(1, shape) for part, shape in zip(maps, shapes)]
    if scale is None:
        return Embeddings(tuple(found))
    scales = scale.split([shape[0] for shape in shapes], dim=1)
    return Embeddings(tuple(part * each[..., None, None] for part, each in zip(found, scales)))


class SamEmbedder:
    """Embeds the images of a chunk with SAM's encoder on one device.

    An image that fails gets a row with the reason in ``error``; the other images are still embedded.

    Args:
        images: approximate number of images to embed in total (`models.promptable.encoder.load_encoder`).
    """

    def __init__(self, config: EmbedConfig, sam: SamConfig, device: str = "cpu", images: int = 0) -> None:
        self.config, self.device = config, torch.device(device)
        self.encoder = load_encoder(sam, self.device, images)
        values = sum(math.prod(shape) for shape in self.encoder.sam.map_shapes)
        self.rows_per_group = max(1, GROUP_BYTES // (2 * values))

    def __call__(self, images: Sequence[PreparedImage]) -> tuple[pa.Table, Tally]:
        """Embed images: rows of `EMBEDDING_SCHEMA`, in order, and counts and times."""
        tally = Tally()
        rows = [{"image_id": image.image_id, "error": image.error} for image in images]
        good = [at for at, image in enumerate(images) if image.error is None]
        if good:
            with tally.phase("encode", self.device):
                embeddings = embeddings_of(self.encoder, [images[at] for at in good])
                stored = store_embeddings(embeddings.maps, self.config.dtype)
            with tally.phase("write"):
                for at, embedding in zip(good, stored):
                    rows[at] |= describe_embedding(images[at], embedding)
        tally.errors = sum(row["error"] is not None for row in rows)
        tally.images = len(rows) - tally.errors
        return pa.Table.from_pylist(rows, schema=EMBEDDING_SCHEMA), tally


def describe_embedding(image: PreparedImage, stored: StoredEmbedding | ValueError) -> dict[str, Any]:
    """One image's columns of `EMBEDDING_SCHEMA`."""
    if isinstance(stored, ValueError):
        return {"error": str(stored)}
    height, width = image.image_hw
    return {
        "height": height,
        "width": width,
        "shape": [number for shape in stored.shapes for number in shape],
        "embedding": stored.values.tobytes(),
        "scale": stored.scale.tolist() if stored.scale is not None else None,
    }
