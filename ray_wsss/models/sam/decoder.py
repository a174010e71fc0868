"""Prompt decoding for many images and classes in one call.

segment_anything's ``MaskDecoder.predict_masks`` repeats one image's embedding for every prompt.
Here each prompt set brings its own embedding, so one call serves a whole batch. The arithmetic is
that of segment_anything's sub-modules, and the result equals ``SamPredictor.predict_torch``.
"""

from collections.abc import Iterable
from typing import Protocol, cast, runtime_checkable

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from ray_wsss.models.sam.two_way import run_two_way


@runtime_checkable
class HasSamDecoder(Protocol):
    """A network with SAM's prompt encoder and mask decoder."""

    prompt_encoder: PromptEncoder
    mask_decoder: MaskDecoder


def encode_prompts(
    sam: HasSamDecoder,
    points_xy: Tensor | None,
    point_labels: Tensor | None,
    boxes_xyxy: Tensor | None = None,
    mask_logits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Sparse (N, T, D) and dense (N or 1, D, h, w) prompt embeddings of N prompt sets.

    The arguments are those of `decode_prompts`. Sparse embeddings of points come first; all embeddings equal
    those of SAM's ``prompt_encoder``.
    """
    encoder = sam.prompt_encoder
    sparse, dense = encoder(points=None, boxes=boxes_xyxy, masks=mask_logits)
    if points_xy is None or point_labels is None:
        return sparse, dense
    if boxes_xyxy is not None:
        return torch.cat([_embed_points(encoder, points_xy, point_labels), sparse], dim=1), dense
    # Without a box, SAM appends a padding point (label -1).
    padded = F.pad(points_xy, (0, 0, 0, 1)), F.pad(point_labels, (0, 1), value=-1)
    return _embed_points(encoder, *padded), dense


def _embed_points(encoder: PromptEncoder, points_xy: Tensor, labels: Tensor) -> Tensor:
    """`PromptEncoder._embed_points`, without its indexing by label, for which the host would wait."""
    negative, positive = (encoder.get_parameter(f"point_embeddings.{k}.weight") for k in (0, 1))
    kind = labels[..., None]
    position = encoder.pe_layer.forward_with_coords(points_xy + 0.5, encoder.input_image_size)
    embedding = position + torch.where(kind == 1, positive, negative)
    return torch.where(kind == -1, encoder.not_a_point_embed.weight, embedding)


def decode_prompts(
    sam: HasSamDecoder,
    embeddings: Tensor,
    points_xy: Tensor | None,
    point_labels: Tensor | None,
    boxes_xyxy: Tensor | None = None,
    mask_logits: Tensor | None = None,
    valid: Tensor | None = None,
    image_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Decode the masks of N prompt sets, each on its image's embedding.

    Padding sets of different lengths with label -1 would change the masks. So callers either batch sets of
    equal length (`ops.prompt_batches.bucket_by_count`), or mark in ``valid`` the points that only fill a set
    up.

    Args:
        embeddings: (N, D, h, w) image embeddings, one per prompt set; with ``image_index`` (M, D, h, w), one
            per image.
        points_xy: (N, P, 2) pixels of SAM's input frame, x before y; None without points.
        point_labels: (N, P), 1 foreground, 0 background; None without points.
        boxes_xyxy: (N, 4) boxes in SAM's input frame; None without boxes.
        mask_logits: (N, 1, 4h, 4w) low-resolution logits of an earlier call; None without masks.
        valid: (N, P) bool, False for a point that only fills up its set: the masks equal those of the set
            without it, up to rounding. None: all points are valid.
        image_index: (N,) index of each prompt set's image; None: the k-th set is of the k-th image.

    Returns:
        logits: (N, 4, 4h, 4w) low-resolution mask logits. Output 0 is the single-mask output,
            1 to 3 are the multimask outputs sub-part, part and whole.
        predicted_iou: (N, 4) SAM's own estimate of each mask's IoU.
    """
    prompts = encode_prompts(sam, points_xy, point_labels, boxes_xyxy, mask_logits)
    decoder = sam.mask_decoder
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    hidden, source = attend(sam, embeddings, prompts, output_tokens, valid, image_index)
    upscaled = decoder.output_upscaling(source)
    tokens = hidden[:, 1 : 1 + decoder.num_mask_tokens]
    return read_masks(decoder.output_hypernetworks_mlps, tokens, upscaled), decoder.iou_prediction_head(
        hidden[:, 0]
    )


def attend(
    sam: HasSamDecoder,
    embeddings: Tensor,
    prompts: tuple[Tensor, Tensor],
    output_tokens: Tensor,
    valid: Tensor | None,
    image_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Let output tokens, prompts and images attend to each other.

    Args:
        embeddings: (N, D, h, w) image embeddings, one per prompt set; with ``image_index`` (M, D, h, w).
        prompts: sparse and dense embeddings, as from `encode_prompts`.
        output_tokens: (K, D) learned tokens that masks and scores are read from.
        valid, image_index: those of `decode_prompts`.

    Returns:
        hidden: (N, T, D) tokens, of which the first K are the output tokens.
        source: (N, D, h, w) image embeddings.
    """
    sparse, dense = prompts
    if image_index is not None and len(dense) > 1:  # masks as prompts: no two sets have the same map
        embeddings, image_index = embeddings[image_index], None
    count = len(embeddings if image_index is None else image_index)
    tokens = torch.cat([output_tokens.expand(count, -1, -1), sparse.expand(count, -1, -1)], dim=1)
    if valid is not None:
        others = (len(output_tokens), sparse.shape[1] - valid.shape[1])
        valid = F.pad(valid, others, value=True)
    transformer = cast(TwoWayTransformer, sam.mask_decoder.transformer)
    position = sam.prompt_encoder.get_dense_pe()
    hidden, source = run_two_way(transformer, embeddings + dense, position, tokens, valid, image_index)
    return hidden, source.transpose(1, 2).reshape(count, *embeddings.shape[1:])


def enlarge(decoder: MaskDecoder, source: Tensor, middle: Tensor, fine: Tensor) -> Tensor:
    """Enlarge `attend`'s ``source`` four times as SAM does, and add finer maps on the way, as SAM 2 does.

    Args:
        middle: (N, D / 4, 2h, 2w) map of the images.
        fine: (N, D / 8, 4h, 4w) map of the images.
    """
    double, norm, act, double_again, act_again = decoder.output_upscaling
    return act_again(double_again(act(norm(double(source) + middle))) + fine)


def read_masks(mlps: Iterable[nn.Module], tokens: Tensor, upscaled: Tensor) -> Tensor:
    """Logits (N, K, a, b) of masks: each token (N, K, D), by its own network, weights maps (N, C, a, b)."""
    kernels = torch.stack([mlp(token) for mlp, token in zip(mlps, tokens.unbind(1))], dim=1)
    return torch.einsum("nkc,nchw->nkhw", kernels, upscaled)


def upscale_logits(
    sam: HasSamDecoder, logits: Tensor, input_hw: tuple[int, int], image_hw: tuple[int, int]
) -> Tensor:
    """Resize low-resolution logits (N, K, a, b) to image resolution (N, K, H, W), as SAM does.

    SAM resizes them to its square input, cuts off the padding, and resizes the rest to the image, bilinearly.
    This function does not compute the part that is cut off.

    Args:
        input_hw: height and width of the resized image inside SAM's square input, in pixels.
        image_hw: height and width of the image itself, in pixels.
    """
    factor = sam.prompt_encoder.input_image_size[0] // logits.shape[-1]
    # Pixels at the edge also need their neighbours beyond it.
    rows, columns = (min(logits.shape[-1], -(-px // factor) + 1) for px in input_hw)
    logits = logits[..., :rows, :columns]
    frame = F.interpolate(logits, (factor * rows, factor * columns), mode="bilinear", align_corners=False)
    return F.interpolate(
        frame[..., : input_hw[0], : input_hw[1]], image_hw, mode="bilinear", align_corners=False
    )
