"""SAM's embedding of every image of a chunk, made or read back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from segment_anything.modeling import Sam
from torch import Tensor

from ray_wsss.config import EmbedConfig, SamConfig
from ray_wsss.data.embeddings import EMBEDDING_SCHEMA, GROUP_BYTES, store_embedding
from ray_wsss.models.sam.encoder import encode_resized, load_sam
from ray_wsss.stages.chunks import PreparedImage
from ray_wsss.stages.tally import Tally


def embeddings_of(sam: Sam, images: Sequence[PreparedImage], batch_size: int) -> Tensor:
    """Embeddings (N, D, h, w) of images: those that they bring, else SAM's encoder makes them.

    Args:
        batch_size: images per pass of the encoder.
    """
    resized = [image.sam_pixels for image in images if image.sam_pixels is not None]
    if len(resized) == len(images):
        return encode_resized(sam, resized, batch_size)
    restored = []
    for image in images:
        scale = image.embedding_scale
        on_device = torch.tensor(scale, device=sam.device) if scale is not None else None
        restored.append(restore_embedding(torch.tensor(image.embedding, device=sam.device), on_device))
    return torch.stack(restored)


def restore_embedding(values: Tensor, scale: Tensor | None) -> Tensor:
    """Float32 of stored values (..., D, h, w), fp16, or int8 with a scale (..., D)."""
    return values.float() if scale is None else values.float() * scale[..., None, None]


class SamEmbedder:
    """Embeds the images of a chunk; hosts SAM's encoder on one device.

    A row that fails carries its reason in ``error``; the others go on.
    """

    def __init__(self, config: EmbedConfig, sam: SamConfig, device: str = "cpu") -> None:
        self.config, self.batch_size = config, sam.encode_batch_size
        self.sam = load_sam(sam, torch.device(device))
        encoder = self.sam.image_encoder
        grid = self.sam.prompt_encoder.image_embedding_size
        shape = (self.sam.prompt_encoder.embed_dim, *grid)
        self.rows_per_group = max(1, GROUP_BYTES // (int(np.prod(shape)) * 2))
        self.device = next(encoder.parameters()).device

    def __call__(self, images: Sequence[PreparedImage]) -> tuple[pa.Table, Tally]:
        """Images to rows of `EMBEDDING_SCHEMA`, in order, and what it took."""
        tally = Tally()
        rows = [{"image_id": image.image_id, "error": image.error} for image in images]
        good = [at for at, image in enumerate(images) if image.error is None]
        if good:
            with tally.phase("encode", self.device):
                embeddings = embeddings_of(self.sam, [images[at] for at in good], self.batch_size)
                embeddings = embeddings.cpu().numpy()
            with tally.phase("write"):
                for at, embedding in zip(good, embeddings):
                    rows[at] |= self._describe(images[at], embedding)
        tally.errors = sum(row["error"] is not None for row in rows)
        tally.images = len(rows) - tally.errors
        return pa.Table.from_pylist(rows, schema=EMBEDDING_SCHEMA), tally

    def _describe(self, image: PreparedImage, embedding: np.ndarray) -> dict[str, Any]:
        try:
            stored = store_embedding(embedding, self.config.dtype)
        except ValueError as error:
            return {"error": str(error)}
        height, width = image.image_hw
        return {
            "height": height,
            "width": width,
            "shape": embedding.shape,
            "embedding": stored.values.tobytes(),
            "scale": stored.scale.tolist() if stored.scale is not None else None,
        }
