"""What SAM's masks lose where its encoder leaves out the padding of images that are not square.

python tests/unit/models/measure_padding.py

Of scenes that were cut to some height, masks of four points each, all three of SAM's outputs: the mean IoU
with those of the padded image, and the one that 99 % of the masks reach. Embeddings of the padding are zeros,
those of an empty image, or the mean of those that padded scenes have.
"""

import torch
from segment_anything.modeling.image_encoder import Block, window_partition, window_unpartition
from torch import Tensor

from ray_wsss.config import SamConfig
from ray_wsss.data.scenes import make_scene
from ray_wsss.models.promptable.prepare import prepare_images
from ray_wsss.models.sam.build import build_sam
from ray_wsss.models.sam.decoder import decode_prompts, upscale_logits
from ray_wsss.models.sam.model import SegmentAnything

SCENES, POINTS, SIDE = 128, 4, 128


def encode_without_padding(sam: SegmentAnything, inputs: Tensor, padding: Tensor) -> Tensor:
    """Embeddings (N, D, h, w) of inputs (N, 3, H, S), of a height that patches divide.

    Args:
        padding: (1, D, h, w), what the rest of the embedding is.
    """
    encoder = sam.image_encoder
    x = encoder.patch_embed(inputs)
    assert encoder.pos_embed is not None
    x = x + encoder.pos_embed[:, : x.shape[1], : x.shape[2]]
    for block in encoder.blocks:
        assert isinstance(block, Block)
        tokens, hw = block.norm1(x), (x.shape[1], x.shape[2])
        if block.window_size > 0:
            tokens, padded_hw = window_partition(tokens, block.window_size)
            tokens = window_unpartition(attend(block, tokens), block.window_size, padded_hw, hw)
        else:
            tokens = attend(block, tokens)
        x = x + tokens
        x = x + block.mlp(block.norm2(x))
    found = encoder.neck(x.permute(0, 3, 1, 2))
    return torch.cat([found, padding[:, :, found.shape[2] :].expand(len(found), -1, -1, -1)], 2)


def attend(block: Block, x: Tensor) -> Tensor:
    """Attention among the tokens of rectangles (M, H, W, C)."""
    attn, (count, height, width, _) = block.attn, x.shape
    q, k, v = attn.qkv(x).reshape(count, height * width, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    squares = q.unflatten(2, (height, width))
    tables = []
    for table, side in ((attn.rel_pos_h, height), (attn.rel_pos_w, width)):
        at = torch.arange(side)
        tables.append(table[at[:, None] - at + len(table) // 2])
    bias_h = torch.einsum("bnhwc,hkc->bnhwk", squares, tables[0])[..., :, None]
    bias_w = torch.einsum("bnhwc,wkc->bnhwk", squares, tables[1])[..., None, :]
    bias = (bias_h + bias_w).flatten(4).flatten(2, 3)
    attended = (attn.scale * q @ k.transpose(-1, -2) + bias).softmax(-1) @ v
    return attn.proj(attended.transpose(1, 2).reshape(x.shape))


@torch.no_grad()
def measure(sam: SegmentAnything, height: int) -> dict[str, tuple[float, float]]:
    """Mean IoU, and its first percentile, by what the padding's embeddings are."""
    scenes = [make_scene(seed, SIDE, SIDE).image[:height] for seed in range(SCENES)]
    inputs = prepare_images(sam, scenes)
    padded = sam.image_encoder(inputs)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(SCENES * POINTS, 1, 2, generator=generator) * torch.tensor([SIDE - 1.0, height - 1.0])

    def masks(embeddings: Tensor) -> Tensor:
        logits, _ = decode_prompts(
            sam, embeddings.repeat_interleave(POINTS, 0), points, torch.ones(len(points), 1)
        )
        return upscale_logits(sam, logits[:, 1:], (height, SIDE), (height, SIDE)) > 0

    paddings = {
        "zeros": torch.zeros_like(padded[:1]),
        "of an empty image": sam.image_encoder(torch.zeros_like(inputs[:1])),
        "mean of padded scenes": padded.mean(0, keepdim=True),
    }
    expected, figures = masks(padded), {}
    for name, padding in paddings.items():
        found = masks(encode_without_padding(sam, inputs[:, :, :height], padding))
        union = (found | expected).sum((2, 3))
        iou = torch.where(union > 0, (found & expected).sum((2, 3)) / union, 1.0)
        figures[name] = iou.mean().item(), iou.quantile(0.01).item()
    return figures


if __name__ == "__main__":
    tiny = build_sam(SamConfig(name="tiny"))
    for height in (128, 112, 96, 80, 64):
        for name, (mean, low) in measure(tiny, height).items():
            print(f"{SIDE} x {height}, padding {name}: mean IoU {mean:.3f}, 99 % above {low:.3f}")
