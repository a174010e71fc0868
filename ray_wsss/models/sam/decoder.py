"""Prompt decoding for many images and classes in one call.

segment_anything's ``MaskDecoder.predict_masks`` repeats one image's embedding for every prompt.
Here each prompt set brings its own embedding, so one call serves a whole batch. The arithmetic is
that of segment_anything's sub-modules, and the result equals ``SamPredictor.predict_torch``.
"""

import torch
from segment_anything.modeling import Sam
from torch import Tensor
from torch.nn import functional as F


def encode_prompts(
    sam: Sam, points_xy: Tensor | None, point_labels: Tensor | None, boxes_xyxy: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sparse (N, T, D) and dense (N, D, h, w) prompt embeddings of N prompt sets.

    Arguments as for `decode_prompts`.
    """
    points = None if points_xy is None or point_labels is None else (points_xy, point_labels)
    return sam.prompt_encoder(points=points, boxes=boxes_xyxy, masks=None)


def decode_prompts(
    sam: Sam,
    embeddings: Tensor,
    points_xy: Tensor | None,
    point_labels: Tensor | None,
    boxes_xyxy: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Masks of N prompt sets, each on its own image embedding.

    All sets of a call have the same number of points: padding with label -1 would change the
    result, so callers bucket by that number (`ops.prompts.bucket_by_count`).

    Args:
        embeddings: (N, D, h, w) image embeddings, one per prompt set.
        points_xy: (N, P, 2) pixels of SAM's input frame, x before y; None without points.
        point_labels: (N, P), 1 foreground, 0 background; None without points.
        boxes_xyxy: (N, 4) boxes in SAM's input frame; None without boxes.

    Returns:
        logits: (N, 4, 4h, 4w) low-resolution mask logits. Output 0 is the single-mask output,
            1 to 3 are the multimask outputs sub-part, part and whole.
        predicted_iou: (N, 4).
    """
    sparse, dense = encode_prompts(sam, points_xy, point_labels, boxes_xyxy)
    decoder = sam.mask_decoder
    count = sparse.shape[0]
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output_tokens.expand(count, -1, -1), sparse], dim=1)
    position = sam.prompt_encoder.get_dense_pe().expand(count, -1, -1, -1)
    hidden, source = decoder.transformer(embeddings + dense, position, tokens)

    masks_at = slice(1, 1 + decoder.num_mask_tokens)
    upscaled = decoder.output_upscaling(source.transpose(1, 2).reshape(embeddings.shape))
    kernels = torch.stack(
        [mlp(token) for mlp, token in zip(decoder.output_hypernetworks_mlps, hidden[:, masks_at].unbind(1))],
        dim=1,
    )
    logits = torch.einsum("nkc,nchw->nkhw", kernels, upscaled)
    return logits, decoder.iou_prediction_head(hidden[:, 0])


def upscale_logits(sam: Sam, logits: Tensor, input_hw: tuple[int, int], image_hw: tuple[int, int]) -> Tensor:
    """Low-resolution logits (N, K, a, b) to image resolution (N, K, H, W), as SAM does it.

    First to SAM's square input, then the padding is cut off, then to the image (bilinear).

    Args:
        input_hw: size of the resized image inside SAM's square input, in pixels.
        image_hw: size of the image itself, in pixels.
    """
    size = sam.image_encoder.img_size
    square = F.interpolate(logits, (size, size), mode="bilinear", align_corners=False)
    return F.interpolate(
        square[..., : input_hw[0], : input_hw[1]], image_hw, mode="bilinear", align_corners=False
    )
