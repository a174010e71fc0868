"""The lite SAM: segment_anything's prompt encoder and mask decoder behind EfficientNet-Lite0.

It is small enough for a laptop's CPU, ships with the package, and knows photographs. Its weights were trained
by ``jobs/train_lite_sam.py``; ``docs/lite_sam.md`` is their model card.

As in SAM 2, finer maps of the encoder reach the decoder on a short cut: they are added while it enlarges its
masks. An embedding holds all three maps in one tensor. It has the grid of the coarsest; the cells of the
finer ones lie in its channels (`pack`).
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

IMAGE_SIZE_PX = 384
STRIDE_PX = 16
PROMPT_DIM = 128
FINE_DIMS = (PROMPT_DIM // 4, PROMPT_DIM // 8)
"""Channels of the maps at strides 8 and 4: those that the decoder's upscaling has there."""
EMBED_DIM = PROMPT_DIM + 4 * FINE_DIMS[0] + 16 * FINE_DIMS[1]
"""Channels of an embedding, in which all maps are packed."""


def lite_checkpoint() -> Path:
    """Path of the weights inside the package (safetensors, fp16)."""
    return Path(str(files("ray_wsss.models.sam") / "lite.safetensors"))


def pack(
    coarse: Float[Tensor, "N D h w"], fine: Sequence[Float[Tensor, "N _ _ _"]]
) -> Float[Tensor, "N E h w"]:
    """Put maps of 1, 2 and 4 times the grid (h, w) into the channels of one."""
    return torch.cat([coarse, *(F.pixel_unshuffle(x, x.shape[-1] // coarse.shape[-1]) for x in fine)], 1)


def unpack(embeddings: Float[Tensor, "N E h w"]) -> tuple[Tensor, Tensor, Tensor]:
    """Maps at strides 16, 8 and 4 of `pack`: (N, 128, h, w), (N, 32, 2h, 2w), (N, 16, 4h, 4w)."""
    coarse, middle, fine = embeddings.split((PROMPT_DIM, 4 * FINE_DIMS[0], 16 * FINE_DIMS[1]), 1)
    return coarse, F.pixel_shuffle(middle, 2), F.pixel_shuffle(fine, 4)


class ContextBlock(nn.Module):
    """ConvNeXt's block: each cell looks at the 7 x 7 around it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = LayerNorm2d(dim)
        self.mlp = nn.Sequential(nn.Conv2d(dim, 4 * dim, 1), nn.GELU(), nn.Conv2d(4 * dim, dim, 1))

    def forward(self, x: Float[Tensor, "N D h w"]) -> Float[Tensor, "N D h w"]:
        return x + self.mlp(self.norm(self.spread(x)))


class LiteEncoder(nn.Module):
    """EfficientNet-Lite0, whose maps at strides 4 to 32 are merged into an embedding.

    The batch norms are folded into the convolutions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.img_size = IMAGE_SIZE_PX
        network: Any = timm.create_model(
            "tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3, 4)
        )
        fold_batch_norms(network.eval())
        self.network = network
        dims = network.feature_info.channels()
        self.lateral = nn.ModuleList(nn.Conv2d(dim, PROMPT_DIM, 1) for dim in dims[2:])
        self.down = nn.Conv2d(dims[1], PROMPT_DIM, 2, stride=2)
        self.context = nn.Sequential(*(ContextBlock(PROMPT_DIM) for _ in range(3)), LayerNorm2d(PROMPT_DIM))
        middle, fine = FINE_DIMS
        self.fine_lateral = nn.ModuleList([nn.Conv2d(dims[1], middle, 1), nn.Conv2d(dims[0], fine, 1)])
        self.fine_top = nn.ModuleList([nn.Conv2d(PROMPT_DIM, middle, 1), nn.Conv2d(middle, fine, 1)])
        self.fine_mix = nn.ModuleList(
            nn.Sequential(nn.GELU(), nn.Conv2d(dim, dim, 3, padding=1)) for dim in FINE_DIMS
        )

    def features(self, inputs: Float[Tensor, "N 3 S S"]) -> list[Tensor]:
        """EfficientNet-Lite0's maps at strides 4, 8, 16 and 32."""
        return self.stages(self.stem(inputs), range(7))

    def stem(self, inputs: Float[Tensor, "N 3 S S"]) -> Tensor:
        return self.network.bn1(self.network.conv_stem(inputs.contiguous(memory_format=torch.channels_last)))

    def stages(self, x: Tensor, which: range) -> list[Tensor]:
        """Maps at the end of those of the given stages after which the stride changes."""
        maps = []
        for stage in which:
            x = self.network.blocks[stage](x)
            if stage in (1, 2, 4, 6):
                maps.append(x)
        return maps

    def merge(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Maps at strides 16, 8 and 4 for the decoder."""
        at4, at8, at16, at32 = features
        last = F.interpolate(self.lateral[1](at32), scale_factor=2, mode="bilinear", align_corners=False)
        coarse = self.context(self.lateral[0](at16) + last + self.down(at8))
        maps = [coarse]
        for lateral, top, mix, x in zip(self.fine_lateral, self.fine_top, self.fine_mix, (at8, at4)):
            above = F.interpolate(top(maps[-1]), scale_factor=2, mode="bilinear", align_corners=False)
            maps.append(mix(lateral(x) + above))
        return maps[0], maps[1], maps[2]

    def embed(self, features: Sequence[Tensor]) -> Float[Tensor, "N E h w"]:
        """Embedding of the maps of `features`."""
        coarse, *fine = self.merge(features)
        return pack(coarse, fine)

    def forward(self, inputs: Float[Tensor, "N 3 S S"]) -> Float[Tensor, "N E h w"]:
        return self.embed(self.features(inputs))


def fold_batch_norms(network: nn.Module) -> None:
    """Replace each batch norm of an EfficientNet by its activation, and change the convolution before it.

    The network in eval mode computes the same as before, in half as many passes over memory.
    """
    before: tuple[str, nn.Module] | None = None
    for name, child in list(network.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            assert before is not None
            network.add_module(before[0], fuse_conv_bn_eval(before[1], child))  # pyright: ignore
            network.add_module(name, getattr(child, "act", nn.Identity()))
        elif not isinstance(child, nn.Conv2d):
            fold_batch_norms(child)
        before = name, child


def load_lite0(encoder: LiteEncoder, state: dict[str, Tensor]) -> None:
    """Load EfficientNet-Lite0's weights, under timm's names and with batch norms, into the encoder."""
    network: Any = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3, 4))
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    fold_batch_norms(network.eval())
    encoder.network.load_state_dict(network.state_dict())


def set_input_side(sam: Sam, side_px: int) -> None:
    """Change the side of a lite SAM's input, a multiple of 32 px: nothing in it depends on a size."""
    sam.image_encoder.img_size = side_px
    sam.prompt_encoder.input_image_size = (side_px, side_px)
    sam.prompt_encoder.image_embedding_size = (side_px // STRIDE_PX, side_px // STRIDE_PX)


class LiteMaskDecoder(MaskDecoder):
    """SAM's mask decoder, to whose enlarged features the encoder's finer maps are added."""

    def upscale(
        self, image: Float[Tensor, "N D h w"], middle: Tensor, fine: Tensor
    ) -> Float[Tensor, "N F 4h 4w"]:
        """Enlarge the transformer's image four times, with the maps at strides 8 and 4 of `unpack`."""
        enlarge, norm, act, enlarge_again, act_again = self.output_upscaling
        return act_again(enlarge_again(act(norm(enlarge(image) + middle))) + fine)


def build_lite_sam() -> Sam:
    """Build an untrained lite SAM: 384 px input, embedding (512, 24, 24), low-resolution masks 96 x 96.

    Images are normalised as for EfficientNet-Lite0, and otherwise prepared as for Meta's checkpoints.
    """
    grid = IMAGE_SIZE_PX // STRIDE_PX
    encoder: Any = LiteEncoder()  # Sam declares ViT's
    sam = Sam(
        image_encoder=encoder,
        prompt_encoder=PromptEncoder(
            embed_dim=PROMPT_DIM,
            image_embedding_size=(grid, grid),
            input_image_size=(IMAGE_SIZE_PX, IMAGE_SIZE_PX),
            mask_in_chans=16,
        ),
        mask_decoder=LiteMaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=PROMPT_DIM, mlp_dim=512, num_heads=4),
            transformer_dim=PROMPT_DIM,
            iou_head_depth=3,
            iou_head_hidden_dim=128,
        ),
        pixel_mean=[127.0, 127.0, 127.0],
        pixel_std=[128.0, 128.0, 128.0],
    )
    return sam.eval()
