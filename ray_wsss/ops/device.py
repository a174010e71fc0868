"""Torch devices: copying tensors to a GPU, and the precision in which networks compute."""

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to the device; the host does not wait for a copy to a GPU."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def mixed_precision(device: torch.device, bf16: bool) -> torch.autocast:
    """Autocast context: with ``bf16``, networks compute in bfloat16, except their heads."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)
