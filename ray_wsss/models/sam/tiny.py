"""The tiny SAM: segment_anything's own modules, small enough for a laptop and shipped with the package.

Its weights were trained by ``jobs/train_tiny_sam.py`` on generated scenes only. The three
multimask outputs mean what they mean in SAM: sub-part, part, whole.
"""

from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import cast

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import nn

from ray_wsss.models.sam.model import SegmentAnything

IMAGE_SIZE_PX = 128
PATCH_PX = 8
EMBED_DIM = 128
PROMPT_DIM = 64


def tiny_checkpoint() -> Path:
    """Path of the weights inside the package (safetensors, fp16)."""
    return Path(str(files("ray_wsss.models.sam") / "tiny.safetensors"))


def build_tiny_sam() -> SegmentAnything:
    """Build an untrained tiny SAM: 128 px input, embedding (64, 16, 16), low-resolution masks 64 x 64.

    SAM's input normalisation is kept, so images are prepared as for Meta's checkpoints.
    """
    grid = IMAGE_SIZE_PX // PATCH_PX
    sam = SegmentAnything(
        image_encoder=ImageEncoderViT(
            img_size=IMAGE_SIZE_PX,
            patch_size=PATCH_PX,
            embed_dim=EMBED_DIM,
            depth=6,
            num_heads=4,
            mlp_ratio=4,
            norm_layer=cast(type[nn.Module], partial(nn.LayerNorm, eps=1e-6)),  # any factory works
            use_rel_pos=True,
            window_size=8,
            global_attn_indexes=(1, 3, 5),
            out_chans=PROMPT_DIM,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=PROMPT_DIM,
            image_embedding_size=(grid, grid),
            input_image_size=(IMAGE_SIZE_PX, IMAGE_SIZE_PX),
            mask_in_chans=8,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=PROMPT_DIM, mlp_dim=256, num_heads=4),
            transformer_dim=PROMPT_DIM,
            iou_head_depth=3,
            iou_head_hidden_dim=64,
        ),
    )
    return sam.eval()
