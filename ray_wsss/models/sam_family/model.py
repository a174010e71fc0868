"""Base of the models read through transformers, behind the interface of promptable models."""

from collections.abc import Sequence

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder
from torch import Tensor, nn
from torch.nn import functional as F

from ray_wsss.models.promptable.frame import InputFrame
from ray_wsss.models.promptable.interface import MapShape, PromptableModel


class HubModel(PromptableModel):
    """An image encoder of transformers with segment_anything's prompt encoder and mask decoder.

    Args:
        image_encoder: turns inputs into the maps of `Embeddings`.
        frame: the square input.
        map_shapes: shapes of those maps, the coarsest first.
        mean, std: of an image's channels, for values in [0, 1].
    """

    mask_threshold = 0.0

    def __init__(
        self,
        image_encoder: nn.Module,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        *,
        frame: InputFrame,
        map_shapes: Sequence[MapShape],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder, self.mask_decoder = prompt_encoder, mask_decoder
        self._frame, self._map_shapes = frame, tuple(map_shapes)
        for name, values in (("pixel_mean", mean), ("pixel_std", std)):
            column = 255 * torch.tensor(values)[:, None, None]
            self.register_buffer(name, column, persistent=False)

    @property
    def frame(self) -> InputFrame:
        return self._frame

    @property
    def map_shapes(self) -> tuple[MapShape, ...]:
        return self._map_shapes

    @property
    def mask_side_px(self) -> int:
        return self.prompt_encoder.mask_input_size[0]

    @property
    def device(self) -> torch.device:
        return self.get_buffer("pixel_mean").device

    def preprocess(self, x: Tensor) -> Tensor:
        normal = (x - self.get_buffer("pixel_mean")) / self.get_buffer("pixel_std")
        side = self.frame.side_px
        return F.pad(normal, (0, side - x.shape[-1], 0, side - x.shape[-2]))

    def cast_encoder(self, dtype: torch.dtype) -> None:
        self.image_encoder.to(dtype)

    def drop_encoder(self) -> None:
        self.image_encoder = nn.Identity()
