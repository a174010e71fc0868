"""Train the lite SAM on photographs with masks, and print what it reaches on some that are held out.

    python jobs/train_lite_sam.py --data DATA --out lite.safetensors

DATA has photos_masks and coco, as docs/lite_sam.md describes them. With --bf16 it takes an hour on a
CPU core with AMX. A run that was stopped goes on from its checkpoint. Nothing is trained on COCO's val part.
jobs/evaluate_clicks.py measures the result.
"""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from ray_wsss.commands.flags import PARSERS
from ray_wsss.errors import UserError
from ray_wsss.pretraining.photos import RESEARCH_ONLY, read_photos, split_held_out
from ray_wsss.pretraining.train import Schedule, save_weights, train


@dataclass(frozen=True, kw_only=True)
class TrainLiteSam:
    """Settings of the training."""

    data: Path
    """Folder with photos_masks and coco."""
    research_only: bool = False
    """Also train on sources whose terms allow research alone."""
    without: tuple[str, ...] = ()
    """Further sources to leave out, such as coco."""
    out: Path = Path("lite.safetensors")
    """File to write (safetensors, fp16)."""
    checkpoint: Path = Path("lite.checkpoint.safetensors")
    """File that the training goes on from, if it exists; written every --measure-every steps."""
    steps: int = 3200
    """Optimiser steps. Fewer steps in a run that goes on let its learning rate fall sooner."""
    small_steps: int = 1900
    """First steps, which see images of 256 px instead of 384; these take half of the time."""
    frozen_steps: int = 900
    """First steps, in which EfficientNet-Lite0 is not trained."""
    small_images_per_step: int = 8
    """Small images per step."""
    images_per_step: int = 5
    """Images of 384 px per step."""
    prompts_per_image: int = 6
    """Prompts per image."""
    lr: float = 1.2e-3
    """Peak learning rate of everything that starts from scratch."""
    encoder_lr: float = 2e-4
    """Peak learning rate of EfficientNet-Lite0."""
    seed: int = 0
    """Seed of weights and data."""
    bf16: bool = False
    """Run the frozen part in bfloat16; faster on CPUs with AVX512-BF16 or AMX."""
    measure_every: int = 200
    """Steps between two checkpoints, each measured on held-out photographs of whole objects."""
    threads: int | None = None
    """CPU threads; None: all."""


def main(config: TrainLiteSam) -> None:
    """Train, and write the weights."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    without = config.without if config.research_only else (*config.without, *RESEARCH_ONLY)
    photos, held_out = split_held_out(read_photos(config.data, without))
    logging.info("%d photographs to train on, %d held out", len(photos), len(held_out))
    schedule = Schedule(
        steps=config.steps,
        small_steps=config.small_steps,
        frozen_steps=config.frozen_steps,
        small_images_per_step=config.small_images_per_step,
        images_per_step=config.images_per_step,
        prompts_per_image=config.prompts_per_image,
        lr=config.lr,
        encoder_lr=config.encoder_lr,
        seed=config.seed,
        bf16=config.bf16,
    )
    measured = [photo for photo in held_out if photo.whole]
    save_weights(train(photos, measured, schedule, config.checkpoint, config.measure_every), config.out)


if __name__ == "__main__":
    try:
        main(tyro.cli(TrainLiteSam, description=__doc__, registry=PARSERS))
    except UserError as error:
        sys.exit(f"train_lite_sam.py: {error}")
