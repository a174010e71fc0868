"""Speed of a training step of the classifier: without CPM, our CPM on crops and on images, naive CPM."""

import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

from ray_wsss.benchmark.naive_cpm import NaiveCpm
from ray_wsss.config import Recipe
from ray_wsss.config.overrides import override
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.models.classifier import Classifier
from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.models.sam.build import build_sam
from ray_wsss.models.store import load_classifier
from ray_wsss.training.classifier import ClassifierStep, check_trainable
from ray_wsss.training.cpm import Cpm
from ray_wsss.training.crops import TrainingCrops, make_loader
from ray_wsss.training.loop import Batch, to_device
from ray_wsss.training.optimiser import build_optimiser

_LR = 1e-6
"""Learning rate. It does not change a step's cost; a low one hardly changes the number of prompts."""


@dataclass(frozen=True, kw_only=True)
class TrainBenchmark:
    """Times the same training steps without CPM and with three kinds of it.

    A step is the classifier's forward pass, CPM, the backward pass and the optimiser's step. Reading,
    decoding and augmenting images is not counted: the batches are made before, and are the same for all ways.
    """

    recipe: Recipe
    dataset: Path
    """Data set of at least ``classifier.batch_size`` images."""
    classifier: Path
    """Output of `run_train_classifier` whose weights every way starts from."""
    embeddings: Path
    """SAM's embeddings of the data set."""
    device: Literal["cpu", "cuda"]
    steps: int

    def run(self) -> dict[str, Any]:
        """Measure; returns medians over ``steps`` rounds of one step each way, after one round to warm up.

        ``pseudo_label_agreement`` is the share of pixels that naive and cpm_crop label alike in the first
        round, in which all ways have the same weights.
        """
        ways = self._ways()
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        agreement = 0.0
        for k, batch in enumerate(self._batches()):
            for name, way in ways.items():
                took = way.train(batch)
                if k:
                    seconds[name].append(took)
            if not k:
                agreement = _agreement(ways["naive"], ways["cpm_crop"])
        medians = {name: median(values) for name, values in seconds.items()}
        config = self.recipe.classifier
        return {
            "sam": self.recipe.sam.name,
            "device": self.device,
            "threads": torch.get_num_threads(),
            "batch_size": config.batch_size,
            "crop_px": config.augment.crop_px,
            "steps": self.steps,
            "seconds_per_step": medians,
            "crop_over_image": medians["cpm_crop"] / medians["cpm_image"],
            "naive_over_crop": medians["naive"] / medians["cpm_crop"],
            "pseudo_label_agreement": agreement,
        }

    def _ways(self) -> dict[str, "_Way"]:
        recipe = override(self.recipe, {"cpm.enabled": True, "cpm.warmup_iters": 0})
        model = load_classifier(self.classifier)[0].to(self.device)
        sam = build_sam(recipe.sam).to(self.device)
        crop, image = (replace(recipe.cpm, view=view) for view in ("crop", "image"))

        encoder = SamEncoder(sam, batch_size=recipe.sam.encode_batch_size)
        ours = {f"cpm_{config.view}": Cpm(encoder, config) for config in (crop, image)}
        cpms = {"cls": None, **ours, "naive": NaiveCpm(sam, crop)}
        return {name: _Way(recipe, deepcopy(model), cpm, self.device) for name, cpm in cpms.items()}

    def _batches(self) -> Sequence[Batch]:
        """One batch for each round, on the device."""
        config = self.recipe.classifier
        rows = check_trainable(self.dataset, config.batch_size)
        crops = TrainingCrops(
            self.dataset,
            rows,
            num_classes=len(DatasetMetadata.load(self.dataset).class_names),
            augment=config.augment,
            seed=config.seed,
            embeddings=self.embeddings,
        )
        batches = crops.batches(batch_size=config.batch_size, start=0, stop=1 + self.steps)
        loader = make_loader(crops, batches, workers=0, pin_memory=False)
        return [to_device(batch, torch.device(self.device)) for batch in loader]


def _agreement(one: "_Way", other: "_Way") -> float:
    """Share of pixels that two ways labelled alike in their last step."""
    assert one.pseudo_label is not None
    assert other.pseudo_label is not None
    return (one.pseudo_label == other.pseudo_label).float().mean().item()


class _Way:
    """A classifier with its kind of CPM and its optimiser."""

    def __init__(self, recipe: Recipe, model: Classifier, cpm: Cpm | NaiveCpm | None, device: str) -> None:
        self.model, self.cpm, self.device = model.train(), cpm, torch.device(device)
        self.pseudo_label: Tensor | None = None
        """Pseudo labels (B, P, P) uint8 of the last step; None without CPM."""
        remembered: Any = self._remember if cpm is not None else None
        self.step = ClassifierStep(recipe, remembered)
        self.optimiser = build_optimiser(model, replace(recipe.classifier, lr=_LR))

    def _remember(self, *batch: Any) -> Tensor:
        assert self.cpm is not None
        self.pseudo_label = self.cpm(*batch)
        return self.pseudo_label

    def train(self, batch: Batch) -> float:
        """Train one step; returns its seconds."""
        self._wait()
        began = time.perf_counter()
        total, _ = self.step(self.model, batch, self.step.counts(batch), 0)
        self.optimiser.zero_grad()
        total.backward()
        self.optimiser.step()
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
