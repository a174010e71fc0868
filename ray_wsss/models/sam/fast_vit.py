"""segment_anything's image encoder with its own weights, faster: attention without a matrix of biases.

ViTDet's attention adds the bias ``rel_h[y, x, y'] + rel_w[y, x, x']`` to the logit of query (y, x) and key
(y', x'). That sum is a dot product: the query's (rel_h | rel_w) times a vector with ones at y' and H + x'. So
the bias is folded into queries and keys as H + W more channels, and any fused attention can compute it.
segment_anything instead writes 4096 x 4096 biases, and as many logits, for every head.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Attention, Block, window_partition, window_unpartition
from torch import Tensor
from torch._dynamo import config as dynamo
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

P = ParamSpec("P")
R = TypeVar("R")

_MULTIPLE = 8
"""Fused attention needs a multiple of this number of channels per head."""
_BAND = 256
"""Queries whose logits are in memory at a time, where fused attention is not used."""
_SHAPES = 64
"""Most combinations of block, batch size and precision that a process may compile; torch's own limit is 8."""

RunBlock = Callable[[Block, Tensor, Tensor, Tensor], Tensor]
"""Runs a block on tokens (N, H, W, C), with the offsets and keys for its side (`make_tables`)."""


def fast_forward(encoder: ImageEncoderViT, inputs: Tensor, run_block: RunBlock | None = None) -> Tensor:
    """Compute ``encoder(inputs)``, up to rounding: (N, 3, S, S) to (N, D, h, w), in the weights' dtype.

    Args:
        run_block: result of `compile_block`; None: nothing is compiled.
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
    """Make a function that runs blocks compiled, for tensors of one shape.

    SAM has two kinds of blocks, with windows and without. Compiling one of each serves all blocks; compiling
    the whole encoder would compile up to 32 blocks.

    Args:
        flex: use `flex_attention`, which applies the relative positions itself, for attention among all
            tokens. Queries and keys then keep their width; the extra channels of the folded bias are 30 % of
            ViT-B's products and 8 % of ViT-H's. On a CPU the folded bias is faster.
    """
    dynamo.cache_size_limit = max(_SHAPES, dynamo.cache_size_limit)
    folded, before, mix, after = _compile(_block), _compile(_split), _compile(_flex), _compile(_finish)

    def run(block: Block, x: Tensor, offsets: Tensor, keys: Tensor) -> Tensor:
        if not flex or block.window_size > 0 or not block.attn.use_rel_pos:
            return folded(block, x, offsets, keys)
        # In parts, since flex_attention on a CPU can only read biases that are computed beforehand.
        q, k, v, bias_h, bias_w = before(block.attn, block.norm1(x), offsets)
        return after(block, x, mix(q, k, v, bias_h, bias_w, block.attn.scale))

    return run


def _compile(function: Callable[P, R]) -> Callable[P, R]:
    # With fullgraph a failure raises an error; without it, the function would silently run slowly.
    return torch.compile(function, dynamic=False, fullgraph=True)


def make_tables(encoder: ImageEncoderViT) -> None:
    """Add tables that depend only on positions to the encoder, as buffers that its state dict leaves out.

    Existing tables are kept.
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
    """Tokens along a side of the square within which a block attends."""
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
    """Rest of a block after attention; ``attended`` (N, H, W, C) is not projected yet."""
    x = x + block.attn.proj(attended)
    return x + block.mlp(block.norm2(x))


def _attend(attn: Attention, x: Tensor, offsets: Tensor, keys: Tensor) -> Tensor:
    """Attention among the tokens of each square (M, side, side, C), without the output projection."""
    q, k, v, bias_h, bias_w = _split(attn, x, offsets)
    queries = q * attn.scale
    if attn.use_rel_pos:
        spare = q.new_zeros(()).expand(*q.shape[:3], keys.shape[1] - 2 * x.shape[1])
        queries = torch.cat([queries, bias_h, bias_w, spare], -1)
        k = torch.cat([k, keys.to(k.dtype).expand(*k.shape[:2], -1, -1)], -1)
    return _merge(_mix(queries, k, v), x.shape[1])


def _split(attn: Attention, x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values (M, heads, L, D), row biases and column biases (M, heads, L, side)."""
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
    """Turn (M, heads, L, D) into squares of tokens (M, side, side, C)."""
    return heads.transpose(1, 2).flatten(2).unflatten(1, (side, side))


def _mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Means of values (M, heads, L, D), weighted by the softmax of q k^T; q and k may be wider."""
    if q.device.type == "cpu" and q.dtype != torch.float32:
        # In low precision on a CPU, torch's fused attention is slower than in float32, and matmul is faster.
        bands = q.split(_BAND, 2)
        return torch.cat([(band @ k.transpose(-1, -2)).softmax(-1) @ v for band in bands], 2)
    # Fused kernels need as many channels in v as in q and k.
    padded = F.pad(v, (0, k.shape[-1] - v.shape[-1]))
    return F.scaled_dot_product_attention(q, k, padded, scale=1.0)[..., : v.shape[-1]]


def _flex(q: Tensor, k: Tensor, v: Tensor, bias_h: Tensor, bias_w: Tensor, scale: float) -> Tensor:
    """Attention by flex_attention, as squares of tokens; uncompiled, it writes out all biases."""
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
