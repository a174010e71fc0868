"""Speed of promptable models: the model's own predictor image by image, and ours in batches."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import SamPredictor
from torch import Tensor

from ray_wsss.benchmark.matmul import wait
from ray_wsss.benchmark.sam import agreement
from ray_wsss.benchmark.untrained import untrained_model
from ray_wsss.config import SamConfig
from ray_wsss.data.scenes import make_scene
from ray_wsss.models.promptable.build import build_model
from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.models.promptable.precision import precision_on
from ray_wsss.models.sam.lite import LiteSam
from ray_wsss.models.sam.model import SegmentAnything
from ray_wsss.models.sam_family.hub import find_folder, hub_frame, read_transformers

_SIZE_HW = (480, 640)
Predict = Callable[[Sequence[NDArray[np.uint8]], NDArray[np.float64]], Tensor]
"""From N images and a point (x, y) in each to logits (N, K, H, W) of the alternative masks."""


@dataclass(frozen=True, kw_only=True)
class PredictorBenchmark:
    """Times a point in each image, from the image in the host's memory to logits of its size.

    The model's own predictor is transformers' processor and model, or segment_anything's `SamPredictor`. For
    lite, which has no other code than ours, it is ours with one image at a time.
    """

    sam: SamConfig
    """The model; without a checkpoint it has random weights, but lite the package's."""
    device: Literal["cpu", "cuda"]
    images: int
    """Number of generated scenes."""
    repeats: int
    """Number of rounds. In each round both ways take all images once."""
    work: Path
    """Folder for random weights."""

    @torch.no_grad()
    def run(self) -> dict[str, Any]:
        """Measure; returns the figures. Rates are medians over the rounds.

        ``mask_iou`` (a mean) and ``max_logit_diff`` compare ours with the model's own predictor. The masks of
        random weights mean little.
        """
        device = torch.device(self.device)
        precision = precision_on(self.sam, self.device)
        model, theirs = self._models()
        images = [make_scene(seed, *_SIZE_HW).image for seed in range(self.images)]
        points = np.random.default_rng(0).random((self.images, 2)) * _SIZE_HW[::-1]
        own = _own_predictor(self.sam, theirs.to(device))
        ours = _Ours(SamEncoder(model.to(device), precision, self.sam.encode_batch_size))
        seconds: dict[str, list[float]] = {"stock": [], "ours": []}
        found: dict[str, Tensor] = {}
        for turn in range(self.repeats + 1):
            for name, predict in (("stock", own), ("ours", ours)):
                some = slice(None if turn else self.sam.encode_batch_size)
                wait(device)
                began = time.perf_counter()
                found[name] = predict(images[some], points[some])
                wait(device)
                if turn:
                    seconds[name].append(time.perf_counter() - began)
        rates = {name: self.images / median(values) for name, values in seconds.items()}
        return {
            "sam": self.sam.name,
            "licence": self.sam.card.licence,
            "weights": self.sam.checkpoint or ("the package's" if self.sam.name == "lite" else "random"),
            "device": self.device,
            "device_name": torch.cuda.get_device_name() if self.device == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "precision": precision,
            "images": self.images,
            "batch_size": self.sam.encode_batch_size,
            "repeats": self.repeats,
            "images_per_s": rates,
            "ours_over_stock": rates["ours"] / rates["stock"],
            "embedding_mib_fp16": sum(2 * np.prod(shape) for shape in model.map_shapes) / 2**20,
            **agreement(found["stock"], found["ours"]),
            "logit_std": found["stock"].std().item(),
        }

    def _models(self) -> tuple[Any, Any]:
        """Our model, and what its own predictor takes."""
        if self.sam.checkpoint is None and self.sam.name != "lite":
            return untrained_model(self.sam.settled_name, self.work)
        model = build_model(self.sam)
        if isinstance(model, SegmentAnything):
            return model, build_model(self.sam)
        return model, read_transformers(self.sam, find_folder(self.sam)).eval()


class _Ours:
    """Encoding and decoding in batches."""

    def __init__(self, encoder: SamEncoder) -> None:
        self.encoder, self.sam = encoder, encoder.sam

    def __call__(self, images: Sequence[NDArray[np.uint8]], points_xy: NDArray[np.float64]) -> Tensor:
        size, size_hw = self.encoder.batch_size, images[0].shape[:2]
        placed = self.sam.frame.place_points(points_xy[:, None], (size_hw[0], size_hw[1]))
        points = torch.tensor(placed, dtype=torch.float32, device=self.sam.device)
        found: list[Tensor] = []
        for start in range(0, len(images), size):
            some = points[start : start + size]
            embeddings = self.encoder(images[start : start + size])
            logits, _ = self.sam.decode(embeddings, some, some.new_ones(some.shape[:2]))
            found.append(self.sam.upscale(logits[:, 1:], self.sam.frame.inner_hw(size_hw), size_hw))
        return torch.cat(found)


def _own_predictor(config: SamConfig, theirs: Any) -> Predict:
    if isinstance(theirs, LiteSam):
        return _Ours(SamEncoder(theirs, "fp32", 1))
    if isinstance(theirs, SegmentAnything):
        return _SegmentAnythingPredictor(SamPredictor(theirs))
    return _TransformersPredictor(theirs, config)


class _SegmentAnythingPredictor:
    def __init__(self, predictor: SamPredictor) -> None:
        self.predictor = predictor

    def __call__(self, images: Sequence[NDArray[np.uint8]], points_xy: NDArray[np.float64]) -> Tensor:
        return torch.cat([self._one(image, xy) for image, xy in zip(images, points_xy)])

    def _one(self, image: NDArray[np.uint8], xy: NDArray[np.float64]) -> Tensor:
        self.predictor.set_image(image)
        size_hw = (image.shape[0], image.shape[1])
        placed = self.predictor.transform.apply_coords(xy[None], size_hw)
        points = torch.tensor(placed, dtype=torch.float32, device=self.predictor.device)[None]
        return self.predictor.predict_torch(points, points.new_ones(1, 1), return_logits=True)[0]


class _TransformersPredictor:
    def __init__(self, model: Any, config: SamConfig) -> None:
        import transformers

        self.model, side_px = model, hub_frame(config).side_px
        square = {"height": side_px, "width": side_px}
        if config.name.startswith("hq_"):
            images = transformers.SamImageProcessorPil(size={"longest_edge": side_px}, pad_size=square)
            self.processor: Any = transformers.SamHQProcessor(images)
        else:
            kind = "Sam3" if config.name == "sam3_tracker" else "Sam2"
            images = getattr(transformers, f"{kind}ImageProcessor")(size=square)
            self.processor = transformers.Sam2Processor(images)

    def __call__(self, images: Sequence[NDArray[np.uint8]], points_xy: NDArray[np.float64]) -> Tensor:
        return torch.stack([self._one(image, xy) for image, xy in zip(images, points_xy)])

    def _one(self, image: NDArray[np.uint8], xy: NDArray[np.float64]) -> Tensor:
        given = {"input_points": [[[xy.tolist()]]], "input_labels": [[[1]]]}
        inputs = self.processor(image, return_tensors="pt", **given)
        sizes = [inputs.pop(key) for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
        logits = self.model(**inputs.to(self.model.device), multimask_output=True).pred_masks[0]
        resize = self.processor.image_processor.post_process_masks
        return resize([logits], *sizes, binarize=False)[0][0]
