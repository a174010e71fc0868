"""segment_anything's image encoder with its own weights, faster: attention without a matrix of biases.

ViTDet's attention adds to the logit of query (y, x) and key (y', x') ``rel_h[y, x, y'] + rel_w[y, x, x']``.
That sum is a dot product: of the query's (rel_h | rel_w) with ones at y' and H + x'. So the bias moves into
queries and keys, which get H + W more channels, and any fused attention will do; segment_anything writes
4096 x 4096 biases and as many logits, for every head.
"""

from collections.abc import Callable
from typing import Any

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, Block, window_partition, window_unpartition
from torch import Tensor
from torch._dynamo import config as dynamo
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

_MULTIPLE = 8
"""Fused attention wants heads of so many channels, or a multiple."""
_BAND = 256
"""Queries whose logits are in memory together, where there is no fused attention."""
_SHAPES = 64
"""Kinds of blocks, batches and precisions that a process may compile, of all its SAMs; torch's limit is 8."""

RunBlock = Callable[[Block, Tensor, Tensor, Tensor], Tensor]
"""A block on tokens (N, H, W, C), with its side's offsets and keys (`make_tables`)."""


def fast_forward(encoder: ImageEncoderViT, inputs: Tensor, run_block: RunBlock | None = None) -> Tensor:
    """What ``encoder(inputs)`` is, up to rounding: (N, 3, S, S) to (N, D, h, w), in the weights' dtype.

    Args:
        run_block: of `compile_block`; without it nothing is compiled.
    """
    make_tables(encoder)
    run = run_block or _block
    x = encoder.patch_embed(inputs.to(encoder.patch_embed.proj.weight.dtype))
    if encoder.pos_embed is not None:
        x = x + encoder.pos_embed
    for block in encoder.blocks:
        assert isinstance(block, Block)
        side = _side_of(encoder, block)
        x = run(block, x, encoder.get_buffer(f"offsets_{side}"), encoder.get_buffer(f"keys_{side}"))
    return encoder.neck(x.permute(0, 3, 1, 2))


def compile_block(*, flex: bool) -> RunBlock:
    """How to run blocks compiled, for tensors of one shape.

    SAM's blocks are of two kinds, with windows and without: compiling both serves them all, where the encoder
    as a whole would be up to 32 of them.

    Args:
        flex: attention among all tokens gets the relative positions from `flex_attention`, a kernel made for
            them, and is not widened by them: that is 30 % of the folded ViT-B's products, 8 % of ViT-H's. On
            a CPU the folded way is faster.
    """
    dynamo.cache_size_limit = max(_SHAPES, dynamo.cache_size_limit)
    folded, before, mix, after = map(_compile, (_block, _split, _flex, _finish))

    def run(block: Block, x: Tensor, offsets: Tensor, keys: Tensor) -> Tensor:
        if not flex or block.window_size > 0 or not block.attn.use_rel_pos:
            return folded(block, x, offsets, keys)
        # In parts, since flex_attention on a CPU reads only biases that were made before.
        q, k, v, *biases = before(block.attn, block.norm1(x), offsets)
        return after(block, x, mix(q, k, v, *biases, block.attn.scale))

    return run


def _compile(function: Any) -> Any:
    # With a full graph a failure is an error; without, it would be slow and nobody would know.
    return torch.compile(function, dynamic=False, fullgraph=True)


def make_tables(encoder: ImageEncoderViT) -> None:
    """What positions alone decide, as buffers beside the weights; a state dict does not have them.

    Nothing is done where they are there already.
    """
    for block in encoder.blocks:
        assert isinstance(block, Block)
        side = _side_of(encoder, block)
        if not hasattr(encoder, f"keys_{side}"):
            weight = block.attn.qkv.weight
            at = torch.arange(side, device=weight.device)
            encoder.register_buffer(f"offsets_{side}", at[:, None] - at + side - 1, persistent=False)
            one_hot = torch.eye(side, device=weight.device, dtype=weight.dtype)
            keys = torch.cat([one_hot.repeat_interleave(side, 0), one_hot.repeat(side, 1)], 1)
            spare = -(weight.shape[1] // block.attn.num_heads + 2 * side) % _MULTIPLE
            encoder.register_buffer(f"keys_{side}", F.pad(keys, (0, spare)), persistent=False)


def _side_of(encoder: ImageEncoderViT, block: Block) -> int:
    """Tokens along a side of the square in which a block attends."""
    return block.window_size or encoder.img_size // encoder.patch_embed.proj.stride[0]


def _block(block: Block, x: Tensor, offsets: Tensor, keys: Tensor) -> Tensor:
    """One transformer block on tokens (N, H, W, C)."""
    tokens, size, hw = block.norm1(x), block.window_size, (x.shape[1], x.shape[2])
    if size > 0:
        windows, padded_hw = window_partition(tokens, size)
        attended = _attend(block.attn, windows, offsets, keys)
        return _finish(block, x, window_unpartition(attended, size, padded_hw, hw))
    return _finish(block, x, _attend(block.attn, tokens, offsets, keys))


def _finish(block: Block, x: Tensor, attended: Tensor) -> Tensor:
    """What comes after attention, itself (N, H, W, C) still without its projection."""
    x = x + block.attn.proj(attended)
    return x + block.mlp(block.norm2(x))


def _attend(attn: Attention, x: Tensor, offsets: Tensor, keys: Tensor) -> Tensor:
    """Attention among the tokens of each square (M, side, side, C), without the projection after it."""
    q, k, v, bias_h, bias_w = _split(attn, x, offsets)
    queries = q * attn.scale
    if attn.use_rel_pos:
        spare = q.new_zeros(()).expand(*q.shape[:3], keys.shape[1] - 2 * x.shape[1])
        queries = torch.cat([queries, bias_h, bias_w, spare], -1)
        k = torch.cat([k, keys.to(k.dtype).expand(*k.shape[:2], -1, -1)], -1)
    return _merge(_mix(queries, k, v), x.shape[1])


def _split(attn: Attention, x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values (M, heads, L, D), and the biases of rows and of columns (M, heads, L, side)."""
    count, side, width, _ = x.shape
    assert side == width, "SAM's input and its windows are square"
    q, k, v = attn.qkv(x).reshape(count, side * side, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    if not attn.use_rel_pos:
        nothing = q.new_empty(0)
        return q, k, v, nothing, nothing
    squares = q.unflatten(2, (side, side))
    rel_h, rel_w = (table[offsets].to(q.dtype) for table in (attn.rel_pos_h, attn.rel_pos_w))
    bias_h = torch.einsum("bnhwc,hkc->bnhwk", squares, rel_h).flatten(2, 3)
    bias_w = torch.einsum("bnhwc,wkc->bnhwk", squares, rel_w).flatten(2, 3)
    return q, k, v, bias_h, bias_w


def _merge(heads: Tensor, side: int) -> Tensor:
    """(M, heads, L, D) to squares of tokens (M, side, side, C)."""
    return heads.transpose(1, 2).flatten(2).unflatten(1, (side, side))


def _mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Means of values (M, heads, L, D), weighted by softmax of the products of q and k, wider ones."""
    if q.device.type == "cpu" and q.dtype != torch.float32:
        # Here torch's fused attention is slower than in float32, and matrix multiplication faster.
        bands = q.split(_BAND, 2)
        return torch.cat([(band @ k.transpose(-1, -2)).softmax(-1) @ v for band in bands], 2)
    # Without equal widths there is no fused kernel.
    padded = F.pad(v, (0, k.shape[-1] - v.shape[-1]))
    return F.scaled_dot_product_attention(q, k, padded, scale=1.0)[..., : v.shape[-1]]


def _flex(q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor, scale: float) -> Tensor:
    """The same as squares of tokens, from the biases; where it is not compiled, they are written out."""
    side = bias_h.shape[-1]
    attended = flex_attention(
        q,
        k,
        v,
        score_mod=lambda logit, m, head, query, key: (
            logit + bias_h[m, head, query, key // side] + bias_w[m, head, query, key % side]
        ),
        scale=scale,
    )
    assert isinstance(attended, Tensor)
    return _merge(attended, side)
