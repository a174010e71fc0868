"""The lite SAM: segment_anything's prompt encoder and mask decoder behind EfficientNet-Lite0.

It is small enough for a laptop's CPU, ships with the package, and knows photographs. Its weights were trained
by ``jobs/train_lite_sam.py``; ``docs/lite_sam.md`` is their model card.

As in SAM 2, finer maps of the encoder reach the decoder on a short cut: they are added to its features while
it enlarges them.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Bool, Float
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ray_wsss.models.promptable.interface import Embeddings, MapShape, RunBlock
from ray_wsss.models.sam.decoder import attend, encode_prompts, read_masks
from ray_wsss.models.sam.model import SegmentAnything

IMAGE_SIZE_PX = 384
STRIDE_PX = 16
PROMPT_DIM = 128
FINE_DIMS = (PROMPT_DIM // 4, PROMPT_DIM // 8)
"""Channels of the maps at strides 8 and 4: those that the decoder's upscaling has there."""
STAGES = 7
"""Stages of EfficientNet-Lite0."""
HINT_WIDTHS = (0.02, 0.08)
"""Widths (standard deviations) of the bumps that are drawn at points, as shares of the input's side."""
HINTS = 2 * len(HINT_WIDTHS) + 1
LITE0 = {"model_name": "tf_efficientnet_lite0", "features_only": True, "out_indices": (1, 2, 3, 4)}


def lite_checkpoint() -> Path:
    """Path of the weights inside the package (safetensors, fp16)."""
    return Path(str(files("ray_wsss.models.sam") / "lite.safetensors"))


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

    def forward(self, inputs: Float[Tensor, "N 3 S S"]) -> tuple[Tensor, Tensor, Tensor]:
        return self.merge(self.stages(self.stem(inputs), range(STAGES)))


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
    network: Any = timm.create_model(**LITE0)
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    fold_batch_norms(network.eval())
    encoder.network.load_state_dict(network.state_dict())


class LiteMaskDecoder(MaskDecoder):
    """SAM's mask decoder, to whose enlarged features the encoder's finer maps are added."""

    def enlarge(
        self, image: Float[Tensor, "N D h w"], middle: Tensor, fine: Tensor
    ) -> Float[Tensor, "N F H W"]:
        """Enlarge the transformer's image four times, with the maps at strides 8 and 4."""
        double, norm, act, double_again, act_again = self.output_upscaling
        return act_again(double_again(act(norm(double(image) + middle))) + fine)


class LitePromptEncoder(PromptEncoder):
    """SAM's prompt encoder, which also tells where prompts are on the map, and what the image shows there.

    SAM learns both from positions alone, with a thousand times more masks than the lite SAM was trained with.
    Without these hints its masks were those of the most salient object, wherever the click was.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.shown = nn.Linear(PROMPT_DIM + sum(FINE_DIMS), PROMPT_DIM)
        self.hints = nn.ModuleList(nn.Conv2d(HINTS, dim, 1, bias=False) for dim in (PROMPT_DIM, FINE_DIMS[0]))
        for layer in (self.shown, *self.hints):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def look(self, maps: Sequence[Tensor], points_xy: Float[Tensor, "N P 2"]) -> Float[Tensor, "N P D"]:
        """What the encoder's maps show at points, for their embeddings."""
        places = ((points_xy + 0.5) / self.input_image_size[0] * 2 - 1)[:, :, None]
        shown = [F.grid_sample(x, places, align_corners=False, padding_mode="border") for x in maps]
        return self.shown(torch.cat(shown, 1)[..., 0].transpose(1, 2))

    def draw(
        self, points_xy: Tensor | None, labels: Tensor | None, boxes_xyxy: Tensor | None, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Prompts on the grids of strides 16 and 8, to be added to the transformer's image and to the map."""
        side, cells = self.input_image_size[0], self.image_embedding_size[0]
        drawn = [
            layer(draw_prompts(points_xy, labels, boxes_xyxy, valid, side, factor * cells))
            for factor, layer in zip((1, 2), self.hints)
        ]
        return drawn[0], drawn[1]


def draw_prompts(
    points_xy: Float[Tensor, "N P 2"] | None,
    labels: Float[Tensor, "N P"] | None,
    boxes_xyxy: Float[Tensor, "N 4"] | None,
    valid: Bool[Tensor, "N P"] | None,
    side_px: int,
    cells: int,
) -> Float[Tensor, "N 5 h w"]:
    """Draw prompts: a small and a large bump at each foreground point, the same of background, boxes."""
    given = points_xy if points_xy is not None else boxes_xyxy
    assert given is not None
    at = (torch.arange(cells, device=given.device, dtype=given.dtype) + 0.5) * (side_px / cells)
    drawn = given.new_zeros(len(given), HINTS, cells, cells)
    if points_xy is not None and labels is not None:
        squares = (points_xy[..., None] + 0.5 - at).square()  # (N, P, 2, cells)
        distances = squares[:, :, 1, :, None] + squares[:, :, 0, None, :]
        there = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid
        for kind in (1, 0):
            of_kind = (there & (labels == kind))[..., None, None]
            for size, width in enumerate(HINT_WIDTHS):
                bumps = torch.exp(distances / (-2 * (width * side_px) ** 2)) * of_kind
                drawn[:, 2 * (1 - kind) + size] = bumps.amax(1)
    if boxes_xyxy is not None:
        x0, y0, x1, y1 = boxes_xyxy[:, :, None].unbind(1)
        inside_x, inside_y = (at >= x0) & (at <= x1), (at >= y0) & (at <= y1)
        drawn[:, 4] = (inside_y[:, :, None] & inside_x[:, None]).to(drawn.dtype)
    return drawn


class LiteSam(SegmentAnything):
    """SAM whose image encoder gives three maps, at strides 16, 8 and 4."""

    # LiteEncoder, LitePromptEncoder and LiteMaskDecoder; Sam declares the types of its own.
    image_encoder: Any
    prompt_encoder: Any
    mask_decoder: Any

    def set_input_side(self, side_px: int) -> None:
        """Change the side of the input, a multiple of 32 px: no weight depends on it."""
        self.image_encoder.img_size = side_px
        self.prompt_encoder.input_image_size = (side_px, side_px)
        self.prompt_encoder.image_embedding_size = (side_px // STRIDE_PX, side_px // STRIDE_PX)
        self.prompt_encoder.mask_input_size = (side_px // 4, side_px // 4)

    @property
    def map_shapes(self) -> tuple[MapShape, ...]:
        side = self.image_encoder.img_size
        dims = zip((PROMPT_DIM, *FINE_DIMS), (STRIDE_PX, 8, 4))
        return tuple((dim, side // stride, side // stride) for dim, stride in dims)

    def cast_encoder(self, dtype: torch.dtype) -> None:
        self.image_encoder.to(dtype=dtype, memory_format=torch.channels_last)

    def encode(self, inputs: Tensor, run_block: RunBlock | None = None) -> Embeddings:
        dtype = next(self.image_encoder.parameters()).dtype
        return Embeddings(tuple(x.float() for x in self.image_encoder(inputs.to(dtype))))

    def decode(
        self,
        embeddings: Embeddings,
        points_xy: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes_xyxy: Tensor | None = None,
        mask_logits: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        decoder, (coarse, middle, fine) = self.mask_decoder, embeddings.maps
        sparse, dense = encode_prompts(self, points_xy, point_labels, boxes_xyxy, mask_logits)
        if points_xy is not None:
            points_xy = points_xy.to(coarse.dtype)  # segment everything gives float64
            shown = self.prompt_encoder.look(embeddings.maps, points_xy)
            sparse = sparse + F.pad(shown, (0, 0, 0, sparse.shape[1] - shown.shape[1]))
        if points_xy is not None or boxes_xyxy is not None:
            on_coarse, on_middle = self.prompt_encoder.draw(points_xy, point_labels, boxes_xyxy, valid)
            dense, middle = dense + on_coarse, middle + on_middle
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        hidden, source = attend(self, coarse, (sparse, dense), output_tokens, valid)
        tokens = hidden[:, 1 : 1 + decoder.num_mask_tokens]
        enlarged = decoder.enlarge(source, middle, fine)
        logits = read_masks(decoder.output_hypernetworks_mlps, tokens, enlarged)
        return logits, decoder.iou_prediction_head(hidden[:, 0])


def build_lite_sam() -> LiteSam:
    """Build an untrained lite SAM: 384 px input, low-resolution masks 96 x 96.

    Images are normalised as for EfficientNet-Lite0, and otherwise prepared as for Meta's checkpoints.
    """
    grid = IMAGE_SIZE_PX // STRIDE_PX
    encoder: Any = LiteEncoder()
    sam = LiteSam(
        image_encoder=encoder,
        prompt_encoder=LitePromptEncoder(
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
