"""The optimiser of both networks, and its learning rate in each iteration.

It has two groups of parameters: the backbone's, and those outside it (the head), which may learn faster.
"""

from typing import Any

import torch

from ray_wsss.config import OptimConfig
from ray_wsss.models.classifier import Classifier
from ray_wsss.models.segmenter import Segmenter
from ray_wsss.ops.schedule import poly_lr


def build_optimiser(model: Classifier | Segmenter, config: OptimConfig) -> torch.optim.Optimizer:
    """Optimiser of all parameters that are not frozen: the group of the backbone, then that of the head."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    backbone = [p for name, p in trained if name.startswith("backbone.")]
    head = [p for name, p in trained if not name.startswith("backbone.")]
    groups = [{"params": backbone}, {"params": head}]
    optimiser: torch.optim.Optimizer
    if config.optimiser == "adamw":
        optimiser = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    else:
        optimiser = torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    _set_rates(optimiser, config, config.lr)
    return optimiser


def schedule_rates(optimiser: torch.optim.Optimizer, config: OptimConfig, iteration: int) -> None:
    """Set the learning rates of an iteration: `learning_rate`, and for the head its multiple."""
    _set_rates(optimiser, config, learning_rate(config, iteration))


def learning_rate(config: OptimConfig, iteration: int) -> float:
    """Learning rate of the backbone in an iteration: poly schedule with an optional linear ramp-up."""
    ramp = min(1.0, (iteration + 1) / config.lr_warmup_iters) if config.lr_warmup_iters else 1.0
    return ramp * poly_lr(config.lr, iteration, config.max_iters, config.poly_power)


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimiser of `build_optimiser`, also of version 0.1, which had a single group.

    The single group had the same parameters in the same order, the backbone's first.
    """
    groups, stored = optimiser.state_dict()["param_groups"], state["param_groups"]
    if len(stored) == 1:
        stored = [{**stored[0], "params": group["params"]} for group in groups]
    optimiser.load_state_dict({"state": state["state"], "param_groups": stored})


def _set_rates(optimiser: torch.optim.Optimizer, config: OptimConfig, rate: float) -> None:
    backbone, head = optimiser.param_groups
    backbone["lr"], head["lr"] = rate, config.head_lr_factor * rate
