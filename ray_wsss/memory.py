"""How this process gets its memory from the system."""

import ctypes
import os
import sys

SWITCH = "RAY_WSSS_MALLOC"
"""Environment variable; with the value "default" `keep_freed_memory` changes nothing."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_FROM_HEAP = 32 * 2**20
"""Bytes; the most that every version of glibc accepts."""
_LARGEST_KEPT = 512 * 2**20


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
