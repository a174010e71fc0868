"""What an exception says about the images that were being processed: whose fault it is, and the reason."""

import errno
import sys
from typing import Literal

from ray_wsss.errors import UserError

Fault = Literal["set-up", "memory", "image"]

_SHORT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",  # DefaultCPUAllocator
    "not enough memory",  # the same on Windows
    "failed to allocate",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
)
_BROKEN_DEVICE = (
    "device-side assert",
    "illegal memory access",
    "illegal instruction",
    "illegal address",
    "misaligned address",
    "invalid program counter",
    "unspecified launch failure",
    "the launch timed out",
    "uncorrectable ecc error",
    "hardware stack error",
    "context is destroyed",
)
"""Texts of the CUDA errors after which every later call in the same process fails as well."""
_LONGEST_REASON = 300


def fault_of(error: Exception) -> Fault:
    """What an exception of a stage is due to.

    Returns:
        "memory": fewer images at a time may do: torch or the host is out of memory.
        "set-up": no image is to blame, so trying again or leaving images out would hide it: a UserError, a
        missing module, an operating-system error (a full disk, an unreachable store), or a CUDA error after
        which the process can't use its GPU any more.
        "image": anything else, such as a numerical failure.
    """
    text = str(error).lower()
    if isinstance(error, OSError):
        # Pillow raises an OSError without a number if it can't encode an image. A name can be too long
        # because of its image.
        by_image = error.errno in (None, errno.ENAMETOOLONG)
        return "memory" if error.errno == errno.ENOMEM else "image" if by_image else "set-up"
    if isinstance(error, UserError | ImportError):
        return "set-up"
    if isinstance(error, MemoryError) or _is_torchs_memory_error(error):
        return "memory"
    if isinstance(error, RuntimeError):
        if any(words in text for words in _BROKEN_DEVICE):
            return "set-up"
        if any(words in text for words in _SHORT_OF_MEMORY):
            return "memory"
    return "image"


def _is_torchs_memory_error(error: Exception) -> bool:
    # Without importing torch, which processes that only decode do not need.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.cuda.OutOfMemoryError)


def reason_of(error: Exception) -> str:
    """The reason for the column ``error``: kind and first line of an exception."""
    told = (str(error).strip().splitlines() or [""])[0][:_LONGEST_REASON]
    return f"{type(error).__name__}: {told}" if told else type(error).__name__
