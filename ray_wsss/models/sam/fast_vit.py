"""segment_anything's image encoder with its own weights, faster: attention without a matrix of biases.

ViTDet's attention adds to the logit of query (y, x) and key (y', x') ``rel_h[y, x, y'] + rel_w[y, x, x']``.
That sum is a dot product: of the query's (rel_h | rel_w) with ones at y' and H + x'. So the bias moves into
queries and keys, which get H + W more channels, and any fused attention will do; segment_anything writes
4096 x 4096 biases and as many logits, for every head.
"""

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, Block, window_partition, window_unpartition
from torch import Tensor
from torch.nn import functional as F

_MULTIPLE = 8
"""Fused attention wants heads of so many channels, or a multiple."""
_BAND = 256
"""Queries whose logits are in memory together, where there is no fused attention."""


def fast_forward(encoder: ImageEncoderViT, inputs: Tensor) -> Tensor:
    """What ``encoder(inputs)`` is, up to rounding: (N, 3, S, S) to (N, D, h, w), in the weights' dtype."""
    x = encoder.patch_embed(inputs.to(encoder.patch_embed.proj.weight.dtype))
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    for block in encoder.blocks:
        assert isinstance(block, Block)
        x = _block(encoder, block, x)
    return encoder.neck(x.permute(0, 3, 1, 2))


def make_tables(encoder: ImageEncoderViT) -> None:
    """What positions alone decide, as buffers beside the weights; a state dict does not have them.

    Nothing is done where they are there already.
    """
    for block in encoder.blocks:
        assert isinstance(block, Block)
        side = block.window_size or encoder.img_size // encoder.patch_embed.proj.stride[0]
        if block.attn.use_rel_pos and not hasattr(encoder, f"keys_{side}"):
            weight = block.attn.qkv.weight
            at = torch.arange(side, device=weight.device)
            encoder.register_buffer(f"offsets_{side}", at[:, None] - at + side - 1, persistent=False)
            one_hot = torch.eye(side, device=weight.device, dtype=weight.dtype)
            keys = torch.cat([one_hot.repeat_interleave(side, 0), one_hot.repeat(side, 1)], 1)
            spare = -(weight.shape[1] // block.attn.num_heads + 2 * side) % _MULTIPLE
            encoder.register_buffer(f"keys_{side}", F.pad(keys, (0, spare)), persistent=False)


def _block(encoder: ImageEncoderViT, block: Block, x: Tensor) -> Tensor:
    """One transformer block on tokens (N, H, W, C)."""
    tokens, size, hw = block.norm1(x), block.window_size, (x.shape[1], x.shape[2])
    if size > 0:
        windows, padded_hw = window_partition(tokens, size)
        attended = window_unpartition(_attend(encoder, block.attn, windows), size, padded_hw, hw)
    else:
        attended = _attend(encoder, block.attn, tokens)
    x = x + attended
    return x + block.mlp(block.norm2(x))


def _attend(encoder: ImageEncoderViT, attn: Attention, x: Tensor) -> Tensor:
    """Attention among the tokens of each square (M, side, side, C)."""
    count, side, width, _ = x.shape
    assert side == width, "SAM's input and its windows are square"
    q, k, v = attn.qkv(x).reshape(count, side * side, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    with torch.autocast(x.device.type, enabled=False):
        if attn.use_rel_pos:
            q, k = _fold(encoder, attn, q, k)
        else:
            q = q * attn.scale
        attended = _mix(q, k, v)
    return attn.proj(attended.transpose(1, 2).reshape(x.shape))


def _fold(encoder: ImageEncoderViT, attn: Attention, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Queries, scaled, and keys (M, heads, side^2, channels) with the relative positions in them."""
    side = int(q.shape[2] ** 0.5)
    offsets, keys = encoder.get_buffer(f"offsets_{side}"), encoder.get_buffer(f"keys_{side}").to(k.dtype)
    squares = q.unflatten(2, (side, side))
    spare = keys.shape[1] - 2 * side
    rel_h = attn.rel_pos_h[offsets].to(q.dtype)
    rel_w = F.pad(attn.rel_pos_w[offsets].to(q.dtype), (0, 0, 0, spare))
    positions = [
        torch.einsum("bnhwc,hkc->bnhwk", squares, rel_h).flatten(2, 3),
        torch.einsum("bnhwc,wkc->bnhwk", squares, rel_w).flatten(2, 3),
    ]
    queries = torch.cat([q * attn.scale, *positions], -1)
    return queries, torch.cat([k, keys.expand(*k.shape[:2], -1, -1)], -1)


def _mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Means of values (M, heads, L, D), weighted by softmax of the products of q and k, wider ones."""
    if q.device.type == "cpu" and q.dtype != torch.float32:
        # Here torch's fused attention is slower than in float32, and matrix multiplication faster.
        bands = q.split(_BAND, 2)
        return torch.cat([(band @ k.transpose(-1, -2)).softmax(-1) @ v for band in bands], 2)
    # Without equal widths there is no fused kernel.
    padded = F.pad(v, (0, k.shape[-1] - v.shape[-1]))
    return F.scaled_dot_product_attention(q, k, padded, scale=1.0)[..., : v.shape[-1]]
