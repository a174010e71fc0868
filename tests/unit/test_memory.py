"""Freed memory stays with the process, unless the switch says otherwise."""

import platform
import subprocess
import sys

import pytest

# Page faults of ten rounds that each fill 16 MiB and free it.
_CODE = """
import resource
import numpy as np
from ray_wsss.memory import keep_freed_memory
worked = keep_freed_memory()
np.ones(2**21)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(2**21)
print(worked, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these thresholds")
@pytest.mark.parametrize(("value", "kept"), [("", True), ("default", False)])
def test_large_blocks_are_reused(value: str, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_WSSS_MALLOC", value)
    # NumPy would otherwise ask for pages of 2 MiB, of which few are counted.
    monkeypatch.setenv("NUMPY_MADVISE_HUGEPAGE", "0")
    done = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=True)
    worked, faults = done.stdout.split()
    assert worked == str(kept)
    assert (int(faults) < 1000) is kept  # 16 MiB are 4096 pages
