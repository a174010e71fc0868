"""Prompt encoder of the lite SAM: SAM's, with hints."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from segment_anything.modeling import PromptEncoder
from torch import Tensor, nn
from torch.nn import functional as F

from ray_wsss.models.sam.lite_encoder import FINE_DIMS, PROMPT_DIM

HINT_WIDTHS = (0.02, 0.08)
"""Widths (standard deviations) of the bumps that are drawn at points, as shares of the input's side."""
HINTS = 2 * len(HINT_WIDTHS) + 1


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
        """Read what the encoder's maps show at points, for their embeddings."""
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
