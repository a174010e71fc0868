"""SAM's embedding of every image of a chunk, computed or restored from a cache."""

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from ray_wsss.config import EmbedConfig, SamConfig
from ray_wsss.data.embeddings import EMBEDDING_SCHEMA, GROUP_BYTES, StoredEmbedding, store_embeddings
from ray_wsss.models.sam.encoder import SamEncoder, load_encoder
from ray_wsss.runs.prepared_images import PreparedImage
from ray_wsss.runs.tally import Tally


def embeddings_of(encoder: SamEncoder, images: Sequence[PreparedImage]) -> Tensor:
    """Embeddings (N, D, h, w) of images: restored if all images carry one; if none does, SAM encodes them."""
    pixels = [image.for_sam for image in images if image.embedding is None]
    if len(pixels) == len(images):
        return encoder(pixels)
    restored, device = [], encoder.sam.device
    for image in images:
        scale = image.embedding_scale
        on_device = torch.tensor(scale, device=device) if scale is not None else None
        restored.append(restore_embedding(torch.tensor(image.embedding, device=device), on_device))
    return torch.stack(restored)


def restore_embedding(values: Tensor, scale: Tensor | None) -> Tensor:
    """Stored values (..., D, h, w) as float32; they are fp16, or int8 with a scale (..., D)."""
    return values.float() if scale is None else values.float() * scale[..., None, None]


class SamEmbedder:
    """Embeds the images of a chunk with SAM's encoder on one device.

    An image that fails gets a row with the reason in ``error``; the other images are still embedded.

    Args:
        images: approximate number of images to embed in total (`models.sam.encoder.load_encoder`).
    """

    def __init__(self, config: EmbedConfig, sam: SamConfig, device: str = "cpu", images: int = 0) -> None:
        self.config, self.device = config, torch.device(device)
        self.encoder = load_encoder(sam, self.device, images)
        prompts = self.encoder.sam.prompt_encoder
        values = prompts.embed_dim * math.prod(prompts.image_embedding_size)
        self.rows_per_group = max(1, GROUP_BYTES // (2 * values))

    def __call__(self, images: Sequence[PreparedImage]) -> tuple[pa.Table, Tally]:
        """Embed images: rows of `EMBEDDING_SCHEMA`, in order, and counts and times."""
        tally = Tally()
        rows = [{"image_id": image.image_id, "error": image.error} for image in images]
        good = [at for at, image in enumerate(images) if image.error is None]
        if good:
            with tally.phase("encode", self.device):
                embeddings = embeddings_of(self.encoder, [images[at] for at in good])
                stored = store_embeddings(embeddings, self.config.dtype)
            with tally.phase("write"):
                for at, embedding in zip(good, stored):
                    rows[at] |= _describe(images[at], embedding)
        tally.errors = sum(row["error"] is not None for row in rows)
        tally.images = len(rows) - tally.errors
        return pa.Table.from_pylist(rows, schema=EMBEDDING_SCHEMA), tally


def _describe(image: PreparedImage, stored: StoredEmbedding | ValueError) -> dict[str, Any]:
    """One image's columns of `EMBEDDING_SCHEMA`."""
    if isinstance(stored, ValueError):
        return {"error": str(stored)}
    height, width = image.image_hw
    return {
        "height": height,
        "width": width,
        "shape": stored.values.shape,
        "embedding": stored.values.tobytes(),
        "scale": stored.scale.tolist() if stored.scale is not None else None,
    }
