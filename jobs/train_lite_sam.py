"""Train the lite SAM on photographs with masks, and print its figures.

    python jobs/train_lite_sam.py --data ../shared/data --out ray_wsss/models/sam/lite.safetensors

The folder has ``photos_masks`` and ``coco`` (see ``docs/lite_sam.md``). Nothing is trained on
``photos_masks_eval``, on COCO's val part or on VOC. A run that was stopped goes on from its checkpoint.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from ray_wsss.pretraining.photos import read_photos, split_held_out
from ray_wsss.pretraining.train import Schedule, save_weights, train


@dataclass(frozen=True, kw_only=True)
class TrainLiteSam:
    """Settings of the training."""

    data: Path
    """Folder with photos_masks and coco."""
    out: Path = Path("lite.safetensors")
    """File to write (safetensors, fp16)."""
    checkpoint: Path = Path("lite.checkpoint.safetensors")
    """File that the training is continued from, if it exists; written every --measure-every steps."""
    steps: int = 5000
    """Number of optimiser steps."""
    frozen_steps: int = 1000
    """First steps, in which EfficientNet-Lite0 is not trained."""
    small_steps: int = 0
    """First steps, which see images of 256 px, in less than half of the time."""
    images_per_step: int = 4
    """Images per step."""
    prompts_per_image: int = 8
    """Prompts per image."""
    lr: float = 8e-4
    """Peak learning rate of everything that starts from scratch."""
    encoder_lr: float = 1.5e-4
    """Peak learning rate of EfficientNet-Lite0."""
    seed: int = 0
    """Seed of weights and data."""
    bf16: bool = False
    """Run the frozen part in bfloat16; faster on CPUs with AVX512-BF16 or AMX."""
    measure_every: int = 500
    """Steps between two checkpoints, each measured on held-out photographs."""
    threads: int = 1
    """CPU threads."""


def main(config: TrainLiteSam) -> None:
    """Train, and write the weights."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(config.threads)
    photos, held_out = split_held_out(read_photos(config.data))
    logging.info("%d photographs to train on, %d held out", len(photos), len(held_out))
    schedule = Schedule(
        steps=config.steps,
        images_per_step=config.images_per_step,
        prompts_per_image=config.prompts_per_image,
        lr=config.lr,
        encoder_lr=config.encoder_lr,
        frozen_steps=config.frozen_steps,
        seed=config.seed,
        small_steps=config.small_steps,
        bf16=config.bf16,
    )
    measured = [photo for photo in held_out if photo.whole]
    sam = train(photos, measured, schedule, config.checkpoint, config.measure_every)
    save_weights(sam, config.out)


if __name__ == "__main__":
    main(tyro.cli(TrainLiteSam, description=__doc__))
