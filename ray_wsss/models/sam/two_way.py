"""SAM's two-way transformer for prompt sets of different lengths in one batch.

segment_anything's `TwoWayTransformer.forward` does not support padding. This module does the same arithmetic
with the same weights, but masks the tokens that only fill up a set, and does not keep the attention matrix in
memory.
"""

from typing import cast

from jaxtyping import Bool, Float
from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor
from torch.nn import functional as F

_VECTOR = 16
"""Keys are filled up to a multiple of it on CPUs. There, attention of many pixels to a few tokens computes
what does not fill a vector (of at most 16 float32) number by number: in 5.2 ms, and in 1.1 ms with 12 tokens
filled up to 16."""


def run_two_way(
    transformer: TwoWayTransformer,
    image_embedding: Float[Tensor, "N D h w"],
    image_position: Float[Tensor, "N D h w"],
    tokens: Float[Tensor, "N T D"],
    valid: Bool[Tensor, "N T"],
) -> tuple[Float[Tensor, "N T D"], Float[Tensor, "N P D"]]:
    """Run the transformer, and return its tokens and its image pixels (P = h w).

    Args:
        image_position: positional encoding of the image, added to its queries and keys in every attention.
        valid: False for tokens that only fill up a set; every set needs a valid token. The other tokens'
            outputs mean nothing, and they affect neither the valid tokens' outputs nor the image's.
    """
    keys = image_embedding.flatten(2).transpose(1, 2)
    key_position = image_position.flatten(2).transpose(1, 2)
    queries = tokens
    for layer in transformer.layers:
        block = cast(TwoWayAttentionBlock, layer)
        queries, keys = _run_block(block, queries, keys, tokens, key_position, valid)
    attended = _attend(
        transformer.final_attn_token_to_image, queries + tokens, keys + key_position, keys, None
    )
    return transformer.norm_final_attn(queries + attended), keys


def _run_block(
    block: TwoWayAttentionBlock,
    queries: Float[Tensor, "N T D"],
    keys: Float[Tensor, "N P D"],
    query_position: Float[Tensor, "N T D"],
    key_position: Float[Tensor, "N P D"],
    valid: Bool[Tensor, "N T"],
) -> tuple[Float[Tensor, "N T D"], Float[Tensor, "N P D"]]:
    if block.skip_first_layer_pe:
        queries = _attend(block.self_attn, queries, queries, queries, valid)
    else:
        placed = queries + query_position
        queries = queries + _attend(block.self_attn, placed, placed, queries, valid)
    queries = block.norm1(queries)

    # All pixels are valid: SAM does not mask its padding of the image.
    placed_keys = keys + key_position
    to_image = block.cross_attn_token_to_image
    queries = block.norm2(queries + _attend(to_image, queries + query_position, placed_keys, keys, None))
    queries = block.norm3(queries + block.mlp(queries))

    to_tokens = block.cross_attn_image_to_token
    attended = _attend(to_tokens, placed_keys, queries + query_position, queries, valid)
    return queries, block.norm4(keys + attended)


def _attend(
    attention: Attention,
    q: Float[Tensor, "N Q D"],
    k: Float[Tensor, "N K D"],
    v: Float[Tensor, "N K D"],
    valid: Bool[Tensor, "N K"] | None,
) -> Float[Tensor, "N Q D"]:
    """`Attention.forward`, in which keys that are not valid get no attention."""
    projected = (attention.q_proj(q), attention.k_proj(k), attention.v_proj(v))
    heads = [x.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for x in projected]
    if valid is None:
        out = F.scaled_dot_product_attention(*heads)
    else:
        fill = 0 if valid.is_cuda else -valid.shape[1] % _VECTOR
        query, key, value = heads[0], *(F.pad(x, (0, 0, 0, fill)) for x in heads[1:])
        mask = F.pad(valid, (0, fill))[:, None, None, :]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attention.out_proj(out.transpose(1, 2).flatten(2))
