"""Between host and device."""

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device) -> Tensor:
    """Values from the CPU to the device; the host does not wait for the copy."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
