"""Interface of all promptable models: from images to embeddings, and from prompts to masks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ray_wsss.models.promptable.frame import HW, InputFrame

MapShape = tuple[int, int, int]
"""Channels, height and width of a feature map."""
RunBlock = Callable[..., Tensor]
"""Compiled block of an image encoder (`models.sam.fast_vit.compile_block`)."""


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Feature maps of N images, which decoding needs."""

    maps: tuple[Tensor, ...]
    """One or several feature maps, each (N, D, h, w) float32, the coarsest first."""

    @staticmethod
    def cat(parts: Sequence["Embeddings"]) -> "Embeddings":
        """The embeddings of the images of all parts, in order; at least one part."""
        return Embeddings(tuple(torch.cat(maps) for maps in zip(*(part.maps for part in parts))))

    def __len__(self) -> int:
        return len(self.maps[0])

    def __getitem__(self, images: Any) -> "Embeddings":
        """Embeddings of some images: a slice, a list, or a tensor of indices, which may repeat."""
        return Embeddings(tuple(values[images] for values in self.maps))

    @property
    def device(self) -> torch.device:
        """Device of the maps."""
        return self.maps[0].device

    def to(self, device: torch.device | str) -> "Embeddings":
        """The embeddings on a device."""
        return Embeddings(tuple(values.to(device) for values in self.maps))


class PromptableModel(nn.Module, ABC):
    """A network that turns an image, and prompts in it, into masks.

    Coordinates of prompts are pixels of its square input (`frame`), x before y.
    """

    mask_threshold: float
    """Logit above which a pixel belongs to a mask."""
    whole: ClassVar[int | None] = None
    """Index of the mask output for the whole object; None if no output is known to mean that."""

    @property
    def can_compile(self) -> bool:
        """Whether `encode` takes a compiled block."""
        return False

    @property
    @abstractmethod
    def frame(self) -> InputFrame:
        """The square input."""

    @property
    @abstractmethod
    def map_shapes(self) -> tuple[MapShape, ...]:
        """Shapes of an image's `Embeddings`, the coarsest first."""

    @property
    @abstractmethod
    def mask_side_px(self) -> int:
        """Height and width of low-resolution mask logits: those of masks, and of mask prompts."""

    @property
    @abstractmethod
    def device(self) -> Any:
        """Device of the weights."""

    @abstractmethod
    def preprocess(self, x: Tensor) -> Tensor:
        """Normalise, and pad to the square input, images (..., 3, h, w) float in [0, 255].

        They have the size that `frame` gives them.
        """

    @abstractmethod
    def cast_encoder(self, dtype: torch.dtype) -> None:
        """Give the weights of the image encoder a dtype; prompt encoder and decoder stay float32."""

    @abstractmethod
    def drop_encoder(self) -> None:
        """Let go of the image encoder, which has most weights, where embeddings come from elsewhere."""

    @abstractmethod
    def encode(self, inputs: Tensor, run_block: RunBlock | None = None) -> Embeddings:
        """Embeddings of inputs (N, 3, S, S) as from `preprocess`.

        Args:
            run_block: compiled block of the encoder, where `can_compile` is true; None: nothing is compiled.
        """

    @abstractmethod
    def decode(
        self,
        embeddings: Embeddings,
        points_xy: Tensor | None = None,
        point_labels: Tensor | None = None,
        boxes_xyxy: Tensor | None = None,
        mask_logits: Tensor | None = None,
        valid: Tensor | None = None,
        image_index: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode the masks of N prompt sets, of any images and classes, each on its own image's embedding.

        Sets of different lengths are not to be filled up with points of label -1, which would change the
        masks. Callers batch sets of equal length (`ops.prompt_batches.bucket_by_count`), or mark in ``valid``
        the points that only fill a set up.

        Args:
            embeddings: one for each prompt set, or, with ``image_index``, those of the images.
            points_xy: (N, P, 2) points; None without points.
            point_labels: (N, P), 1 foreground, 0 background; None without points.
            boxes_xyxy: (N, 4) boxes; None without boxes.
            mask_logits: (N, 1, a, a) low-resolution logits of an earlier call; None without masks.
            valid: (N, P) bool, False for a point that only fills up its set: the masks equal those of the set
                without it, up to rounding. None: all points are valid.
            image_index: (N,) index into ``embeddings`` of each prompt set's image, which may repeat: what
                depends on an image alone may then be computed once for all its prompt sets. None: the k-th
                prompt set is of the k-th embedding.

        Returns:
            logits: (N, 1 + K, a, a) low-resolution mask logits. Output 0 is the single-mask output, for
                prompts that leave no doubt; the others are alternatives, for prompts that do.
            predicted_iou: (N, 1 + K) the model's own estimate of each mask's IoU.
        """

    @abstractmethod
    def upscale(self, logits: Tensor, input_hw: HW, image_hw: HW) -> Tensor:
        """Resize low-resolution logits (N, K, a, a) to the image (N, K, H, W), as the model's own code does.

        Args:
            input_hw: height and width of the image inside the input, in pixels (`InputFrame.inner_hw`).
            image_hw: height and width of the result, in pixels.
        """
