"""SAM's two-way transformer for a batch of prompt sets, of different lengths and of images that repeat.

segment_anything's `TwoWayTransformer.forward` supports no padding, and computes everything for every prompt
set. This module does the same arithmetic with the same weights, but masks the tokens that only fill up a set,
projects an image's pixels once for all its prompt sets as long as they are the same, and does not keep the
attention matrix in memory.
"""

from typing import cast

import torch
from jaxtyping import Bool, Float, Int
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
    image_embedding: Float[Tensor, "M D h w"],
    image_position: Float[Tensor, "#M D h w"],
    tokens: Float[Tensor, "N T D"],
    valid: Bool[Tensor, "N T"] | None = None,
    image_index: Int[Tensor, " N"] | None = None,
) -> tuple[Float[Tensor, "N T D"], Float[Tensor, "N P D"]]:
    """Run the transformer, and return its tokens and its image pixels (P = h w).

    Args:
        image_position: positional encoding of the image, added to its queries and keys in every attention.
        valid: False for tokens that only fill up a set; every set needs a valid token. The other tokens'
            outputs mean nothing, and they affect neither the valid tokens' outputs nor the image's. None: all
            are valid.
        image_index: index of each prompt set's image; None: M is N, and each prompt set has its own image.
    """
    keys = image_embedding.flatten(2).transpose(1, 2)
    key_position = image_position.flatten(2).transpose(1, 2)
    queries = tokens
    for layer in transformer.layers:
        block = cast(TwoWayAttentionBlock, layer)
        queries, keys = _run_block(block, queries, keys, tokens, key_position, valid, image_index)
        image_index = None  # from here on, each prompt set has pixels of its own
    to_image = transformer.final_attn_token_to_image
    attended = _attend(*_project(to_image, queries + tokens, keys + key_position, keys), to_image)
    return transformer.norm_final_attn(queries + attended), keys


def _run_block(
    block: TwoWayAttentionBlock,
    queries: Float[Tensor, "N T D"],
    keys: Float[Tensor, "M P D"],
    query_position: Float[Tensor, "N T D"],
    key_position: Float[Tensor, "#M P D"],
    valid: Bool[Tensor, "N T"] | None,
    image_index: Int[Tensor, " N"] | None,
) -> tuple[Float[Tensor, "N T D"], Float[Tensor, "N P D"]]:
    def of_sets(of_images: Tensor) -> Tensor:
        return of_images if image_index is None else of_images[image_index]

    own = block.self_attn
    if block.skip_first_layer_pe:
        queries = _attend_tokens(*_project(own, queries, queries, queries), own, valid)
    else:
        placed = queries + query_position
        queries = queries + _attend_tokens(*_project(own, placed, placed, queries), own, valid)
    queries = block.norm1(queries)

    # All pixels are valid: SAM does not mask its padding of the image.
    placed_keys = keys + key_position
    to_image = block.cross_attn_token_to_image
    q, k, v = _project(to_image, queries + query_position, placed_keys, keys)
    queries = block.norm2(queries + _attend(q, of_sets(k), of_sets(v), to_image))
    queries = block.norm3(queries + block.mlp(queries))

    to_tokens = block.cross_attn_image_to_token
    q, k, v = _project(to_tokens, placed_keys, queries + query_position, queries)
    attended = _attend_tokens(of_sets(q), k, v, to_tokens, valid)
    return queries, block.norm4(of_sets(keys) + attended)


def _project(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The projections at the beginning of `Attention.forward`."""
    return attention.q_proj(q), attention.k_proj(k), attention.v_proj(v)


def _attend_tokens(
    q: Float[Tensor, "N Q C"],
    k: Float[Tensor, "N T C"],
    v: Float[Tensor, "N T C"],
    attention: Attention,
    valid: Bool[Tensor, "N T"] | None,
) -> Float[Tensor, "N Q D"]:
    """`_attend` to tokens, of which those that are not valid get no attention."""
    fill = 0 if q.is_cuda else -k.shape[1] % _VECTOR
    if fill and valid is None:
        valid = torch.ones(1, k.shape[1], dtype=torch.bool, device=k.device)
    mask = None if valid is None else F.pad(valid, (0, fill))[:, None, None, :]
    return _attend(q, F.pad(k, (0, 0, 0, fill)), F.pad(v, (0, 0, 0, fill)), attention, mask)


def _attend(
    q: Float[Tensor, "N Q C"],
    k: Float[Tensor, "N K C"],
    v: Float[Tensor, "N K C"],
    attention: Attention,
    mask: Bool[Tensor, "#N 1 1 K"] | None = None,
) -> Float[Tensor, "N Q D"]:
    """The rest of `Attention.forward`, after the projections."""
    heads = [x.unflatten(2, (attention.num_heads, -1)).transpose(1, 2) for x in (q, k, v)]
    out = F.scaled_dot_product_attention(*heads, attn_mask=mask)
    return attention.out_proj(out.transpose(1, 2).flatten(2))
