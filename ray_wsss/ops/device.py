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


def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16, rather than emulate it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Older versions of torch can't report capabilities.
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
