"""The optimiser of both networks, and its learning rate in each iteration.

It has two groups of parameters: the backbone's, and those outside it (the head), which may learn faster. With
``layer_decay`` each stage of the backbone is a group of its own.
"""

from typing import Any

import torch

from ray_wsss.config import OptimConfig
from ray_wsss.errors import UserError
from ray_wsss.models.classifier import Classifier
from ray_wsss.models.segmenter import Segmenter
from ray_wsss.ops.schedule import poly_lr


def build_optimiser(model: Classifier | Segmenter, config: OptimConfig) -> torch.optim.Optimizer:
    """Optimiser of all parameters that are not frozen: the group of the backbone, then that of the head."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    head = [p for name, p in trained if not name.startswith("backbone.")]
    groups = [*_backbone_groups(model, config), {"params": head, "factor": config.head_lr_factor}]
    optimiser: torch.optim.Optimizer
    if config.optimiser == "adamw":
        # fused: one pass over all parameters, on CPUs too, in a third of the time.
        optimiser = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    else:
        optimiser = torch.optim.SGD(
            groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
    _set_rates(optimiser, config.lr)
    return optimiser


def _backbone_groups(model: Classifier | Segmenter, config: OptimConfig) -> list[dict[str, Any]]:
    """Trained parameters of the backbone, with their learning rate as a multiple of ``lr``."""
    if config.layer_decay == 1:
        return [{"params": [p for p in model.backbone.parameters() if p.requires_grad], "factor": 1.0}]
    stages = model.backbone.stages()
    if len(stages) == 1:
        raise UserError(
            f"layer_decay is {config.layer_decay}; expected 1, since this backbone's stages are unknown"
        )
    return [
        {"params": [p for p in stage if p.requires_grad], "factor": config.layer_decay**depth}
        for depth, stage in zip(reversed(range(len(stages))), stages)
    ]


def schedule_rates(optimiser: torch.optim.Optimizer, config: OptimConfig, iteration: int) -> None:
    """Set the learning rates of an iteration: `learning_rate`, times each group's factor."""
    _set_rates(optimiser, learning_rate(config, iteration))


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
        stored = stored * len(groups)
    ours = [{name: group[name] for name in ("params", "factor")} for group in groups]
    stored = [theirs | own for theirs, own in zip(stored, ours, strict=True)]
    optimiser.load_state_dict({"state": state["state"], "param_groups": stored})


def _set_rates(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = group["factor"] * rate
