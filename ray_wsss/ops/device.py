"""The device that computes: copies to it, and the precision it computes in."""

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Values from the CPU to the device; the host does not wait for the copy."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def mixed_precision(device: torch.device, bf16: bool) -> torch.autocast:
    """A context in which networks compute in bfloat16, if they shall; what comes out needs ``float()``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)
