"""What a step of the classifier costs: its backbone trained, frozen, or replaced by stored features."""

import time
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

from ray_wsss.config import Recipe
from ray_wsss.data.schema import DatasetMetadata
from ray_wsss.models.first_weights import begin_classifier
from ray_wsss.stages.features.stored import views_of
from ray_wsss.training.classifier import ClassifierStep, check_trainable
from ray_wsss.training.crops import TrainingCrops, make_loader
from ray_wsss.training.optimiser import build_optimiser

Way = Literal["trained", "frozen", "stored"]
WAYS: tuple[Way, ...] = ("trained", "frozen", "stored")


@dataclass(frozen=True, kw_only=True)
class FrozenBenchmark:
    """Times steps of training without CPM on one thread of a CPU, each way in a process of its own.

    A step is reading, decoding and augmenting a batch, the forward and backward pass, and the optimiser.
    """

    recipe: Recipe
    dataset: Path
    """Data set of at least ``classifier.batch_size`` images."""
    features: Path
    """Its features by the classifier's backbone."""
    steps: int

    def run(self) -> dict[str, Any]:
        """Memory, and the median CPU time of ``steps`` steps after one to warm up, for each way."""
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            measured = {way: pool.apply(self.measure, (way,)) for way in WAYS}
        config = self.recipe.classifier
        return {
            "backbone": config.backbone,
            "batch_size": config.batch_size,
            "crop_px": config.augment.crop_px,
            "steps": self.steps,
            "cpu_seconds_per_step": {way: seconds for way, (seconds, _) in measured.items()},
            "memory_mib_of_steps": {way: memory for way, (_, memory) in measured.items()},
        }

    def measure(self, way: Way) -> tuple[float, float]:
        """Seconds per step of one way, and by how many MiB the steps raise the process's peak of memory."""
        torch.set_num_threads(1)
        class_names = DatasetMetadata.load(self.dataset).class_names
        frozen = 0 if way == "trained" else "all"
        config = replace(self.recipe.classifier, freeze_stages=frozen)
        crops = TrainingCrops(
            self.dataset,
            check_trainable(self.dataset, config.batch_size),
            num_classes=len(class_names),
            augment=config.augment,
            seed=config.seed,
            features=views_of(self.features) if way == "stored" else None,
        )
        model = begin_classifier(config, class_names)[0].train()
        model.backbone.freeze(frozen, config.freeze_norm)
        model.backbone.set_norm_eval()
        optimiser = build_optimiser(model, config)
        step = ClassifierStep(replace(self.recipe, classifier=config), None)
        batches = crops.batches(batch_size=config.batch_size, start=0, stop=1 + self.steps)
        before, seconds = _peak_mib(), []
        began = time.process_time()
        for batch in make_loader(crops, batches, workers=0, pin_memory=False):
            total, _ = step(model, batch, {}, 0)
            optimiser.zero_grad()
            total.backward()
            optimiser.step()
            seconds.append(time.process_time() - began)
            began = time.process_time()
        return median(seconds[1:]), _peak_mib() - before


def _peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB, on Linux.

    Not by ``getrusage``, whose peak a process takes over from the one that started it.
    """
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
