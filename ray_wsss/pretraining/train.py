"""Training loop of the lite SAM."""

import copy
import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ray_wsss.models.backbone_weights import packaged_state
from ray_wsss.models.promptable.interface import Embeddings
from ray_wsss.models.sam.lite import LiteSam, build_lite_sam
from ray_wsss.models.sam.lite_encoder import IMAGE_SIZE_PX, STAGES, load_lite0
from ray_wsss.models.sam.model import SegmentAnything
from ray_wsss.pretraining.clicks import measure_clicks
from ray_wsss.pretraining.examples import Examples
from ray_wsss.pretraining.losses import prompt_loss
from ray_wsss.pretraining.photos import Photo
from ray_wsss.pretraining.prompts import PromptedBatch, correct, sample_batch
from ray_wsss.storage import replace_atomically

log = logging.getLogger(__name__)

WARM_UP = 100
EMA_DECAY = 0.995
FROZEN_STAGES = 3
"""Stages of Lite0 that are never trained; those down to stride 8, which take most of its time."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Length and speed of a training."""

    steps: int
    images_per_step: int
    prompts_per_image: int
    lr: float
    encoder_lr: float
    frozen_steps: int
    """Steps in which the whole of Lite0 is frozen."""
    small_steps: int = 0
    """Steps that see small images, which take less than half of the time."""
    small_px: int = 256
    """Side of the frame of small images."""
    small_images_per_step: int = 8
    seed: int = 0
    bf16: bool = False
    """True: the frozen part runs in bfloat16."""

    def side_px(self, step: int) -> int:
        """Side of the frame of a step's images."""
        return self.small_px if step < self.small_steps else IMAGE_SIZE_PX

    def rate(self, step: int) -> float:
        """Share of the peak learning rate: a linear warm-up, then a cosine decay to 1 %."""
        return min(1, (step + 1) / WARM_UP) * (0.505 + 0.495 * math.cos(math.pi * step / self.steps))


class Batches(Dataset[PromptedBatch]):
    """Item i is the batch of step ``start + i``, and depends on that step and the seed alone."""

    def __init__(self, photos: list[Photo], schedule: Schedule, start: int) -> None:
        self.examples, self.schedule, self.start = Examples(photos), schedule, start

    def __len__(self) -> int:
        return self.schedule.steps - self.start

    def __getitem__(self, at: int) -> PromptedBatch:
        schedule, step = self.schedule, self.start + at
        rng = np.random.default_rng([schedule.seed, step])
        small = step < schedule.small_steps
        images = schedule.small_images_per_step if small else schedule.images_per_step
        return sample_batch(rng, self.examples, images, schedule.prompts_per_image, schedule.side_px(step))


class Trainer:
    """A lite SAM in training, with a moving average of its weights, which is what is measured and kept."""

    def __init__(self, schedule: Schedule) -> None:
        torch.manual_seed(schedule.seed)
        self.schedule, self.step = schedule, 0
        self.sam = build_lite_sam()
        self.encoder: Any = self.sam.image_encoder
        load_lite0(self.encoder, packaged_state("tf_efficientnet_lite0"))
        self.encoder.to(memory_format=torch.channels_last)
        lite0 = [p for name, p in self.encoder.named_parameters() if name.startswith("network.")]
        known = {id(p) for p in lite0}
        fixed = [self.encoder.network.conv_stem, *self.encoder.network.blocks[:FROZEN_STAGES]]
        for module in fixed:
            module.requires_grad_(False)
        others = [p for p in self.sam.parameters() if id(p) not in known and p.requires_grad]
        groups = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
            {"params": [p for p in lite0 if p.requires_grad], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=schedule.lr, betas=(0.9, 0.98))
        self.average = copy.deepcopy(self.sam).requires_grad_(False)

    def train_step(self, batch: PromptedBatch) -> dict[str, float]:
        """One step of the optimiser; returns the parts of the loss."""
        schedule = self.schedule
        for sam in (self.sam, self.average):
            sam.set_input_side(schedule.side_px(self.step))
        rate = schedule.rate(self.step)
        for group, lr in zip(self.optimiser.param_groups, (schedule.lr, schedule.lr, schedule.encoder_lr)):
            group["lr"] = rate * lr
        image_of_prompt = torch.arange(len(batch.images)).repeat_interleave(schedule.prompts_per_image)
        embeddings = self._encode(batch.images)[image_of_prompt]
        loss, parts = self._prompt(embeddings, batch)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.sam.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        self._update_average()
        return {"loss": loss.item()} | parts

    def _encode(self, images: Tensor) -> Embeddings:
        inputs = self.sam.preprocess(images.permute(0, 3, 1, 2).float())
        frozen = STAGES if self.step < self.schedule.frozen_steps else FROZEN_STAGES
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self.schedule.bf16):
            x = self.encoder.stem(inputs)
            first = self.encoder.stages(x, range(frozen))
        first = [x.float() for x in first]
        rest = self.encoder.stages(first[-1], range(frozen, STAGES))
        return Embeddings(self.encoder.merge([*first, *rest]))

    def _prompt(self, embeddings: Embeddings, batch: PromptedBatch) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch. One in five batches of clicks is corrected, and learns from that alone."""
        rng = np.random.default_rng([self.schedule.seed, self.step, 1])
        points, labels, previous = batch.points, batch.labels, None
        if points is not None and self.step > 0.2 * self.schedule.steps and rng.random() < 0.2:
            with torch.no_grad():
                logits, iou = self.sam.decode(embeddings, points, labels)
            best = logits[torch.arange(len(logits)), 1 + iou[:, 1:].argmax(1)]
            points, labels = correct(rng, batch, best)
            previous = best[:, None] if rng.random() < 0.5 else None
        logits, iou = self.sam.decode(embeddings, points, labels, batch.boxes, previous)
        whole_weights = batch.whole_weights
        if points is not batch.points:  # a corrected click means the target, no larger object
            whole_weights = torch.where(whole_weights == 1, 1.0, 0.0)
        return prompt_loss(logits, iou, batch.targets, batch.wholes, whole_weights)

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        for mean, value in zip(self.average.parameters(), self.sam.parameters()):
            mean.lerp_(value, 1 - decay)

    def save(self, path: Path) -> None:
        """Write everything that `resume` needs."""
        tensors = {f"sam.{name}": value for name, value in self.sam.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for name, parameter in self.sam.named_parameters():
            for key, value in self.optimiser.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        with replace_atomically(path) as temporary:
            save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, {"step": str(self.step)})

    def resume(self, path: Path) -> None:
        """Go on from a file of `save`."""
        with safe_open(path, "pt") as file:
            self.step = int(file.metadata()["step"])
        tensors = load_file(path)

        def part(prefix: str) -> dict[str, Tensor]:
            start = f"{prefix}."
            return {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}

        self.sam.load_state_dict(part("sam"))
        self.average.load_state_dict(part("average"))
        state = {key: part(key) for key in ("step", "exp_avg", "exp_avg_sq")}
        for name, parameter in self.sam.named_parameters():
            if name in state["step"]:
                self.optimiser.state[parameter] = {key: values[name] for key, values in state.items()}


def train(
    photos: list[Photo], held_out: list[Photo], schedule: Schedule, checkpoint: Path, measure_every: int = 500
) -> LiteSam:
    """Train, or go on from the checkpoint if it exists, and return the averaged model."""
    trainer = Trainer(schedule)
    if checkpoint.exists():
        trainer.resume(checkpoint)
        log.info("resumed at step %d", trainer.step)
    batches = DataLoader(
        Batches(photos, schedule, trainer.step), batch_size=None, num_workers=1, prefetch_factor=8
    )
    started, sums = time.perf_counter(), {}
    for batch in batches:
        for name, value in trainer.train_step(batch).items():
            sums[name] = sums.get(name, 0.0) + value
        if trainer.step % 100 == 0:
            means = {name: round(value / 100, 4) for name, value in sums.items()}
            log.info("step %d, %.0f s: %s", trainer.step, time.perf_counter() - started, json.dumps(means))
            sums = {}
        if trainer.step % measure_every == 0:
            trainer.save(checkpoint)
            log.info("held out: %s", json.dumps(measure_clicks(trainer.average, held_out).as_json()))
    trainer.save(checkpoint)
    return trainer.average


def save_weights(sam: SegmentAnything, path: Path) -> None:
    """Write the weights in fp16, which halves their size."""
    save_file({name: value.half().contiguous().cpu() for name, value in sam.state_dict().items()}, path)
