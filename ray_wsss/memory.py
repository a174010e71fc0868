"""How this process gets its memory from the system, and its share of a GPU's memory."""

import ctypes
import os
import sys

from ray_wsss.errors import UserError

SWITCH = "RAY_WSSS_MALLOC"
"""Environment variable; with the value "default" `keep_freed_memory` changes nothing."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_FROM_HEAP = 32 * 2**20
"""Bytes; the most that every version of glibc accepts."""
_LARGEST_KEPT = 512 * 2**20
_CUDA_ITSELF = 2**30
"""About the bytes that CUDA and its libraries take in each process, beside its tensors."""


def keep_freed_memory() -> bool:
    """Let glibc reuse freed memory instead of returning it to the system; True if that worked.

    By default glibc gets a large block from the system for each large tensor, and returns it when the tensor
    is freed. The system then clears every page again for the next tensor. On virtual machines that can cost
    more than the arithmetic. From here on, blocks of up to 32 MiB come from the heap, and up to 512 MiB of
    free memory at its end stay there. Other C libraries than glibc stay as they are.
    """
    if sys.platform != "linux" or os.environ.get(SWITCH) == "default":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    both = ((_M_MMAP_THRESHOLD, _LARGEST_FROM_HEAP), (_M_TRIM_THRESHOLD, _LARGEST_KEPT))
    return min(mallopt(name, value) for name, value in both) == 1


def take_share_of_gpu(share: float) -> None:
    """Limit this process to its share of its GPU's memory, so that none takes the room of another.

    A batch that needs more than the share runs out of memory, as on a GPU of that size, and is halved.

    Args:
        share: share of the GPU, from 0 (no GPU) to 1 (the whole one; there is no limit).

    Raises:
        UserError: less than the share is free.
    """
    if not 0 < share < 1:
        return
    import torch

    if not torch.cuda.is_available():
        return
    free, total = torch.cuda.mem_get_info()
    limit = share * total - _CUDA_ITSELF
    if not 0 < limit <= free:
        raise UserError(
            f"{torch.cuda.get_device_name()} has {free / 2**30:.1f} of {total / 2**30:.1f} GiB free; "
            f"expected {max(0, limit) / 2**30:.1f} for a process with {share:g} of it, and 1 for CUDA itself"
        )
    torch.cuda.set_per_process_memory_fraction(limit / total)
