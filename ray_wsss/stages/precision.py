"""Mixed precision."""

import torch


def mixed_precision(device: torch.device, bf16: bool) -> torch.autocast:
    """A context in which networks compute in bfloat16, if they shall; what comes out needs ``float()``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)
