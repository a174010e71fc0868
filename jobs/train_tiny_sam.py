"""Train the tiny SAM on generated scenes, and print its IoU on held-out scenes with one click per object.

    python jobs/train_tiny_sam.py --out ray_wsss/models/sam/tiny.safetensors

The weights in the package come from this command with its defaults (about an hour on 2 CPU cores).
Training scenes have seeds below 2**31, held-out scenes seeds from 2**31 on.
``--evaluate-only`` measures weights that exist.
"""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ray_wsss.commands.flags import PARSERS
from ray_wsss.data.scenes import Scene, make_scene
from ray_wsss.models.promptable.encoder import SamEncoder
from ray_wsss.models.promptable.prepare import prepare_images
from ray_wsss.models.sam.decoder import decode_prompts, upscale_logits
from ray_wsss.models.sam.model import SegmentAnything
from ray_wsss.models.sam.tiny import IMAGE_SIZE_PX, build_tiny_sam
from ray_wsss.pretraining.losses import reached_iou
from ray_wsss.pretraining.train import save_weights

HELD_OUT_SEED = 2**31
LEVEL_WEIGHTS = (0.5, 0.3, 0.4, 1.0)  # single, sub-part, part, whole


@dataclass(frozen=True, kw_only=True)
class TrainTinySam:
    """Settings of the training and of the measurement."""

    out: Path = Path("tiny.safetensors")
    """File to write (safetensors, fp16)."""
    steps: int = 6000
    """Number of optimiser steps."""
    images_per_step: int = 12
    """Scenes per step; every step sees new ones."""
    prompts_per_image: int = 6
    """Prompts per scene; a prompt is one click, several clicks or a box."""
    lr: float = 1.2e-3
    """Peak learning rate of AdamW: a linear warm-up over 300 steps, then a cosine decay."""
    held_out: int = 500
    """Number of held-out scenes to measure on."""
    evaluate_only: bool = False
    """Measure the weights in --out, without training."""
    json: Path | None = None
    """File to which the measurement is also written, as JSON."""


def _levels_at(scene: Scene, y: int, x: int) -> NDArray[np.bool_]:
    """Target masks (3, H, W) of a click: sub-part, part, whole; a missing level repeats the next."""
    for thing in scene.objects:
        if thing.body[y, x]:
            part = thing.plate if thing.plate[y, x] else thing.body
            return np.stack([thing.emblem if thing.emblem[y, x] else part, part, thing.body])
    ground = ~np.any([thing.body for thing in scene.objects], axis=0)
    return np.stack([ground] * 3)


def _click(rng: np.random.Generator, mask: NDArray[np.bool_]) -> tuple[int, int]:
    ys, xs = np.nonzero(mask)
    at = rng.integers(len(ys))
    return int(ys[at]), int(xs[at])


def _sample_prompt(
    rng: np.random.Generator, scene: Scene, clicks: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """``clicks`` points (P, 2) in pixels, x before y, and the union of their target masks (3, H, W)."""
    things = [thing for thing in scene.objects if thing.body.any()]
    if clicks == 1 and rng.random() < 0.08:
        things = []
    chosen = rng.permutation(len(things))[: rng.integers(1, 3)] if things else []
    points, target = [], np.zeros((3, *scene.image.shape[:2]), np.bool_)
    for i in range(clicks):
        if len(chosen):
            thing = things[chosen[i % len(chosen)]]
            regions = [r for r in (thing.emblem, thing.plate, thing.body, thing.body) if r.any()]
            y, x = _click(rng, regions[rng.integers(len(regions))])
        else:
            y, x = (int(rng.integers(n)) for n in scene.image.shape[:2])
        points.append((x + 0.5, y + 0.5))
        target |= _levels_at(scene, y, x)
    return np.array(points, np.float32), target


class PromptedScenes(Dataset):
    """Batches of scenes with prompts and targets; item i is the batch of step i and depends on i alone."""

    def __init__(self, config: TrainTinySam, sam: SegmentAnything) -> None:
        self.config, self.sam = config, sam

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([7, step])
        kind = rng.choice(["click", "clicks", "box"], p=[0.55, 0.35, 0.1])
        clicks = int(rng.integers(2, 6)) if kind == "clicks" else 1
        images, prompts, targets = [], [], []
        for i in range(self.config.images_per_step):
            height, width = (int(n) for n in rng.integers(80, 129, 2)) if rng.random() < 0.6 else (96, 96)
            scene = make_scene(step * self.config.images_per_step + i, height, width)
            scale = IMAGE_SIZE_PX / max(height, width)
            images.append(scene.image)
            for _ in range(self.config.prompts_per_image):
                points, target = _sample_prompt(rng, scene, clicks)
                if kind == "box":
                    thing = scene.objects[rng.integers(len(scene.objects))]
                    ys, xs = np.nonzero(thing.body if thing.body.any() else ~thing.body)
                    points = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], np.float32)
                    points = points + rng.normal(0, 1.5, 4).astype(np.float32)
                    target = np.stack([thing.body] * 3)
                prompts.append(torch.from_numpy(points * scale))
                targets.append(_low_resolution(target, scale))
        return {
            "inputs": prepare_images(self.sam, images),
            "boxes" if kind == "box" else "points": torch.stack(prompts),
            "targets": torch.stack(targets),
        }


def _low_resolution(target: NDArray[np.bool_], scale: float) -> Tensor:
    """Masks (3, H, W) to soft targets (3, 64, 64) in SAM's padded frame."""
    height, width = (int(n * scale + 0.5) for n in target.shape[1:])
    full = F.interpolate(torch.from_numpy(target).float()[None], (height, width), mode="bilinear")
    padded = F.pad(full, (0, IMAGE_SIZE_PX - width, 0, IMAGE_SIZE_PX - height))
    return F.avg_pool2d(padded, 2)[0]


def _loss(logits: Tensor, predicted_iou: Tensor, targets: Tensor) -> Tensor:
    """BCE + dice per level, and the IoU head's error against the IoU reached (as SAM is trained)."""
    targets = torch.cat([targets[:, 2:], targets], dim=1)
    weights = logits.new_tensor(LEVEL_WEIGHTS)
    bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((2, 3))
    soft = logits.sigmoid()
    dice = 1 - (2 * (soft * targets).sum((2, 3)) + 1) / ((soft + targets).sum((2, 3)) + 1)
    per_level = 4 * bce + dice + 0.5 * (predicted_iou - reached_iou(logits, targets)).square()
    return (per_level * weights).sum(1).mean()


def train(config: TrainTinySam) -> SegmentAnything:
    """Train from scratch and return the model in eval mode."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    sam = build_tiny_sam().train()
    batches = DataLoader(
        PromptedScenes(config, build_tiny_sam()), batch_size=None, num_workers=1, prefetch_factor=8
    )
    sam.to(device)
    optimiser = torch.optim.AdamW(sam.parameters(), lr=config.lr, weight_decay=0.02, betas=(0.9, 0.98))
    warmup = 300

    def rate(step: int) -> float:
        return min(1, (step + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * step / config.steps)) + 1e-3

    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    started, running = time.perf_counter(), 0.0
    for step, batch in enumerate(batches):
        batch = {key: value.to(device) for key, value in batch.items()}
        points, boxes = batch.get("points"), batch.get("boxes")
        labels = None if points is None else torch.ones(points.shape[:2], device=device)
        with torch.autocast(device.type, torch.bfloat16):
            embeddings = sam.image_encoder(batch["inputs"]).repeat_interleave(config.prompts_per_image, dim=0)
            logits, predicted_iou = decode_prompts(sam, embeddings, points, labels, boxes)
        loss = _loss(logits.float(), predicted_iou.float(), batch["targets"])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sam.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        running += loss.item()
        if (step + 1) % 200 == 0:
            seconds = time.perf_counter() - started
            print(f"step {step + 1}/{config.steps}  loss {running / 200:.4f}  {seconds:.0f} s", flush=True)
            running = 0.0
        if (step + 1) % 1000 == 0:
            print(json.dumps(measure(sam.eval(), 100)), flush=True)
            save_weights(sam, config.out)
            sam.train()
    return sam.eval()


@torch.no_grad()
def measure(sam: SegmentAnything, scenes: int) -> dict[str, float]:
    """Mean IoU of the whole-object output on held-out scenes, one click per object.

    ``one_click_miou``: click anywhere in the object; ``emblem_click_miou``: click in its emblem;
    ``part_miou``: the part output against the plate, for the emblem clicks.
    """
    rng = np.random.default_rng(0)
    ious: dict[str, list[float]] = {"one_click_miou": [], "emblem_click_miou": [], "part_miou": []}
    for i in range(scenes):
        scene = make_scene(HELD_OUT_SEED + i)
        image_hw = scene.image.shape[:2]
        embedding = SamEncoder(sam)([scene.image]).maps[0]
        for thing in (t for t in scene.objects if t.emblem.any()):
            clicks = [_click(rng, thing.body), _click(rng, thing.emblem)]
            points = torch.tensor([[(x + 0.5, y + 0.5)] for y, x in clicks], device=sam.device)
            points *= IMAGE_SIZE_PX / max(image_hw)
            labels = torch.ones(2, 1, device=sam.device)
            logits, _ = decode_prompts(sam, embedding.expand(2, -1, -1, -1), points, labels)
            masks = (upscale_logits(sam, logits, sam.frame.inner_hw(image_hw), image_hw) > 0).cpu().numpy()
            pairs = (masks[0, 3], thing.body), (masks[1, 3], thing.body), (masks[1, 2], thing.plate)
            for values, (mask, truth) in zip(ious.values(), pairs):
                values.append(float((mask & truth).sum() / (mask | truth).sum()))
    return {name: round(float(np.mean(values)), 4) for name, values in ious.items()}


def main(config: TrainTinySam) -> None:
    """Train and save the weights, then load and measure the saved ones."""
    if not config.evaluate_only:
        save_weights(train(config), config.out)
    sam = build_tiny_sam()
    sam.load_state_dict({name: value.float() for name, value in load_file(config.out).items()})
    figures = measure(sam, config.held_out)
    print(json.dumps(figures))
    if config.json:
        config.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(TrainTinySam, description=__doc__, registry=PARSERS))
